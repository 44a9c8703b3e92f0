"""Sampled texts beside those of their pairs: how many are the same to the letter, and how many words they share.

The share of words is F1, twice the words in common over the words of both, each as often as it stands there. Beside it
stands what the texts of other pairs share: a model whose texts do not look at what was given gets no more than that.
"""

from collections import Counter

from unidiffuser.evaluation.numbers import mean, rate
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial


def wording(trial: Trial) -> Rows:
    """A row for each text, given each set of others."""
    names = trial.reference.names
    texts = [name for name in names if trial.model.modalities[name].media_type == "text"]
    if not texts or len(names) < 2:
        raise NotMeasured("it needs texts and something that they are given")
    for text in texts:
        true = [str(pair[text]) for pair in trial.reference.asked]
        # As many as there are samples, in turns as the samples are.
        wanted = [true[k % len(true)] for k in range(trial.samples)]
        others = [shared(a, true[(k + 1) % len(true)]) for k, a in enumerate(true)]
        for given in trial.givens(text):
            seen = [str(value) for value in trial.draw(text, given)]
            title = f"{text} given {' and '.join(given)}"
            yield (
                f"{title}: wording",
                {
                    "what": f"{title} beside the {text} of its pair: the same to the letter, and the "
                    "share of words in common",
                    "features": "exact",
                    "numbers": {
                        "same": rate(sum(a == b for a, b in zip(seen, wanted, strict=True)), len(seen)),
                        "words": mean([shared(a, b) for a, b in zip(seen, wanted, strict=True)]),
                        "words of other pairs": mean(others),
                    },
                },
            )


def shared(a: str, b: str) -> float:
    """F1 of the words of two texts, from 0 to 1; two empty texts are the same."""
    left, right = Counter(a.lower().split()), Counter(b.lower().split())
    both = left.total() + right.total()
    return 2 * (left & right).total() / both if both else 1.0
