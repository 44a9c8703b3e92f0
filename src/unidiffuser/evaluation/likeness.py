"""Samples beside truth as two clouds of vectors: FID, KID, precision and recall of every marginal and conditional."""

from collections.abc import Mapping

from unidiffuser import distances
from unidiffuser.distances import Array
from unidiffuser.evaluation.numbers import Number, rate, statistic
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial


def likeness(trial: Trial) -> Rows:
    """A row for each modality that is no text, alone and given each set of others.

    Truth is what other true pairs get: no model can be measured to be nearer to the data, but by chance.
    """
    names = [name for name in trial.reference.names if trial.model.modalities[name].media_type != "text"]
    if not names:
        raise NotMeasured("texts have no distance; there is nothing else")
    asked, others = trial.reference.asked, trial.reference.others
    for name in names:
        true = trial.vectors(name, [pair[name] for pair in asked])
        rest = trial.vectors(name, [pair[name] for pair in others[: len(asked)]])
        best = _compared(rest, true)
        for given in [(), *trial.givens(name)]:
            drawn = trial.vectors(name, trial.draw(name, given))
            title = name + (f" given {' and '.join(given)}" if given else "")
            yield (
                f"{title}: distance",
                {
                    "what": f"{title}, against the {name} of true pairs",
                    "features": trial.features.named(trial.model.modalities[name]),
                    "numbers": _compared(drawn, true, best),
                    "n": len(drawn),
                    "n_true": len(true),
                },
            )


def _compared(x: Array, true: Array, best: Mapping[str, Number] | None = None) -> dict[str, Number]:
    """Every number of x against truth; `best`: those of other true values, to stand beside them."""
    truth = {kind: number["value"] for kind, number in (best or {}).items()}
    # What few samples do to FID they do alike to both, if both are as many.
    found = {
        "fid": statistic(distances.frechet(x[: len(true)], true), truth.get("fid")),
        "kid": statistic(distances.kernel(x, true), truth.get("kid")),
    }
    for kind, share in distances.coverage(x, true):
        found[kind] = rate(round(share["rate"] * share["n"]), int(share["n"]), truth.get(kind))
    return found
