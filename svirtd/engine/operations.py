# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests and recovery share: label, give back, finish. Callers hold the VM's lock.

An operation that cannot be finished stays open in the ledger with its VM `failed`; a release or
the next start tries again.
"""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import replace

from svirtd.book import ledger, registry
from svirtd.book.pool import Suspect
from svirtd.core.devices import is_parked
from svirtd.core.goals import Goal
from svirtd.core.mcs import parse_context
from svirtd.core.model import VM, Identity, Operation, State, Step
from svirtd.core.pool import key_of
from svirtd.engine import apply, entries, unknown
from svirtd.engine.again import until_done
from svirtd.engine.apply import Fate, Outcome, Undone
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.jobs import Job, Jobs
from svirtd.engine.locks import Locks
from svirtd.engine.renumber import find_devices
from svirtd.engine.trees import Asked, Trees
from svirtd.engine.units import Units
from svirtd.errors import Drift, LimitsExceeded
from svirtd.failpoints import Point, reach
from svirtd.host import processes, runtime
from svirtd.host.crew import Stuck
from svirtd.host.journal import MessageId, Priority
from svirtd.host.opening import Opened


class Operations:
    """The parts that a request is made of."""

    def __init__(self, doors: Doors, events: Events, units: Units, jobs: Jobs) -> None:
        self._doors = doors
        self.trees = Trees(doors, jobs)
        self._events = events
        self._units = units
        self.names = Locks()
        self.objects = Locks()
        # By VM: acquisitions that are done and could not be closed in the book yet.
        self._unclosed: dict[str, Operation] = {}

    async def label(self, operation: Operation, opened: Sequence[Opened], asked: Asked) -> None:
        """Set every label of an operation; on failure take everything back and raise the reason."""
        doors = self._doors
        plain = [step for step in operation.steps if not step.recursive]
        try:
            await doors.in_file_thread(apply.label, doors.kernel, plain, opened)
        except Undone as undone:
            await self._abandon(operation, undone.outcomes)
            raise undone.error from undone
        if len(plain) < len(operation.steps):
            await self._label_trees(operation, opened, asked)

    async def _label_trees(
        self, operation: Operation, opened: Sequence[Opened], asked: Asked
    ) -> None:
        found = {one.seen.identity: one for one in opened}
        with self.trees.job(asked.caller.uid) as job:
            try:
                for step in operation.steps:
                    if step.recursive:
                        await self.trees.label(step, found[step.identity], asked, job)
            except Stuck as error:
                # Nothing may be given back beside a worker that may still label.
                holds = await self._doors.store.read(lambda db: registry.holds_of(db, operation.vm))
                await self.leave_failed(operation, Entry(operation.vm, tuple(holds)), str(error))
                raise
            except Exception:
                await self.take_back(operation)
                raise

    async def take_digests(self, goal: Goal, entry: Entry, opened: Sequence[Opened]) -> Entry:
        """Return an entry with the digests that its goal wants, which are in the book by then."""
        after = await self._doors.digests.take(goal, entry, opened)
        if after != entry:
            await self._doors.store.write(
                lambda db: registry.set_digests(db, after.vm, after.holds)
            )
        return after

    async def take_back(self, operation: Operation) -> None:
        """Undo an acquisition or launch whose labels may stand, in whole or in part."""
        own = await self._doors.store.read(lambda db: entries.own_steps(db, operation))
        outcomes = await self.take([step.undone() for step in reversed(own)], undone=True)
        await self._remove_folder(operation.vm)
        await self._abandon(operation, outcomes)

    async def close_acquire(self, operation: Operation) -> None:
        """Close an acquisition whose labels all stand; before the reply where it has a tree, which
        recovery takes back if it finds it open: whether all of it stands is not looked at."""
        if any(step.recursive for step in operation.steps):
            reach(Point.CLOSE_BEFORE)
            await self._doors.store.write(lambda db: ledger.close_operation(db, operation))
            reach(Point.CLOSE_AFTER)
        else:
            self.finish_acquire(operation)

    def finish_acquire(self, operation: Operation) -> None:
        """Close an acquisition whose labels all stand.

        Nobody waits for that: recovery closes an operation that it finds in this state, too.
        """
        reach(Point.CLOSE_BEFORE)
        closing = self._doors.store.write_behind(
            functools.partial(ledger.close_operation, operation=operation)
        )
        closing.add_done_callback(functools.partial(self._close_again, operation))

    async def finish_launch(self, operation: Operation, entry: Entry, main_pid: int) -> Entry:
        """Close a launch whose labels all stand and whose unit runs."""
        vm = replace(entry.vm, state=State.RUNNING, reason="", main_pid=main_pid)
        running = Entry(vm, entry.holds)
        reach(Point.CLOSE_BEFORE)
        await self._doors.store.write(
            lambda db: entries.finish_launch(db, operation, running), durable=False
        )
        reach(Point.CLOSE_AFTER)
        return running

    def _close_again(self, operation: Operation, closing: asyncio.Future[None]) -> None:
        """An acquisition that stays open would be undone at a start that finds a label changed."""
        if closing.cancelled() or closing.exception() is None:
            return
        vm = operation.vm
        self._unclosed[vm.id] = operation

        async def close() -> None:
            async with self.names.hold(vm.name):
                # A release has taken it over otherwise.
                if self._unclosed.get(vm.id) is operation:
                    await self._doors.store.write(
                        lambda db: ledger.close_operation(db, operation), durable=False
                    )
                    del self._unclosed[vm.id]

        self._doors.spawn(
            until_done(self._doors.journal, f"closing the acquisition of VM {vm.name}", close)
        )

    async def close_left(self, vm: VM) -> None:
        """Close an acquisition that is done and could not be closed before."""
        left = self._unclosed.pop(vm.id, None)
        if left is not None:
            await self._doors.store.write(lambda db: ledger.close_operation(db, left))

    async def release(self, vm: VM, cause: Cause) -> None:
        """Give a VM's labels back and tell of it. Raises Drift if that could not be finished."""
        doors = self._doors
        if vm.unit:
            await self._units.stop(vm)
        holds = await doors.store.read(lambda db: registry.holds_of(db, vm))
        if any(is_parked(hold.identity.dev) for hold in holds):
            # A file system that was not mounted yet when svirtd started may be there by now.
            await find_devices(doors, rebooted=False)
            holds = await doors.store.read(lambda db: registry.holds_of(db, vm))
        guesses = await unknown.guesses(doors, holds)
        # Who is the last holder of a public object is decided and acted on under its lock.
        async with self.objects.hold_all(hold.identity for hold in holds):
            reach(Point.BEGIN_BEFORE)
            begun = await doors.store.write(
                lambda db: entries.begin_release(db, vm, cause.caller_uid, guesses)
            )
            reach(Point.BEGIN_AFTER)
            self._unclosed.pop(vm.id, None)
            if begun is None:
                await self._drop_reservation(vm, cause)
                return
            before, entry, operation = begun
            self._events.changed(before, entry, cause)
            await self.finish_release(operation, entry, cause)

    async def finish_release(self, operation: Operation, entry: Entry, cause: Cause) -> None:
        """Take the steps of an open release and close it. Raises Drift if one cannot be taken."""
        doors, vm = self._doors, operation.vm
        # While the label still keeps others out: afterwards it would prove nothing.
        altered = await doors.digests.compare(vm, entry.holds)
        with self.trees.job_of(operation.steps, cause.caller_uid) as job:
            outcomes = apply.last_word(await self.take(operation.steps, job=job))
        await self._remove_folder(vm)
        await self._refuse_failed(operation, entry, outcomes)
        sets = self.sets(vm)
        ending = await doors.store.read(lambda db: entries.ending(db, vm, entry.holds))
        suspects = (
            apply.suspects(vm, sets, outcomes, entry.holds)
            + unknown.suspects(vm, sets, ending, operation.steps)
            + await self._living(vm)
        )
        reach(Point.CLOSE_BEFORE)
        # What was restored is on the disk; the closing entry may follow with the next commit, since
        # recovery would only find everything restored.
        kept = await doors.store.write(
            lambda db: entries.finish_release(db, operation, suspects), durable=False
        )
        reach(Point.CLOSE_AFTER)
        if vm.unit:
            self._units.forget(vm)
        self._events.drift(altered)
        self._events.drift(apply.findings(vm, outcomes))
        self._events.drift(unknown.findings(vm, ending, operation.steps))
        if kept is None:
            self._events.removed(entry, cause)
        else:
            self._events.changed(entry, Entry(kept, ()), cause)

    async def _drop_reservation(self, vm: VM, cause: Cause) -> None:
        """Release of a VM that holds nothing: a persistent one keeps its reservation."""
        if not vm.persistent:
            await self._doors.store.write(lambda db: entries.remove_reserved(db, vm))
            self._events.removed(Entry(vm, ()), cause)

    async def _abandon(self, operation: Operation, outcomes: Sequence[Outcome]) -> None:
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, operation.vm))
        await self._refuse_failed(operation, Entry(operation.vm, tuple(holds)), outcomes)
        suspects = apply.suspects(operation.vm, self.sets(operation.vm), outcomes)
        suspects += await self._living(operation.vm)
        reach(Point.CLOSE_BEFORE)
        # Durable: after a power cut an acquisition that is open may have been promised, and is
        # finished; the caller of this one is about to hear that it failed.
        await self._doors.store.write(lambda db: entries.abandon_acquire(db, operation, suspects))
        reach(Point.CLOSE_AFTER)
        self._events.drift(apply.findings(operation.vm, outcomes))

    async def _refuse_failed(
        self, operation: Operation, entry: Entry, outcomes: Sequence[Outcome]
    ) -> None:
        stuck = [one for one in outcomes if one.fate is Fate.FAILED]
        if not stuck:
            return
        vm = operation.vm
        reason = f"{stuck[0].step.path}: {stuck[0].reason}"
        self._events.drift(apply.findings(vm, outcomes))
        await self.leave_failed(operation, entry, reason)
        raise Drift(
            f"VM {vm.name!r}: a label could not be given back ({reason}); mend that, then release "
            "the VM"
        )

    async def leave_failed(self, operation: Operation, entry: Entry, reason: str) -> None:
        """Leave an operation open that can be neither finished nor undone, its VM failed."""
        reach(Point.FAILED_BEFORE)
        failed = await self._doors.store.write(
            lambda db: entries.set_failed(db, operation.vm, reason)
        )
        reach(Point.FAILED_AFTER)
        after, cause = Entry(failed, entry.holds), Cause(operation.kind.value, operation.caller_uid)
        if operation.created:  # nobody has heard of it yet
            self._events.added(after, cause)
        else:
            self._events.changed(entry, after, cause)

    async def take(
        self, steps: Sequence[Step], *, undone: bool = False, job: Job | None = None
    ) -> tuple[Outcome, ...]:
        """Take steps, finding each object by path and identity; what they change is on the disk.

        `undone`: they take back what was not done to its end.
        """
        plain = [step for step in steps if not step.recursive]

        def work() -> tuple[Outcome, ...]:
            return apply.take_found(self._doors.kernel, plain, durable=True)

        outcomes = await self._doors.in_file_thread(work) if plain else ()
        trees = [step for step in steps if step.recursive]
        return outcomes + tuple(
            [await self.trees.back(step, undone=undone, job=job) for step in trees]
        )

    def sets(self, vm: VM) -> dict[int, frozenset[int]]:
        """Return the VM's own set and one for each of its groups, by the quarantine's keys."""
        pair = self._doors.shape.categories_of(vm.rank)
        groups = parse_context(vm.process_context).categories - pair
        return {vm.rank: pair} | {key_of(one): frozenset({one}) for one in groups}

    async def _living(self, vm: VM) -> list[Suspect]:
        """Processes that still run under the VM's label keep its sets out of the pool."""
        doors = self._doors
        if not doors.kernel.enabled():
            return []
        try:
            pids = await doors.in_file_thread(processes.under, doors.kernel, vm.process_context)
        except (OSError, LimitsExceeded) as error:
            reason = f"whether a process still runs under the VM's label is not known ({error})"
            return [_process(vm, key, 0, reason) for key in self.sets(vm)]
        return [
            _process(vm, key, pid, f"process {pid} still runs under the VM's label")
            for key in self.sets(vm)
            for pid in pids
        ]

    async def _remove_folder(self, vm: VM) -> None:
        if not vm.runtime_dir:
            return
        try:
            await self._doors.in_file_thread(runtime.remove_folder, vm.runtime_dir)
            reach(Point.FOLDER_REMOVED)
        except OSError as error:
            # Named by the VM's Id, so no later VM meets it; the next boot clears it.
            self._doors.journal.record(
                MessageId.WARNING,
                f"runtime folder {vm.runtime_dir} could not be removed: {error}",
                priority=Priority.WARNING,
                SVIRT_VM=vm.name,
            )


def _process(vm: VM, key: int, pid: int, reason: str) -> Suspect:
    identity, path = Identity(0, pid), f"/proc/{pid}"
    return Suspect(0, key, vm.name, identity, path, vm.process_context, reason)
