"""The likelihood bound of true pairs: the bits a number of each modality, alone and given all the others."""

from unidiffuser.agreement import Quadrature
from unidiffuser.evaluation.numbers import mean
from unidiffuser.evaluation.trial import Rows, Trial
from unidiffuser.joint import modality_of
from unidiffuser.likelihood import description_length

PAIRS = 32
DRAWS = 16


def bits(trial: Trial) -> Rows:
    """A row for each modality of the data; see `likelihood` for what is bounded."""
    model, names = trial.model, trial.reference.names
    pairs = trial.reference.asked[:PAIRS]
    joint = trial.streams(pairs)
    seeds = [trial.seed_of("bits", k) for k in range(len(pairs))]
    for done, name in enumerate(names, 1):
        count = sum(x[0].numel() for stream, x in joint.items() if modality_of(stream) == name)
        others = tuple(other for other in names if other != name)
        numbers = {}
        for title, given in {"alone": (), "given the others": others}.items():
            if title == "alone" or given:
                found = description_length(
                    model.posterior, model.process, model.shapes, joint, name, given, seeds, draws=DRAWS
                )
                numbers[title] = mean((found / count).tolist())
        trial.tell("likelihood", done, len(names))
        yield (
            f"{name}: likelihood bound",
            {
                "what": f"bits a number, at most, to describe the {count} numbers of {name}, blurred by noise of "
                f"standard deviation e^-{Quadrature().high:g}",
                "numbers": numbers,
                "draws": DRAWS,
            },
        )
