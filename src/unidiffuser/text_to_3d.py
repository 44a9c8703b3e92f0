"""Text to 3-D: an object whose picture, from any side, is one that the teacher would draw of the text.

The student is a radiance field: its sample is the picture from a random side, encoded by the teacher's own codec. What
drives it is `instruct`, as for any student (the third experiment of Uni-Instruct, arXiv 2505.20755):

    sds            the critic is the sample itself: the law of the object counts as one point (DreamFusion, 2209.14988)
    vsd            a critic learns the law of the object's pictures (ProlificDreamer, 2305.16213)
    uni-instruct   that, and any divergence: the ratio is learnt from pictures that the teacher draws of the text

The teacher knows nothing of sides, so a text must hold from all of them. Steps are functions of (seed, step) alone; the
loop, with its checkpoints, is in `optimise`.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from unidiffuser.critic import Critic
from unidiffuser.datasets.scenes import facts, oracle
from unidiffuser.guidance import Guidance
from unidiffuser.instruct import METHODS, Method
from unidiffuser.joint import Joint, generator, modality_of
from unidiffuser.optimise import fit
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.radiance import Camera, FieldConfig, RadianceField, render
from unidiffuser.teach import Rows, Teaching
from unidiffuser.timesteps import assign_roles
from unidiffuser.training import folder
from unidiffuser.training.preset import OptimiserSettings, described_as_json

log = logging.getLogger(__name__)

Progress = Callable[[int, Mapping[str, float]], None]
"""Told (step, the last figures)."""

WAYS: Mapping[str, Method] = {
    "sds": METHODS["sds"],
    "vsd": METHODS["vsd"],
    "uni-instruct": replace(METHODS["vsd"], divergence="forward-kl", adversarial=1e-2),
}
"""The methods by name."""
