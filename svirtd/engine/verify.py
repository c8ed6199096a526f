# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book against the disk against the running processes: what differs, and what is done about it.

Every part looks at what is now, under the lock of what it looks at; no part trusts another's word.
"""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from svirtd.book import groups, pool, registry
from svirtd.core import foreign
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.model import VM, Caller, Labeller, Process, State
from svirtd.engine import followed
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.engine.drift import Drift, Repair
from svirtd.engine.events import Events
from svirtd.engine.foreign import Foreign
from svirtd.engine.jobs import Job, Jobs
from svirtd.engine.quarantine import Quarantine
from svirtd.engine.recovery import Recovery
from svirtd.engine.scan import Scan
from svirtd.engine.units import Units
from svirtd.errors import SvirtError

# Private sets in one process's categories that are looked up; it holds more than a VM could.
_SETS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asked Verify for. `folders` are scanned for files of no VM."""

    repair: bool
    folders: tuple[str, ...]


class Verify:
    """The whole comparison, for callers and by itself."""

    def __init__(
        self,
        doors: Doors,
        events: Events,
        jobs: Jobs,
        recovery: Recovery,
        quarantine: Quarantine,
        drift: Drift,
        foreign_: Foreign,
        units: Units,
    ) -> None:
        self._doors = doors
        self._events = events
        self._jobs = jobs
        self._recovery = recovery
        self._drift = drift
        self._foreign = foreign_
        self._units = units
        self._quarantine = quarantine
        self._scan = Scan(doors, foreign_, quarantine)
        self._one = asyncio.Lock()
        self._told: set[Finding] = set()

    async def run(self, caller: Caller, wanted: Wanted) -> list[Finding]:
        """Compare everything for a caller, as a job. Raises SvirtError, Cancelled among them."""
        action = Action.REPAIR if wanted.repair else Action.VERIFY
        await self._doors.authority.authorize(caller, action)
        await self._scan.check(wanted.folders)
        self._jobs.refuse_too_many(caller.uid)
        with self._jobs.running("verify", caller.uid) as job:
            # One at a time: two repairs would only be in each other's way.
            async with self._one:
                repair = Repair.ASKED if wanted.repair else Repair.NONE
                findings = await self._compare(repair, job)
                findings += await self._folders(wanted, job)
        return findings

    async def alone(self, repair: Repair) -> None:
        """Compare everything without being asked, and tell what was not told before."""
        async with self._one:
            await self._compare(repair, None)

    async def _compare(self, repair: Repair, job: Job | None) -> list[Finding]:
        if repair is Repair.ASKED:
            await self._recovery.settle_again()
        findings = await self._quarantine.recheck(restore=repair is not Repair.NONE)
        vms = await self._doors.store.read(registry.active_vms)
        for number, vm in enumerate(vms):
            findings += await self._vm(vm, repair)
            if job is not None:
                job.refuse_cancelled()
                job.advance((number + 1) / (len(vms) + 1) / 2)
                self._jobs.tell(job)
        findings += await self._processes()
        self._tell([one for one in findings if one.kind in _TOLD_HERE])
        return findings

    # -- the book ---------------------------------------------------------------------------

    async def _vm(self, vm: VM, repair: Repair) -> list[Finding]:
        """One VM: is its operation finished, does its unit run, do its labels stand?"""
        if vm.state is State.FAILED:
            now = await self._doors.store.read(lambda db: registry.current(db, vm))
            if now is None or now.state is not State.FAILED:
                return []
            return [
                Finding(
                    kind=FindingKind.UNFINISHED,
                    vm_name=now.name,
                    path="",
                    expected="",
                    found="",
                    reason=now.reason,
                    repair="failed: see the reason"
                    if repair is Repair.ASKED
                    else "tries again, as a release does",
                )
            ]
        findings = await self._unit(vm, repair)
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, vm))
        for hold in holds:
            found = await self._drift.check(hold.identity, repair, whole=True)
            findings += [one for one in found if one.vm_name == vm.name]
        return findings

    async def _unit(self, vm: VM, repair: Repair) -> list[Finding]:
        """A unit that has ended is noticed when it ends; this is for what was not noticed."""
        if vm.state is not State.RUNNING:
            return []
        if vm.labeller is Labeller.LIBVIRT:
            there = await followed.alive(self._doors, vm)
        else:
            there = not vm.unit or await self._units.running(vm) is not None
        if there:
            return []
        finding = Finding(
            kind=FindingKind.ENDED,
            vm_name=vm.name,
            path=vm.unit or f"/proc/{vm.main_pid}",
            expected=vm.process_context,
            found="",
            reason="the book says that it runs, and it does not run under the VM's label",
            repair="releases the VM",
        )
        if repair is not Repair.ASKED:
            return [finding]
        return [replace(finding, repaired=await self._recovery.release_ended(vm))]

    # -- the processes ----------------------------------------------------------------------

    async def _processes(self) -> list[Finding]:
        """Processes under sets that svirtd did not give, or gave to somebody else."""
        if not self._doors.kernel.enabled():
            return []
        findings = []
        # A container has many processes: one stands for what a foreign set keeps back.
        told: set[str] = set()
        for process in await self._foreign.processes():
            categories = foreign.categories_of(process)
            if process.context in told or not categories:
                continue
            if not frozenset(self._doors.shape.private) <= categories:
                found = await self._process(process, categories)
                if found is not None:
                    findings.append(found)
                    if found.kind is FindingKind.FOREIGN:
                        told.add(process.context)
        return findings

    async def _process(self, process: Process, categories: frozenset[int]) -> Finding | None:
        doors = self._doors
        try:
            ranks = doors.shape.ranks_within(categories, _SETS_MAX)
        except ValueError:
            ranks = ()
        owners = await doors.store.read(lambda db: registry.vms_by_ranks(db, ranks))
        for vm in owners:
            why = await self._why_not_its(vm, process)
            if why:
                return _process_finding(FindingKind.CONFLICT, process, why, vm)
        # A process that outlived its VM is told with the quarantine.
        ours = await doors.store.read(lambda db: pool.quarantined_ranks(db, ranks))
        if owners or ours:
            return None
        # What a group shares carries its category and nothing else: who has it, has that.
        found = await doors.store.read(groups.everything)
        names = [repr(one.name) for one in found if one.category in categories]
        if names:
            why = f"it has the category of group {', '.join(names)}, and is no member's"
            return _process_finding(FindingKind.CONFLICT, process, why, None)
        return _process_finding(
            FindingKind.FOREIGN, process, "svirtd did not give this label", None
        )

    async def _why_not_its(self, vm: VM, process: Process) -> str:
        """Say why a process with a VM's categories is not the VM's; empty if it may be."""
        if process.context != vm.process_context:
            return f"it has the categories of VM {vm.name!r}, and another label"
        if not vm.unit or process.pid == vm.main_pid:
            return ""
        try:
            unit = await self._doors.systemd.unit_of_pid(process.pid)
        except SvirtError as error:
            return f"it is not known whose it is: {error}"
        if unit in ("", vm.unit):  # it has ended meanwhile, or is the VM's
            return ""
        return f"it runs under the label of VM {vm.name!r}, and belongs to {unit}"

    # -- folders ----------------------------------------------------------------------------

    async def _folders(self, wanted: Wanted, job: Job) -> list[Finding]:
        """Each folder is an equal part of the second half of the job."""
        findings = []
        share = 0.5 / max(1, len(wanted.folders))
        for number, folder in enumerate(wanted.folders):
            findings += await self._scan.folder(
                folder,
                job,
                functools.partial(_part, job, 0.5 + number * share, share),
                lambda: self._jobs.tell(job),
                repair=wanted.repair,
            )
        return findings

    def _tell(self, findings: Sequence[Finding]) -> None:
        self._events.drift([one for one in findings if one not in self._told])
        self._told = set(findings)


# What is found here and not by Drift, which tells of its own.
_TOLD_HERE: Final = frozenset(
    {FindingKind.UNFINISHED, FindingKind.ENDED, FindingKind.CONFLICT, FindingKind.STALE}
)


def _part(job: Job, start: float, share: float, done: float) -> None:
    job.advance(start + done * share)


def _process_finding(kind: FindingKind, process: Process, reason: str, vm: VM | None) -> Finding:
    return Finding(
        kind=kind,
        vm_name=vm.name if vm else "",
        path=f"/proc/{process.pid}",
        expected=vm.process_context if vm else "",
        found=process.context,
        reason=reason,
        repair="nothing: end it where it was started"
        if kind is FindingKind.CONFLICT
        else "nothing: it is somebody else's; its categories are not handed out while it runs",
    )
