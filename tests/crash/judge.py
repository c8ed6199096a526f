# SPDX-License-Identifier: LGPL-2.1-or-later
"""Book, disk and processes held against each other and against what the caller was told.

It knows what a label means and what the tables hold, and takes neither from the daemon's engine.
"""

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from svirtd.core.mcs import parse_categories, parse_context
from svirtd.core.pool import Permutation, make_shape
from svirtd.host.bus import BusError
from tests.crash.scenarios import Fate
from tests.crash.world import BYSTANDER, GROUP, LABELS, Resource, World, raw_label

_VM: Final = (
    "rank, id, name, state, categories, unit, main_pid, runtime_dir, process_context, groups,"
    " labeller"
)
_POOL: Final = make_shape(frozenset(range(768)), frozenset(range(768, 1024)), frozenset(), 2)
# Which files of world.more a VM has, with how, and what it is then.
_MORE: Final = {
    ((0, "exclusive"),): Fate.MORE,
    ((1, "exclusive"),): Fate.OTHER,
    ((0, "readonly"), (1, "exclusive")): Fate.KEPT,
    ((2, "exclusive"), (3, "readonly")): Fate.CHAIN,
}
# What a VM that libvirt labels is, by its state in the book.
_LIBVIRTS: Final = {
    "reserved": Fate.RESERVED,
    "labelled": Fate.CHECKED_IN,
    "running": Fate.FOLLOWED,
    "releasing": Fate.ENDING,
}
_HOLDING: Final = (Fate.LABELLED, Fate.RUNNING, Fate.CHECKED_IN, Fate.FOLLOWED, Fate.ENDING)


@dataclass(frozen=True, slots=True)
class Row:
    """A VM as the book has it."""

    rank: int
    id: str
    name: str
    state: str
    categories: str
    unit: str
    main_pid: int
    runtime_dir: str
    process_context: str
    groups: str
    labeller: str

    @property
    def fate(self) -> str:
        if self.labeller:
            return _LIBVIRTS.get(self.state, self.state)
        return {"reserved": Fate.RESERVED, "labelled": Fate.LABELLED, "running": Fate.RUNNING}.get(
            self.state, self.state
        )


def is_at_rest(world: World) -> bool:
    """Say whether all is as at the beginning: no VM but the bystander, nothing open."""
    if world.daemon.process is None or world.ended():
        return False
    try:
        world.settle()
        return not Judge(world, "", ()).problems({Fate.GONE}, bystander=True)
    except (AssertionError, BusError, sqlite3.Error):
        return False  # whatever it is, it is not that


class Judge:
    """Looks at a world whose daemon is up and settled."""

    def __init__(self, world: World, name: str, resources: Collection[Resource]) -> None:
        self._world = world
        self._name = name
        self._resources = resources

    def problems(self, possible: Collection[Fate], *, bystander: bool) -> list[str]:
        """Say what is wrong, nothing if all is well."""
        with self._world.look():
            return self._problems(possible, bystander=bystander)

    def _problems(self, possible: Collection[Fate], *, bystander: bool) -> list[str]:
        vms = {row.name: row for row in self._vms()}
        known = {self._name, BYSTANDER} if bystander else {self._name}
        found = [f"the book has VM {name}" for name in vms.keys() - known]
        if bystander and BYSTANDER not in vms:
            found.append("the bystander has gone")
        vm = vms.get(self._name)
        fate = Fate.GONE if vm is None else self._fate(vm)
        if fate not in possible:
            found.append(f"the VM is {fate}, expected {' or '.join(sorted(possible))}")
        found += self._labels(vms)
        found += self._units(vms.values())
        found += self._pool(vms.values())
        found += [f"open: {row}" for row in self._world.rows("operation")]
        found += [f"in quarantine: {row}" for row in self._world.rows("quarantine")]
        told = self._world.client.vms()
        if told != {name: row.state for name, row in vms.items()}:
            found.append(f"the daemon tells of {told}")
        return found

    def _more(self, row: Row) -> dict[int, tuple[str, bool]]:
        """Which of the files that a VM got later it has, with how, and whether what each carried
        before is known."""
        held = {
            path: (access, bool(known))
            for path, access, known in self._query(
                f"SELECT path, access, original_known FROM hold WHERE rank = {row.rank}"
            )
        }
        more = enumerate(self._world.more)
        return {n: held[str(one.path)] for n, one in more if str(one.path) in held}

    def _fate(self, row: Row) -> str:
        more = self._more(row)
        if row.fate == Fate.FOLLOWED and more:
            known = all(known for _, known in more.values())
            return Fate.LEARNT if known else Fate.PLUGGED
        return _MORE.get(tuple((n, access) for n, (access, _) in more.items()), row.fate)

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._world.query(sql)

    def _vms(self) -> list[Row]:
        return [Row(*row) for row in self._query(f"SELECT {_VM} FROM vm")]

    def _labels(self, vms: dict[str, Row]) -> Iterator[str]:
        """Every file carries what its holder gives it, or what it carried at the beginning."""
        world = self._world
        wanted: dict[Path, bytes | None] = {one.path: one.original for one in world.every}
        for one in world.every:
            wanted |= one.inside
        wanted |= world.libvirt.plugged
        holds: dict[str, set[tuple[str, str, str, str | None]]] = {name: set() for name in vms}
        for name, *hold in self._query(
            "SELECT v.name, h.path, h.access, h.label, h.original FROM hold h"
            " JOIN vm v ON v.rank = h.rank"
        ):
            holds[name].add(tuple(hold))
        for name, row in vms.items():
            some = world.bystanders if name == BYSTANDER else tuple(self._resources)
            if row.fate not in _HOLDING:
                some = ()
            more = self._more(row)
            some += tuple(replace(world.more[n], access=access) for n, (access, _) in more.items())
            unknown = {world.more[n].path for n, (_, known) in more.items() if not known}
            expected = set()
            for one in some:
                shared = one.access == "group"
                label = LABELS[one.access].format(
                    f"c{world.category}" if shared else row.categories
                )
                # svirtd sets nothing that libvirt sets.
                if not row.labeller or world.libvirt.has_labelled:
                    wanted |= dict.fromkeys((one.path, *one.inside), label.encode() + b"\0")
                original = None if one.original is None else one.original.decode().rstrip("\0")
                if one.path in unknown:
                    original = None
                expected.add((str(one.path), one.access, label, original))
            groups = GROUP if any(one.access == "group" for one in some) else ""
            if row.groups != groups:
                yield f"{name}, {row.state}, is in groups {row.groups!r}, expected {groups!r}"
            if holds[name] != expected:
                wrong = sorted(holds[name] ^ expected, key=str)
                yield f"{name}, {row.state}, holds in the book otherwise than expected: {wrong[:3]}"
        for path, raw in wanted.items():
            found = raw_label(path)
            if found != raw:
                yield f"{path.name} carries {found!r}, expected {raw!r}"

    def _units(self, vms: Collection[Row]) -> Iterator[str]:
        """A unit runs for each VM that is running, under its label, and no other."""
        world = self._world
        running = [row for row in vms if row.fate is Fate.RUNNING]
        if world.units() != sorted(row.unit for row in running):
            yield f"units {world.units()} run"
            return
        for row in running:
            pid, context = world.service(row.unit, "MainPID", "SELinuxContext")
            if pid != row.main_pid:
                yield f"{row.unit} is process {pid}, book: {row.main_pid}"
            if context[1] != row.process_context:
                yield f"{row.unit} runs as {context}"
            pair = parse_categories(row.categories)
            shared = {world.category} if row.groups else set()
            if parse_context(row.process_context).categories != pair | shared:
                yield f"{row.name}'s context {row.process_context} is not that of its pair"
        if world.processes() != sorted(row.main_pid for row in running):
            yield f"processes {world.processes()} are left"
        if world.folders() != sorted(row.id for row in running):
            yield f"runtime folders: {world.folders()}"
        for row in vms:
            if row.fate in (Fate.FOLLOWED, Fate.ENDING):
                if (row.unit, row.main_pid, row.runtime_dir) != ("", world.libvirt.pid, ""):
                    yield f"{row.name} is {row.state}, process {world.libvirt.pid}: {row}"
            elif row.fate is not Fate.RUNNING and (row.unit or row.main_pid or row.runtime_dir):
                yield f"{row.name} is {row.state} and has a unit or a folder: {row}"

    def _pool(self, vms: Collection[Row]) -> Iterator[str]:
        """Every pair that was ever drawn is a VM's or waits for its next use, exactly once."""
        ((key, cursor, *counted),) = self._query(
            "SELECT key, cursor, returned, quarantined, ahead FROM pool"
        )
        waiting = [rank for (rank,) in self._query("SELECT rank FROM returned")]
        if counted != [len(waiting), 0, 0]:
            yield f"the pool counts {counted} returned, quarantined and ahead; {waiting} wait"
        permutation = Permutation(key, _POOL.total)
        drawn = sorted(permutation.at(index) for index in range(cursor))
        owned = [row.rank for row in vms]
        if sorted(owned + waiting) != drawn:
            yield f"drawn were {drawn}, VMs have {owned}, {waiting} wait"
        for row in vms:
            if parse_context(
                LABELS["exclusive"].format(row.categories)
            ).categories != _POOL.categories_of(row.rank):
                yield f"{row.name} has {row.categories}, its rank is {row.rank}"
