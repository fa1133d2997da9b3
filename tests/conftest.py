"""What holds for every test: one thread, fixed seeds, and hypothesis profiles that give the same examples each time."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

# Before torch is imported: its thread pools read these once. Sub-processes that a test starts inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import hypothesis
import numpy
import pytest
import torch

PROFILE = os.environ.get("BNAS_HYPOTHESIS_PROFILE", "default")

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long",
    deadline=None,
    derandomize=False,
    max_examples=1000,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked slow, except in the long profile, whose tests may take as long as they like."""
    for item in items:
        if PROFILE == "long":
            item.add_marker(pytest.mark.timeout(0))
        elif item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason="slow: set BNAS_HYPOTHESIS_PROFILE=long"))


class Failures:
    """Prints what failed at once: a run that is ended from outside never comes to its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self.plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.outcome} ({report.when}): {report.nodeid}\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that starts the workers prints."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config), "failures at once")


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Make sums come out in one order, and leave the other core to whoever shares the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests name as the user's code is not remembered in the state folder of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNAS_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Make a test independent of those that ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def change() -> Iterator[Callable[..., Any]]:
    """Give the record of an operator other facts until the test ends: ``change(torch.relu, axes=rule)``."""
    from bnas.passes import OPERATORS

    with ExitStack() as stack:
        yield lambda op, **facts: stack.enter_context(OPERATORS.changed(op, **facts))
