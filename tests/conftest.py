"""What every test shares: one order of sums, hypothesis examples that repeat, converted models."""

from typing import Any

import hypothesis
import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small released model with labels, in every format; skipped without the extra."""
    import released_model

    return released_model.formats(tmp_path_factory.mktemp("released"), labels=True)


@pytest.fixture(scope="session")
def formats_v0(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `formats`, without labels."""
    import released_model

    return released_model.formats(tmp_path_factory.mktemp("released-v0"), labels=False)
