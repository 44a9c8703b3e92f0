"""The parts of a training run, one file each; `train` puts them together and `optimise` is the loop.

preset       a whole run as typed values          overrides    dotted changes to it, and the flags' one dial
sizes        the dial: parameters -> width, depth, rate ...    derive   from a data set to a preset
batches      which sample stands where             encoding     raw pairs -> latents, what is refused
codecs       each modality's codec, fitted          folder       whose run it is: lock, preset, diff
team         the processes of a run                 journal      metrics.jsonl and other sinks
state        all that a run needs to go on          previews     samples of a run in progress
warm         weights from another model             estimate     memory and time before anything is spent
saving       a checkpoint by many processes         memory       what to say when it runs out
"""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is one sentence with the cure. What was trained is saved."""
