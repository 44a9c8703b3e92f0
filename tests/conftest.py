"""What every test shares: one thread, so that sums have one order, and hypothesis examples that repeat."""

import hypothesis
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")
