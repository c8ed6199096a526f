# SPDX-License-Identifier: LGPL-2.1-or-later
"""One held object against the book: look, tell, and put its label back where that is wanted."""

import enum
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from svirtd.book import ledger, registry
from svirtd.book.store import Database
from svirtd.core import drift
from svirtd.core.findings import Finding, Look
from svirtd.core.model import VM, Hold, Identity, Labeller, State, Step
from svirtd.engine import apply
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.operations import Operations
from svirtd.host import processes

# Somebody who sets a label again and again means it, or is broken: no fight without an end.
_REPAIRS_MAX: Final = 5
_REPAIRS_WITHIN_S: Final = 60.0
_TOO_OFTEN: Final = (
    f"nothing: it was put back {_REPAIRS_MAX} times within {_REPAIRS_WITHIN_S:.0f} s and changed "
    "again; look who does that, then run svirtctl verify --repair"
)


class Repair(enum.Enum):
    """Whose labels a look may put back."""

    NONE = "none"
    AUTOMATIC = "automatic"
    """Those of VMs that run, if the configuration says so."""
    START = "start"
    """As AUTOMATIC, and those that are what they were before the VM had them: a label that had not
    reached the disk when the power went."""
    ASKED = "asked"
    """Those of every VM."""


class Drift:
    """The one place where a label that somebody else changed is put back."""

    def __init__(self, doors: Doors, operations: Operations, events: Events) -> None:
        self._doors = doors
        self._operations = operations
        self._events = events
        self._told: dict[Identity, list[Finding]] = {}
        self._repairs: dict[Identity, deque[float]] = {}

    async def check(
        self, identity: Identity, repair: Repair, *, whole: bool = False
    ) -> list[Finding]:
        """Return what is wrong with an object that VMs hold, after the repair.

        Of a tree, its root is looked at, and all that is in it if that was changed or if `whole`.
        What was not told before is told to everybody: DriftFound, and a record.
        """
        # Under the object's lock nobody labels it, and whoever holds it now holds it on.
        async with self._operations.objects.hold(identity):
            # In the writers' queue: behind the closing entry that nobody waited for.
            held = await self._doors.store.write(lambda db: _in_use(db, identity), durable=False)
            findings = await self._judge(identity, held, repair, whole) if held else []
        self._tell(identity, findings)
        return findings

    def forget(self, identity: Identity) -> None:
        """Keep nothing of an object that nobody holds any more."""
        self._told.pop(identity, None)
        self._repairs.pop(identity, None)

    async def _judge(
        self,
        identity: Identity,
        held: Sequence[tuple[VM, Hold]],
        repair: Repair,
        whole: bool,
    ) -> list[Finding]:
        doors = self._doors
        hold = held[0][1]  # a shared object has one label
        seen = await doors.in_file_thread(apply.look, doors.kernel, hold.path, identity)
        finding = drift.judge(hold, seen, doors.rules)
        found = [] if finding is None else [finding]
        mendable = finding is not None and drift.may_put_back(finding)
        if finding is not None and mendable and await self._wanted(held, seen, repair):
            found = [await self._put_back(identity, held, seen, finding, repair)]
        if hold.recursive and (whole or found):
            found += await self._judge_tree(identity, held, repair)
        return [replace(one, vm_name=vm.name, path=on.path) for one in found for vm, on in held]

    async def _judge_tree(
        self, identity: Identity, held: Sequence[tuple[VM, Hold]], repair: Repair
    ) -> list[Finding]:
        """As of a file, for all entries of a tree together: told as one, put back as one."""
        trees, hold = self._operations.trees, held[0][1]
        finding, odd = await trees.check(hold)
        if finding is None or not odd:
            return [] if finding is None else [finding]
        why = {one: drift.why_not(one, self._doors.rules, character=False) for one in odd}
        mendable = frozenset(one for one in odd if not why[one])
        kept = "; ".join(sorted({text for text in why.values() if text}))
        finding = replace(finding, repair=f"nothing: {kept}" if kept else drift.PUT_BACK)
        every = await self._all_wanted(held, repair)
        lost = not every and repair is Repair.START and hold.original_known
        if not mendable or not (every or lost):
            return [finding]
        if repair is not Repair.ASKED and self._too_often(identity):
            return [replace(finding, repair=_TOO_OFTEN)]
        failed = await trees.set_again(hold, mendable, lost=lost)
        if failed:
            return [replace(finding, repair=f"failed: {failed}")]
        if lost:
            left, _ = await trees.check(hold)
            if left is not None:
                return [replace(left, repair=finding.repair)]
            return [replace(finding, repaired=True)]
        return [replace(finding, repaired=not kept)]

    async def _wanted(self, held: Sequence[tuple[VM, Hold]], seen: Look, repair: Repair) -> bool:
        hold = held[0][1]
        if repair is Repair.START and hold.original_known and seen.label == hold.original:
            return True
        return await self._all_wanted(held, repair)

    async def _all_wanted(self, held: Sequence[tuple[VM, Hold]], repair: Repair) -> bool:
        """Say whether also labels are to be replaced that somebody else has set."""
        if repair in (Repair.NONE, Repair.ASKED):
            return repair is Repair.ASKED
        if not self._doors.config.drift_repair:
            return False
        return any([await self._runs(vm) for vm, _ in held])

    async def _runs(self, vm: VM) -> bool:
        """Say whether processes run under a VM's label, whoever started them."""
        if vm.state is State.RUNNING:
            return True
        doors = self._doors
        return bool(await doors.in_file_thread(processes.under, doors.kernel, vm.process_context))

    async def _put_back(
        self,
        identity: Identity,
        held: Sequence[tuple[VM, Hold]],
        seen: Look,
        finding: Finding,
        repair: Repair,
    ) -> Finding:
        if repair is not Repair.ASKED and self._too_often(identity):
            return replace(finding, repair=_TOO_OFTEN)
        doors = self._doors
        if any(vm.labeller is Labeller.LIBVIRT and not on.original_known for vm, on in held):
            # libvirt gives back what it unplugs, and svirtd hears of that later.
            await self._learn(identity, seen.label)
        hold = held[0][1]
        # Only from what was seen: what somebody set since is another matter, and another look.
        step = Step(identity, hold.path, old=seen.label, new=hold.label)
        (outcome,) = await doors.in_file_thread(
            lambda: apply.take_found(doors.kernel, [step], durable=True)
        )
        if outcome.fate is apply.Fate.DONE:
            return replace(finding, repaired=True)
        return replace(finding, repair=f"failed: {outcome.reason}")

    async def _learn(self, identity: Identity, label: str | None) -> None:
        """Enter what is found instead of a VM's label as what was there before the VM had it."""
        changes = await self._doors.store.write(
            lambda db: _learnt(db, identity, label), durable=False
        )
        for before, after in changes:
            self._events.changed(before, after, Cause("drift", 0))

    def _too_often(self, identity: Identity) -> bool:
        now = time.monotonic()
        since = now - _REPAIRS_WITHIN_S
        self._repairs = {who: when for who, when in self._repairs.items() if when[-1] > since}
        times = self._repairs.setdefault(identity, deque(maxlen=_REPAIRS_MAX))
        if len(times) == _REPAIRS_MAX and times[0] > since:
            return True
        times.append(now)
        return False

    def _tell(self, identity: Identity, findings: list[Finding]) -> None:
        told = self._told.pop(identity, [])
        self._events.drift([one for one in findings if one.repaired or one not in told])
        open_findings = [one for one in findings if not one.repaired]
        if open_findings:
            self._told[identity] = open_findings


def _learnt(db: Database, identity: Identity, label: str | None) -> list[tuple[Entry, Entry]]:
    vms = [vm for vm, _ in registry.holders_of(db, identity)]
    before = [Entry(vm, tuple(registry.holds_of(db, vm))) for vm in vms]
    registry.learn_original(db, identity, label)
    return [(was, Entry(was.vm, tuple(registry.holds_of(db, was.vm)))) for was in before]


def _in_use(db: Database, identity: Identity) -> list[tuple[VM, Hold]]:
    """Return who holds an object whose labels should stand: no operation on that VM is open, and
    libvirt, where it labels, has come to it."""
    return [
        (vm, hold)
        for vm, hold in registry.holders_of(db, identity)
        if drift.stands(vm) and not ledger.is_open(db, vm)
    ]
