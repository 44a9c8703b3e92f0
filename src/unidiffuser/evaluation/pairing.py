"""Whether a model tells true pairs from wrong ones, and whether it denoises one modality with the help of another."""

from itertools import combinations
from typing import Any

from unidiffuser.agreement import USE_TIMESTEPS, use_of_others
from unidiffuser.evaluation.numbers import mean, statistic
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial
from unidiffuser.metrics import separation

PAIRS = 32
"""So many true pairs, and as many wrong ones, are scored."""
DRAWS = 32
"""Noise draws a score."""
USED = 256


def agreement(trial: Trial) -> Rows:
    """For every two modalities the bits of true pairs and of wrong ones, and the AUC between them."""
    names = trial.reference.names
    if len(names) < 2:
        raise NotMeasured("pairs need two modalities")
    pairs = trial.reference.asked[:PAIRS]
    strangers = _strangers(trial)
    for one, other in combinations(names, 2):
        of, about = sorted((one, other), key=lambda name: trial.model.modalities[name].media_type == "text")
        seed = trial.seed_of(f"agreement {of} {about}", 0) // 2
        explained = [pair[of] for pair in pairs]
        scores = []
        for places in (range(len(pairs)), strangers):
            told = [pairs[k][about] for k in places]
            values: dict[str, Any] = {of: explained, about: told}
            found = trial.model.score(of, about, samples=DRAWS, seed=seed, **values)
            scores.append([score.bits for score in found])
            trial.tell(f"agreement of {of} and {about}", len(scores), 2)
        yield (
            f"{of} and {about}: agreement",
            {
                "what": f"bits that {about} tells about {of}, by the model's own belief, and how well they tell true "
                "pairs from wrong ones",
                "numbers": {
                    "bits": mean(scores[0]),
                    "bits of wrong pairs": mean(scores[1]),
                    "auc": _auc(scores[0], scores[1]),
                },
                "draws": DRAWS,
            },
        )


def _auc(true: list[float], wrong: list[float]) -> dict[str, float | None]:
    found = dict(separation(true, wrong))
    return statistic({"value": found.pop("auc"), **found}.items())


def _strangers(trial: Trial) -> list[int]:
    """For each pair another one to take a value from, with another text if there are texts."""
    pairs = trial.reference.asked[:PAIRS]
    texts = [name for name in trial.reference.names if trial.model.modalities[name].media_type == "text"]
    found = []
    for k, pair in enumerate(pairs):
        later = ((k + step) % len(pairs) for step in range(1, len(pairs)))
        other = next((j for j in later if not texts or pairs[j][texts[0]] != pair[texts[0]]), None)
        if other is None:
            raise NotMeasured("all pairs have the same text, so none is wrong")
        found.append(other)
    return found


def denoising(trial: Trial) -> Rows:
    """The mean squared error of the clean estimate at fixed timesteps, the others given, ignored and swapped."""
    names, model = trial.reference.names, trial.model
    if set(names) != set(model.modalities) or len(names) < 2:
        raise NotMeasured("it needs data with every modality of the model, and two of them or more")
    pairs = trial.reference.asked[:USED]
    seeds = [trial.seed_of("denoising", k) for k in range(len(pairs))]
    for name, use in use_of_others(model.posterior, model.process, trial.streams(pairs), seeds).items():
        at = ", ".join(f"{t:g}" for t in USE_TIMESTEPS)
        yield (
            f"{name}: denoising",
            {
                "what": f"mean squared error of the clean estimate of {name} at the timesteps {at}, others given at 0, "
                "ignored at 1, or those of another pair",
                "numbers": {how: {"value": use[how]} for how in ("given", "ignored", "swapped")},
                "timesteps": use["timesteps"],
                "n": len(pairs),
            },
        )
