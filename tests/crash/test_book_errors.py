# SPDX-License-Identifier: LGPL-2.1-or-later
"""A book that cannot be written, at every transaction of an operation.

Nothing may depend on a restart: once the book can be written again, a release settles what is open,
and what nobody would ask for is tried again by the daemon itself.
"""

import sqlite3
from contextlib import closing
from typing import Final

import pytest

from svirtd.failpoints import Point
from svirtd.host.bus import BusError
from tests.crash.enumeration import Enumeration
from tests.crash.errors import OWN, Errors
from tests.crash.report import Report
from tests.crash.scenarios import ACQUIRED, RELEASED, SCENARIOS, Fate, Scenario
from tests.crash.world import World

ERRORS: Final = (
    "database_or_disk_is_full",
    "disk_I/O_error",
    "database_is_locked",
    "attempt_to_write_a_readonly_database",
)
NAMES: Final = (
    "acquire",
    "launch",
    "release",
    "release-launched",
    "unit-ends",
    "acquire-refused",
    "launch-refused",
    "release-stuck",
    "persistent",
    "caller-leaves",
    "detach",
    "replace",
)
# What is armed for good keeps a release from its end, with or without a book.
ONCE: Final = [one for one in SCENARIOS if one.name in NAMES and one.name != "release-stuck"]
SOME: Final = [one for one in SCENARIOS if one.name in NAMES]
ASKED: Final = [one for one in SOME if not one.steps[0].silent]


@pytest.mark.parametrize("scenario", ONCE, ids=lambda one: one.name)
def test_one_transaction_fails(world: World, report: Report, scenario: Scenario) -> None:
    """One fails and the next does not: everything is settled without a restart."""
    Enumeration(world, report, scenario, 1).fail_once(Point.COMMIT_BEFORE, ERRORS)


@pytest.mark.parametrize("scenario", ASKED, ids=lambda one: one.name)
def test_every_transaction_fails_from_one_on(
    world: World, report: Report, scenario: Scenario
) -> None:
    """The book stays as it is until the daemon is started again."""
    Enumeration(world, report, scenario, 1).fail_on(Point.COMMIT_BEFORE, ERRORS)


def test_another_process_holds_the_lock(errors: Errors) -> None:
    errors.start()
    with closing(sqlite3.connect(errors.world.daemon.book, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = errors.refused(ACQUIRED.ask)
        assert refused.name == OWN + "Failed"
        assert "database is locked" in refused.text
        assert "nothing was written" in refused.text
        other.execute("ROLLBACK")
    errors.stands(Fate.GONE)
    ACQUIRED.ask(errors.run)
    with closing(sqlite3.connect(errors.world.daemon.book, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = errors.refused(RELEASED.ask)
        assert "database is locked" in refused.text
        other.execute("ROLLBACK")
    errors.stands(Fate.LABELLED)
    RELEASED.ask(errors.run)
    errors.stands(Fate.GONE)


def test_an_acquisition_that_cannot_be_closed_is_closed_later(errors: Errors) -> None:
    """Left open it would be undone by a start that finds one of its labels changed."""
    errors.start(before=[ACQUIRED])
    commits = [name for name, _ in errors.world.reached()].count(Point.COMMIT_BEFORE)
    errors.start(f"{Point.COMMIT_BEFORE}@{commits}=raise:sqlite3.OperationalError:disk_I/O_error")
    errors.count()
    ACQUIRED.ask(errors.run)
    # Fails while the operation is open.
    errors.stands(Fate.LABELLED)
    RELEASED.ask(errors.run)
    errors.stands(Fate.GONE)


def test_a_release_that_cannot_be_closed_can_be_asked_for_again(errors: Errors) -> None:
    """Its labels are back, and the book says that it is being released."""
    errors.start(before=[ACQUIRED])
    commits = [name for name, _ in errors.world.reached()].count(Point.COMMIT_BEFORE)
    armed = f"{Point.COMMIT_BEFORE}@{commits + 2}=raise:sqlite3.OperationalError:disk_I/O_error"
    errors.start(armed, before=[ACQUIRED])
    refused = errors.refused(RELEASED.ask)
    assert refused.name == OWN + "Failed"
    assert errors.world.client.vms()[errors.run.name] == "releasing"
    for one in errors.resources:
        assert errors.world.label(one) == one.original
    with pytest.raises(BusError) as caught:
        ACQUIRED.ask(errors.run)
    assert "release it first" in caught.value.text
    RELEASED.ask(errors.run)
    errors.stands(Fate.GONE)
