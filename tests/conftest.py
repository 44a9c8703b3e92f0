"""What every test shares: one thread, so that sums have one order, hypothesis examples that repeat, and one server."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from running_server import Server


def pytest_configure() -> None:
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """A server of the tiny model; what a test does to it must leave it well."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from running_server import running
    from tiny_model import saved_model

    folder = tmp_path_factory.mktemp("served")
    with running(saved_model(folder / "tiny"), folder / "data") as found:
        yield found
