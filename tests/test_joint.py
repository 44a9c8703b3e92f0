"""Streams, seeds and noise."""

import pytest
import torch

from unidiffuser.joint import (
    MAX_SEED,
    batch_size,
    cat_joints,
    check_seeds,
    generator,
    modalities_of,
    modality_of,
    noise_like,
    streams_of,
)

SHAPES = {"image.latent": (4, 8, 8), "image.clip": (1, 16), "text": (20, 16)}


def test_a_stream_belongs_to_the_modality_before_its_dot() -> None:
    assert [modality_of(s) for s in SHAPES] == ["image", "image", "text"]
    assert modalities_of(SHAPES) == ["image", "text"]
    assert streams_of("image", SHAPES) == ["image.latent", "image.clip"]


def test_noise_of_a_sample_is_the_same_in_any_batch_and_order() -> None:
    whole = noise_like(SHAPES, [3, 4, 5], "start")
    turned = noise_like({"text": (20, 16)}, [5, 3], "start")
    assert torch.equal(turned["text"], whole["text"][[2, 0]])


def test_noise_differs_between_seeds_streams_and_purposes_and_is_standard_normal() -> None:
    noise = noise_like({"a": (50, 50), "b": (50, 50)}, [0, 1], "start")
    other = noise_like({"a": (50, 50)}, [0, 1], "step/0")
    draws = torch.stack([*noise["a"], *noise["b"], *other["a"]]).flatten(1)
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.1
    assert abs(draws.mean().item()) < 0.03 and abs(draws.std().item() - 1) < 0.03


def test_the_key_alone_decides_a_generator_on_every_machine() -> None:
    assert generator(7, "start", "image").initial_seed() == 13687462131285377
    assert generator("a", "b").initial_seed() != generator("b", "a").initial_seed()


def test_joints_go_behind_one_another() -> None:
    a, b = noise_like(SHAPES, [1], "x"), noise_like(SHAPES, [2, 3], "x")
    both = cat_joints([a, b])
    assert batch_size(both) == 3 and torch.equal(both["text"][1:], b["text"])
    with pytest.raises(ValueError, match="the same number of samples"):
        batch_size({"image": torch.zeros(2, 3), "text": torch.zeros(3, 3)})


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, "7", True, None])
def test_a_seed_that_is_none_is_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="a seed must be a whole number"):
        check_seeds([0, seed])  # type: ignore[list-item]
