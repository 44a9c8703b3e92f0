"""Where the texts of the data are a small closed set they are classes, and a conditional sample is right or wrong.

A sampled text is right if it is the text of the pair it was made from. A sampled picture or sound is right if a
classifier says so that has learnt from other true pairs: multinomial logistic regression on the extractor's vectors.
Beside each rate stands what the classifier makes of true values, which no model can be measured to exceed by much.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from unidiffuser.evaluation.numbers import rate
from unidiffuser.evaluation.trial import NotMeasured, Rows, Trial
from unidiffuser.metrics import total_variation

MOST = 100
"""So many different texts are still classes."""
EACH = 4
"""So often each is there on average, or texts are no classes."""
DECAY = 1e-2
STEPS = 100

Array = np.ndarray[Any, Any]


def classes(trial: Trial) -> Rows:
    """The accuracy of every conditional, and the frequencies of texts drawn alone."""
    text, labels = _closed(trial)
    names = trial.reference.names
    asked = [labels.index(pair[text]) for pair in trial.reference.asked]
    wanted = [asked[k % len(asked)] for k in range(trial.samples)]
    for of in names:
        judge = _judge(trial, of, text, labels)
        true = judge([pair[of] for pair in trial.reference.asked])
        ceiling = sum(a == b for a, b in zip(true, asked, strict=True)) / len(asked)
        for given in trial.givens(of):
            seen, title = judge(trial.draw(of, given)), f"{of} given {' and '.join(given)}"
            hits = sum(a == b for a, b in zip(seen, wanted, strict=True))
            yield (
                f"{title}: class",
                {
                    "what": f"{title} is of the class of its pair, one of {len(labels)}",
                    "features": "exact" if of == text else trial.features.named(trial.model.modalities[of]),
                    "numbers": {"accuracy": rate(hits, len(wanted), ceiling)},
                },
            )
    drawn = Counter(trial.draw(text))
    law = Counter(labels[k] for k in asked)
    law_shares = {name: n / len(asked) for name, n in law.items()}
    rest = Counter(pair[text] for pair in trial.reference.others[: len(asked)])
    distance, floor = (dict(total_variation({"text": c}, {"text": law_shares}))["text"] for c in (drawn, rest))
    row = {"what": f"total variation of {text} alone from the data's texts", "n": trial.samples}
    yield f"{text}: frequencies", {**row, "numbers": {"distance": {"value": distance, "truth": floor}}}


def _closed(trial: Trial) -> tuple[str, list[str]]:
    """The modality whose texts are classes, and the texts."""
    pairs = [*trial.reference.asked, *trial.reference.others]
    for name in trial.reference.names:
        if trial.model.modalities[name].media_type == "text":
            counts = Counter(pair[name] for pair in pairs)
            if 2 <= len(counts) <= MOST and len(pairs) >= EACH * len(counts):
                return name, sorted(counts)
    raise NotMeasured(f"the data have no texts that are a closed set: 2 to {MOST}, each {EACH} times or more")


def _judge(trial: Trial, of: str, text: str, labels: list[str]) -> Callable[[list[Any]], list[int]]:
    """Values of a modality -> the number of the class of each, -1 for a text that is none."""
    if of == text:
        return lambda values: [labels.index(value) if value in labels else -1 for value in values]
    others = trial.reference.others
    learnt = learn(trial.vectors(of, [pair[of] for pair in others]), [labels.index(pair[text]) for pair in others])
    return lambda values: learnt(trial.vectors(of, values)).tolist()


def learn(x: Array, y: Sequence[int]) -> Callable[[Array], Array]:
    """Logistic regression of vectors (N, D) on classes: minimises mean cross-entropy + `DECAY` |W|^2, by L-BFGS.

    Returns:
        vectors (M, D) -> classes (M,).
    """
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6) * np.sqrt(x.shape[1])

    def standard(z: Array) -> torch.Tensor:
        return torch.from_numpy((z - mean) / scale)

    inputs, wanted = standard(x), torch.tensor(y)
    weights = torch.zeros(x.shape[1], max(y) + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(max(y) + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        # The inputs are divided by sqrt(D), so the weights grow with it and the decay is of what they do to a logit.
        value = F.cross_entropy(inputs @ weights + bias, wanted) + DECAY * weights.square().sum() / x.shape[1]
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = weights.detach(), bias.detach()
    return lambda z: (standard(z) @ found[0] + found[1]).argmax(1).numpy()
