# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the crash tier, and which tests a shard runs."""

from collections.abc import Iterator

import pytest

from tests.crash.errors import Errors
from tests.crash.histories_life import figures
from tests.crash.report import Report
from tests.crash.world import World
from tests.fixtures import client, interruptible, nothing_left, sandbox, zygote
from tests.zygote import Zygote

__all__ = ["client", "interruptible", "nothing_left", "sandbox", "zygote"]

_report = Report.of_environment()


@pytest.fixture(scope="session")
def report() -> Report:
    """What this shard has done; saved at its end."""
    return _report


@pytest.fixture(scope="session")
def _world(zygote: Zygote) -> Iterator[World]:
    world = World(zygote)
    yield world
    world.close()


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """The machine that the daemon is killed on; nothing of the test runs there afterwards."""
    yield _world
    _world.reset(with_book=True)


@pytest.fixture
def errors(world: World) -> Errors:
    """The same machine, with errors put into steps."""
    return Errors(world, _report)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that shares its cases out itself (it takes `report`) runs in every shard."""
    others = [item for item in items if "report" not in getattr(item, "fixturenames", ())]
    dropped = set(others) - set(_report.share(others))
    config.hook.pytest_deselected(items=list(dropped))
    items[:] = [item for item in items if item not in dropped]


def pytest_sessionfinish() -> None:
    """Leave the counts for the verdict on all shards."""
    _report.histories = figures["histories"]
    _report.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the random histories came to."""
    if figures:
        what = ", ".join(f"{number} {name}" for name, number in figures.items())
        terminalreporter.write_line(f"at random: {what}")
