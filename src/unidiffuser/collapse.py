"""Whether a student has collapsed: it draws one thing where there are many.

Two figures, each the worst of all distributions in a batch and of all their streams, so that one cannot hide among the
others:

    spread     how far apart samples of different rows lie, over how far apart the data do
    variety    how far apart two samples of one row lie, the same given and other noise, over how far apart the answers
               of the teacher's network do, which the student began as

Where nothing is given, both see a student that draws one thing. One that follows what is given and ignores its noise
has the spread of what is given; only its variety is 0. A teacher's answer is the mean of what a noisy input may come
from, and a mean varies less than what it is the mean of (the law of total variance): a student that draws right is
above 1, whatever is given.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from unidiffuser.joint import Joint, modality_of
from unidiffuser.teach import Rows, Teaching

COLLAPSED = 0.3
"""Below this, either figure tells of a collapse."""
FEWEST = 4
"""A variance over fewer rows says too little; such a share counts within the whole batch alone."""
SAID = {
    "spread": "its samples lie {share:.0%} as far apart as the data",
    "variety": "where its noise is another and all else the same, its samples lie {share:.0%} as far apart as the "
    "teacher's answers",
}


def told(figures: Mapping[str, float]) -> str:
    """What the figures say of a collapse; empty if there is none."""
    return next((text.format(share=figures[name]) for name, text in SAID.items() if figures[name] < COLLAPSED), "")


def spread(rows: Rows, x0: Joint, data: Joint | None) -> Tensor:
    """How far apart samples x0 (B, ...) lie, over how far apart the data do: 1 is right, 0 is one thing.

    The root of the ratio of variances over rows; without data the latents' own unit variance stands for theirs.
    """
    cuts = [slice(0, rows.batch), *(cut for _, cut in rows.shares if cut.stop - cut.start >= FEWEST)]
    found = []
    for s, x in x0.items():
        theirs = torch.tensor(float(x[0].numel())) if data is None else data[s].var(0).sum()
        for cut in cuts:
            chosen = x.detach()[cut][rows.sampled[modality_of(s)][cut].to(x.device)]
            if len(chosen) > 1:
                found.append(_ratio(chosen.var(0).sum(), theirs))
    return _worst(found)


@torch.no_grad()
def variety(
    teaching: Teaching, student: nn.Module, teacher: nn.Module, rows: Rows, data: Joint | None, g: torch.Generator
) -> Tensor:
    """How far apart two first answers of a student to the same given lie, over how far apart those of the teacher do.

    Args:
        teaching: how both are asked.
        student, teacher: networks.
        data: of which the given modalities are used.
        g: the noise; both networks have the same.
    """
    first, state = replace(teaching, refine=0.0), g.get_state()
    gaps = []
    for network in (student, teacher):
        g.set_state(state)
        one, other = (first.draw(network, rows, data, g) for _ in range(2))
        gaps.append({s: (x - other[s]).square() for s, x in one.items()})
    ours, theirs = gaps
    return _worst(
        [
            _ratio(ours[s][cut].sum(), theirs[s][cut].sum())
            for roles, cut in rows.shares
            for s in ours
            if modality_of(s) in roles.sampled
        ]
    )


def _ratio(ours: Tensor, theirs: Tensor) -> Tensor:
    """The root of ours / theirs; 1 where theirs do not differ at all, as nothing can be missed."""
    theirs = theirs.to(ours)
    return torch.where(theirs > 0, ours / theirs.clamp(min=torch.finfo(ours.dtype).tiny), 1.0).sqrt()


def _worst(found: list[Tensor]) -> Tensor:
    return torch.stack(found).min() if found else torch.ones(())
