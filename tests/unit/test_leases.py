# SPDX-License-Identifier: LGPL-2.1-or-later
"""The end of a lease, decided under the VM's lock: what was given anew meanwhile has not ended."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlite_utils import Database

from svirtd.book import groups, registry, schema
from svirtd.core.groups import AtEnd, Grant, Group
from svirtd.core.model import VM, Access, Hold, Identity, Lifetime, State
from svirtd.engine import leases
from svirtd.engine.calendar import now_us

OVER = 1
MINE = VM("1", "vm", 1000, State.LABELLED, "", "isolated", "", 7, "c1,c2", "p", "i", "", 0, "",
          True, Lifetime.RELEASE, "", 1)  # fmt: skip
HELD = Hold(MINE.id, "vm", Identity(1, 2), "/a", Access.EXCLUSIVE, "l", None, until_us=OVER)
GRANT = Grant("g", "vm", 1000, OVER, AtEnd.REPORT, since_us=1)


@pytest.fixture
def db() -> Iterator[Database]:
    db = Database(memory=True)
    schema.migrate(db)
    groups.add(db, Group("g", 800, 0, 1))
    registry.add_vm(db, MINE)
    groups.join(db, MINE, "g")
    groups.grant(db, GRANT)
    yield db
    db.close()


def lasting(db: Database) -> tuple[str, ...]:
    vm = registry.vm_by_name(db, "vm")
    assert vm is not None
    return vm.lasting


def test_what_was_granted_and_is_over_is_lost(db: Database) -> None:
    lost = leases._lose(db, GRANT)
    assert lost is not None
    before, after, _ = lost
    assert (before.lasting, after.lasting, lasting(db)) == (("g",), (), ())


@pytest.mark.parametrize(
    "anew",
    [
        replace(GRANT, since_us=2),
        replace(GRANT, since_us=2, until_us=0),
        replace(GRANT, since_us=2, owner_uid=0),
    ],
)
def test_what_was_granted_anew_is_not(db: Database, anew: Grant) -> None:
    groups.grant(db, anew)
    assert leases._lose(db, GRANT) is None
    assert lasting(db) == ("g",)


def test_a_grant_for_another_users_vm_of_the_name_ends_nothing(db: Database) -> None:
    theirs = replace(GRANT, owner_uid=4711)
    groups.grant(db, theirs)
    assert leases._lose(db, theirs) is None
    assert lasting(db) == ("g",)


def test_only_holds_that_are_over_have_ended(db: Database) -> None:
    later = replace(HELD, number=1, identity=Identity(1, 3), until_us=now_us() + 10**9)
    never = replace(HELD, number=2, identity=Identity(1, 4), until_us=0)
    registry.add_holds(db, MINE, [HELD, later, never])
    vm, ended = leases._ended(db, "vm")
    assert vm is not None
    assert [one.identity.ino for one in ended] == [2]
    registry.remove_holds(db, MINE)
    registry.add_holds(db, MINE, [never])
    assert leases._ended(db, "vm")[1] == []
    assert leases._ended(db, "nobody") == (None, [])
