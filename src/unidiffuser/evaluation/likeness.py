"""Samples beside truth as two clouds of vectors: FID, KID, precision and recall of every marginal and conditional."""

from unidiffuser import distances
from unidiffuser.evaluation.numbers import rate, statistic
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial


def likeness(trial: Trial) -> Rows:
    """A row for each modality that is no text, alone and given each other one.

    Truth is what other true pairs get: no model can be measured to be nearer to the data, but by chance.
    """
    names = [name for name in trial.reference.names if trial.model.modalities[name].media_type != "text"]
    if not names:
        raise NotMeasured("texts have no distance; there is nothing else")
    asked, others = trial.reference.asked, trial.reference.others
    for name in names:
        true = trial.vectors(name, [pair[name] for pair in asked])
        rest = trial.vectors(name, [pair[name] for pair in others[: len(asked)]])
        best = {kind: dict(metric(rest, true))["value"] for kind, metric in METRICS.items()}
        for given in [(), *((other,) for other in trial.reference.names if other != name)]:
            drawn = trial.vectors(name, trial.draw(name, given))
            numbers = {kind: statistic(metric(drawn, true), best[kind]) for kind, metric in METRICS.items()}
            covered = distances.coverage(drawn, true)
            numbers |= {kind: rate(round(x["rate"] * x["n"]), int(x["n"])) for kind, x in covered}
            title = name + (f" given {given[0]}" if given else "")
            yield (
                f"{title}: distance",
                {
                    "what": f"{title}, against the {name} of true pairs",
                    "features": trial.features.named(trial.model.modalities[name]),
                    "numbers": numbers,
                    "n": len(drawn),
                    "n_true": len(true),
                },
            )


METRICS = {"fid": distances.frechet, "kid": distances.kernel}
