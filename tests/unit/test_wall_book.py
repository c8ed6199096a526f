# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walls in the book: random histories against a model, with the statements that the daemon runs."""

import secrets
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from svirtd.book import registry, schema
from svirtd.book import walls as book
from svirtd.config import Config
from svirtd.core.model import VM, Lifetime, State
from svirtd.core.walls import Held, Scope, Wall
from svirtd.engine import walls
from svirtd.engine.doors import Doors
from svirtd.errors import Failed, InvalidArgs, NoSuchVM, WallConflict

WALLS: Final = (
    Wall("banks", (("a", "a2"), ("b",), ("c",))),
    Wall("crossed", (("a2",), ("b", "d")), Scope.OWNER),
    Wall("pair", (("d",), ("e",))),
)
GROUPS: Final = ("a", "a2", "b", "c", "d", "e", "free")
UUIDS: Final = tuple(f"{n:08x}-0000-0000-0000-00000000000{n}" for n in range(3))


@pytest.fixture
def db() -> Iterator[Database]:
    made = new_book()
    yield made
    made.close()


def new_book() -> Database:
    made = Database(sqlite3.connect(":memory:", isolation_level=None), execute_plugins=False)
    schema.migrate(made)
    return made


def doors_of(*configured: Wall) -> Doors:
    return cast("Doors", SimpleNamespace(config=Config(walls=configured)))


def vm_of(name: str, rank: int, uuid: str = "", owner_uid: int = 1000) -> VM:
    return VM(
        secrets.token_hex(8), name, owner_uid, State.RESERVED, "", "isolated", uuid, rank, "c1,c2",
        "u:r:t:s0:c1,c2", "u:r:i:s0:c1,c2", "", 0, "", True, Lifetime.RELEASE, "", 1,
    )  # fmt: skip


def start(db: Database, doors: Doors, vm: VM, *groups: str) -> VM:
    """What begin_acquire does of it."""
    running = replace(vm, state=State.RUNNING, groups=groups)
    walls.refuse(db, doors, running)
    registry.update_vm(db, running)
    walls.record(db, doors.config.walls, running)
    return running


def stop(db: Database, vm: VM) -> VM:
    stopped = replace(vm, state=State.RESERVED, groups=())
    registry.update_vm(db, stopped)
    return stopped


def clear(db: Database, wall: str, text: str, *configured: Wall) -> int:
    """What Walls.clear does, past the question who may."""
    subjects = walls._subjects(db, text)
    if not subjects:
        raise walls._unknown(db, text)
    return walls._clear(db, configured, 0, wall, text, subjects)


@dataclass
class Model:
    """Sets of what was held, by wall and subject; and apart from that each event as it happened."""

    past: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    events: list[tuple[str, frozenset[str], frozenset[str]]] = field(default_factory=list)

    def allows(self, vm: VM, groups: set[str]) -> bool:
        for wall in WALLS:
            held = set().union(*(self.past[wall.name, s] for s in self.subjects(wall, vm)))
            asked = {wall.side(one) for one in groups} - {None}
            # Whoever asks for nothing is let in, also one who has taken the UUID of another side.
            if asked and len(asked | ({wall.side(one) for one in held} - {None})) > 1:
                return False
        return True

    def started(self, vm: VM, groups: set[str]) -> None:
        for wall in WALLS:
            own = [s for s in (vm.id, vm.uuid) if s]
            held = {g for g in groups if wall.side(g) is not None}
            held = held.union(*(self.past[wall.name, s] for s in own))
            for subject in self.subjects(wall, vm):
                self.past[wall.name, subject] |= held
            self.events.append((wall.name, frozenset(self.subjects(wall, vm)), frozenset(groups)))

    def cleared(self, wall: str, subjects: frozenset[str]) -> None:
        for subject in subjects:
            self.past[wall, subject].clear()
        self.events.append((wall, subjects, frozenset({"CLEARED"})))

    def check(self) -> None:
        """No subject has held two sides without a clear between: by the events alone."""
        for wall in WALLS:
            sides: dict[str, set[int]] = defaultdict(set)
            for name, subjects, groups in self.events:
                for subject in subjects if name == wall.name else ():
                    if "CLEARED" in groups:
                        sides[subject].clear()
                    sides[subject] |= {s for g in groups if (s := wall.side(g)) is not None}
                    assert len(sides[subject]) < 2, (wall.name, subject, self.events)

    @staticmethod
    def subjects(wall: Wall, vm: VM) -> list[str]:
        owner = [f"uid:{vm.owner_uid}"] if wall.scope is Scope.OWNER else []
        return [s for s in (vm.id, vm.uuid) if s] + owner


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_subject_ever_holds_two_sides(data: st.DataObject) -> None:
    db, doors, model = new_book(), doors_of(*WALLS), Model()
    vms: dict[str, VM] = {}
    ranks = iter(range(10_000))
    names = st.sampled_from([f"vm{n}" for n in range(4)])
    for _ in range(data.draw(st.integers(1, 25))):
        name = data.draw(names)
        vm = vms.get(name)
        match data.draw(st.sampled_from(("start", "start", "start", "uuid", "forget", "clear"))):
            case _ if vm is None:
                # Also "rename": another VM with a UUID that was there before.
                uuid = data.draw(st.sampled_from(("", *UUIDS)))
                vm = vm_of(name, next(ranks), uuid, data.draw(st.sampled_from((0, 1000))))
                registry.add_vm(db, vm)
                vms[name] = vm
            case "start":
                groups = data.draw(st.sets(st.sampled_from(GROUPS), max_size=3))
                if not model.allows(vm, groups):
                    with pytest.raises(WallConflict):
                        start(db, doors, vm, *sorted(groups))
                    continue
                running = start(db, doors, vm, *sorted(groups))
                model.started(running, groups)
                model.check()
                stop(db, running)
            case "uuid":
                vms[name] = replace(vm, uuid=data.draw(st.sampled_from(UUIDS)))
                registry.update_vm(db, vms[name])
            case "forget":
                registry.remove_vm(db, vms.pop(name))
            case "clear":
                wall = data.draw(st.sampled_from(WALLS)).name
                text = data.draw(st.sampled_from((name, vm.id, vm.uuid or vm.id, "uid:1000")))
                subjects = frozenset(walls._subjects(db, text))
                assert subjects <= {vm.id, vm.uuid, "uid:1000"} | {
                    one.id for one in vms.values() if one.uuid and one.uuid == vm.uuid
                }
                held = sum(len(model.past[wall, subject]) for subject in subjects)
                if not held:
                    with pytest.raises(Failed):
                        clear(db, wall, text, *WALLS)
                    continue
                assert clear(db, wall, text, *WALLS) == held
                model.cleared(wall, subjects)
    rows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in (one.name for one in WALLS):
        for row in book.newest(db, name, 9999):
            rows[row.wall, row.subject].add(row.group)
    assert rows == {key: groups for key, groups in model.past.items() if groups}
    assert list(book.faults(db)) == []
    db.close()


def test_the_first_moment_stays(db: Database) -> None:
    book.remember(db, [Held("w", "uid:1", "g", "first", 5), Held("w", "uid:1", "g", "later", 9)])
    book.remember(db, [Held("w", "uid:1", "g", "latest", 2)])
    assert book.history_of(db, ["uid:1", "uid:2"]) == [Held("w", "uid:1", "g", "first", 5)]


def test_what_runs_is_recorded_for_walls_that_are_new(db: Database) -> None:
    vm = vm_of("web", 1, UUIDS[1])
    registry.add_vm(db, vm)
    running = start(db, doors_of(), vm, "a", "free")
    assert book.counts(db) == {}
    assert walls.record_running(db, WALLS) == []
    stop(db, running)
    with pytest.raises(WallConflict, match=r"'banks' separates group 'b' from group 'a'"):
        start(db, doors_of(*WALLS), vm, "b")


def test_what_runs_on_two_sides_is_told(db: Database) -> None:
    vm = vm_of("web", 1)
    registry.add_vm(db, vm)
    start(db, doors_of(), vm, "a", "b")
    (told,) = walls.record_running(db, WALLS)
    assert told.startswith("VM web is where it may not be: wall 'banks' separates")
    assert {one.group for one in book.history_of(db, [vm.id])} == {"a", "b"}


class TestClear:
    def test_what_is_held_is_not_forgotten(self, db: Database) -> None:
        vm = vm_of("web", 1, UUIDS[1])
        registry.add_vm(db, vm)
        running = start(db, doors_of(*WALLS), vm, "a2")
        for wall, text in (("banks", "web"), ("banks", UUIDS[1].upper()), ("crossed", "uid:1000")):
            with pytest.raises(Failed, match="'web' is in group 'a2' now"):
                clear(db, wall, text, *WALLS)
        with pytest.raises(Failed, match="nothing was cleared"):
            clear(db, "pair", "web", *WALLS)
        stop(db, running)
        assert clear(db, "banks", "web", *WALLS) == 2
        assert clear(db, "crossed", "uid:1000", *WALLS) == 1
        assert [one.uid for one in book.cleared(db, "banks", 9)] == [0, 0]

    def test_no_name_is_taken_for_another_subject(self, db: Database) -> None:
        """A user's VM may be called as an owner, an Id or a UUID is written: it is not meant."""
        root = vm_of("root's", 1, UUIDS[1], owner_uid=0)
        registry.add_vm(db, root)
        stop(db, start(db, doors_of(*WALLS), root, "a2"))
        for rank, name in enumerate(("uid:0", root.id, root.uuid), start=2):
            registry.add_vm(db, vm_of(name, rank))
        assert walls._subjects(db, "uid:0") == ("uid:0",)
        assert (
            set(walls._subjects(db, root.id))
            == set(walls._subjects(db, root.uuid))
            == {
                root.id,
                root.uuid,
            }
        )

    def test_unknown_names(self, db: Database) -> None:
        vm = vm_of("web", 1)
        registry.add_vm(db, vm)
        stop(db, start(db, doors_of(*WALLS), vm, "a"))
        with pytest.raises(InvalidArgs, match="no wall is named 'bank'"):
            clear(db, "bank", "web", *WALLS)
        registry.remove_vm(db, vm)
        with pytest.raises(NoSuchVM, match=f"in the history as {vm.id}: name one"):
            clear(db, "banks", "web", *WALLS)
        with pytest.raises(NoSuchVM, match="svirtctl wall history"):
            clear(db, "banks", "other", *WALLS)
        assert clear(db, "banks", vm.id, *WALLS) == 1

    def test_a_wall_that_is_gone_can_be_cleared(self, db: Database) -> None:
        vm = vm_of("web", 1)
        registry.add_vm(db, vm)
        stop(db, start(db, doors_of(*WALLS), vm, "a"))
        renamed = Wall("houses", WALLS[0].classes)
        with pytest.raises(WallConflict, match="svirtctl wall clear banks "):
            start(db, doors_of(renamed), vm, "b")
        assert clear(db, "banks", "web", renamed) == 1
        stop(db, start(db, doors_of(renamed), vm, "b"))


def test_faults(db: Database) -> None:
    book.remember(db, [Held("w", "web", "g", "web", 5)])
    assert list(book.faults(db)) == ["wall_history has the subject 'web' at 5"]
