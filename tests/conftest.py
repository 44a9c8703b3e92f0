"""What every test shares: one order of sums, hypothesis examples that repeat, converted models, and one server."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
def formats(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small released model with labels, in every format; skipped without the extra."""
    import released_model

    return released_model.formats(tmp_path_factory.mktemp("released"), labels=True)


@pytest.fixture(scope="session")
def formats_v0(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `formats`, without labels."""
    import released_model

    return released_model.formats(tmp_path_factory.mktemp("released-v0"), labels=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """A server of the tiny model; what a test does to it must leave it well."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from running_server import running
    from tiny_model import saved_model

    folder = tmp_path_factory.mktemp("served")
    with running(saved_model(folder / "tiny"), folder / "data") as found:
        yield found


@pytest.fixture(scope="session")
def canary(server: "Server") -> str:
    """The pixels of a fixed good request, before anything was done to the server."""
    return server.canary()


@pytest.fixture
def unharmed(server: "Server", canary: str) -> "Iterator[None]":
    """After the test the fixed good request gives the same pixels."""
    yield
    assert server.canary() == canary
