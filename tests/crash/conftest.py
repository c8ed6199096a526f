# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the crash tier, and which tests a shard runs."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.crash.errors import Errors
from tests.crash.histories_life import figures
from tests.crash.judge import is_at_rest
from tests.crash.report import Report, take
from tests.crash.world import World
from tests.fixtures import client, interruptible, nothing_left, outliving, sandbox, zygote
from tests.zygote import Zygote

__all__ = ["client", "interruptible", "nothing_left", "sandbox", "zygote"]

_ORDER: Final = ("test_histories.py", "test_points.py", "test_book_errors.py")
_report = Report.of_environment()
_worlds: list[World] = []


@pytest.fixture(scope="session")
def report() -> Report:
    """What this shard has done; saved at its end."""
    return _report


@pytest.fixture(scope="session")
def _world(zygote: Zygote) -> Iterator[World]:
    world = World(zygote)
    with outliving(world.daemon):
        _worlds.append(world)
        yield world
        _worlds.clear()
        world.close()


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """The machine that the daemon is killed on; nothing of the test runs there afterwards but a
    daemon that has nothing to do."""
    yield _world
    if is_at_rest(_world):
        _world.rest()
    else:
        _world.reset(with_book=True)


@pytest.fixture(autouse=True)
def bus_name(request: pytest.FixtureRequest) -> None:
    """Who has a daemon of its own finds the bus name free."""
    if "world" not in request.fixturenames:
        for world in _worlds:
            world.end()


@pytest.fixture
def errors(world: World) -> Errors:
    """The same machine, with errors put into steps."""
    return Errors(world, _report)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that the shards end at the same time."""
    items.sort(key=lambda item: _ORDER.index(item.path.name) if item.path.name in _ORDER else 9)


def pytest_runtestloop(session: pytest.Session) -> bool:
    """As pytest has it, but with the tests that no other shard has taken: the next one is taken
    when the one before it begins, so that no shard waits for another at the end."""
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    if session.config.option.collectonly:
        return True
    own = (item for item in session.items if take(item.nodeid))
    item = next(own, None)
    while item is not None:
        following = next(own, None)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def pytest_sessionfinish() -> None:
    """Leave the counts for the verdict on all shards."""
    _report.histories = figures["histories"]
    _report.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the random histories came to."""
    if figures:
        what = ", ".join(f"{number} {name}" for name, number in figures.items())
        terminalreporter.write_line(f"at random: {what}")
