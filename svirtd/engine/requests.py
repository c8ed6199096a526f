# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pipeline: one function per request, each reading like the list in the design.

Who is it, may they · what will change · write it down · do it, or undo it · say it happened.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from svirtd.book import registry
from svirtd.core.goals import Goal
from svirtd.core.model import VM, Caller, Command, Lifetime, Operation, Request, State
from svirtd.core.names import check_socket_name, unit_name
from svirtd.core.plan import Plan
from svirtd.engine import entries, followed, goals, levels
from svirtd.engine.again import until_done
from svirtd.engine.authorize import About, Action, refuse_labeller, refuse_settings
from svirtd.engine.departures import Departures
from svirtd.engine.doors import Doors
from svirtd.engine.entries import Begun, Enrolling, Launching
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.foreign import Foreign
from svirtd.engine.meant import Meant
from svirtd.engine.openings import Held, Openings
from svirtd.engine.operations import Operations
from svirtd.engine.outfit import Outfit, outfitted
from svirtd.engine.trees import Asked
from svirtd.engine.units import Units
from svirtd.errors import Failed, LimitsExceeded, UnitStuck
from svirtd.failpoints import Point, reach
from svirtd.host import credentials, opening, runtime
from svirtd.host.bus import BusError, BusLost
from svirtd.host.journal import MessageId
from svirtd.host.opening import Opened

T = TypeVar("T")


class Requests:
    """What callers may ask for. Every method raises SvirtError for what it refuses."""

    def __init__(
        self,
        doors: Doors,
        events: Events,
        units: Units,
        departures: Departures,
        operations_: Operations,
        foreign: Foreign,
    ) -> None:
        self._doors = doors
        self._foreign = foreign
        self._events = events
        self._units = units
        self._departures = departures
        self._operations = operations_
        self._openings = Openings(doors)
        self._meant = Meant(doors, operations_.names)
        units.on_end = self._ended
        departures.on_gone = self._caller_gone
        departures.spawn = doors.spawn

    async def acquire(
        self, caller: Caller, request: Request, enrolled: Enrolling | None = None
    ) -> VM:
        """Label the resources for a VM that somebody else starts: `enrolled`, as that unit."""
        await self._may(caller, Action.LABEL, request)
        goal, request = self._goal(request)
        goals.refuse_to_acquire(goal, request)
        if enrolled is None:  # else it was asked for, and allowed, when the unit was enrolled
            await self._may_choose_level(caller, request)
        async with (
            self._openings.lifted(caller, request) as held,
            self._operations.names.hold(request.name),
        ):
            self._doors.enforcement.refuse_unprotected()
            self._doors.goals.refuse_unkept(goal)
            await self._watch_caller(caller, request)
            async with self._opened(caller, request, held) as opened:
                begun = await self._begin(caller, request, goal, opened, enrolled)
                asked = Asked(caller, request.overrides)
                entry = await self._label_all(begun, opened, goal, asked, enrolled)
            await self._end_if_gone(entry.vm)
            self._publish(begun.before, entry, Cause("acquire", caller.uid))
        return entry.vm

    async def launch(self, caller: Caller, request: Request, command: Command) -> VM:
        """Label the resources, then have systemd start the command under the label."""
        await self._may(caller, Action.LAUNCH, request)
        await self._may_choose_level(caller, request)
        refuse_settings(caller, command)
        account = await self._doors.in_file_thread(runtime.account, command.user, caller.uid)
        if account.uid != caller.uid:
            await self._may(caller, Action.RUN_AS_USER, request, account.name, command.argv)
        runs_as = credentials.Account(account.uid, account.gid, account.groups)
        goal, request = self._goal(request)
        domain = goal.contexts(self._doors.contexts).process
        await self._openings.check_command(runs_as, command.argv[0], domain)
        launching = Launching(unit_name(request.name), f"{self._doors.config.runtime_directory}/vm")
        async with (
            self._openings.lifted(caller, request) as held,
            self._operations.names.hold(request.name),
        ):
            self._doors.enforcement.refuse_unprotected()
            self._doors.goals.refuse_unkept(goal)
            await self._watch_caller(caller, request)
            async with self._opened(caller, request, held) as opened:
                begun = await self._begin(caller, request, goal, opened, launching)
                asked = Asked(caller, request.overrides)
                entry = await self._label_and_start(begun, opened, goal, command, account, asked)
            await self._end_if_gone(entry.vm)
            self._publish(begun.before, entry, Cause("launch", caller.uid))
        return entry.vm

    async def release(self, caller: Caller, name: str, id_: str) -> None:
        """Stop the VM's unit and give every resource its earlier label back."""
        async with self._meant.owned(caller, Action.RELEASE, name, id_) as vm:
            await followed.refuse_running(self._doors, vm)
            await self._operations.release(vm, Cause("release", caller.uid))

    async def forget(self, caller: Caller, name: str, id_: str) -> None:
        """Free the reservation of a VM that holds nothing."""
        async with self._meant.owned(caller, Action.FORGET, name, id_) as vm:
            await self._doors.store.write(lambda db: entries.remove_reserved(db, vm))
            self._events.removed(Entry(vm, ()), Cause("forget", caller.uid))

    async def plan(self, caller: Caller, request: Request) -> tuple[Goal, VM, Plan]:
        """Say what acquire would do with this request, resource by resource; change nothing."""
        await self._may(caller, Action.PLAN, request)
        goal, request = self._goal(request)
        await self._may_choose_level(caller, request)
        self._refuse_many(len(request.resources))
        async with self._openings.lifted(caller, request) as held:
            opened = await self._openings.open(caller, request, held)
        try:
            self._refuse_many(len(opened))
            seen = [one.seen for one in opened]
            others = await self._foreign.sets()
            vm, plan = await self._doors.store.read(
                lambda db: entries.dry_run(db, self._doors, caller, request, seen, others, goal)
            )
            asked = Asked(caller, request.overrides)
            return goal, vm, await self._operations.trees.looked(plan, opened, asked)
        finally:
            opening.close_all(opened)

    async def open_channel(self, caller: Caller, name: str, socket: str, id_: str) -> int:
        """Connect to a socket of a VM at the VM's level; the caller gets the descriptor."""
        check_socket_name(socket)
        vm = await self._meant.vm(caller, name, id_)
        await self._doors.authority.authorize(caller, Action.CONNECT, vm=vm)
        if vm.state is not State.RUNNING or not vm.runtime_dir:
            raise Failed(
                f"VM {name!r} is {vm.state.value}; only one that runs in a unit has channels"
            )
        level = levels.of_sockets(self._doors.kernel, vm)
        return await self._openings.connect(vm, socket, level)

    # -- the pipeline's own parts -----------------------------------------------------------

    def _goal(self, request: Request) -> tuple[Goal, Request]:
        goal = self._doors.goals.named(request.goal)
        return goal, goals.as_used(goal, self._doors.contexts, request)

    async def _may(
        self,
        caller: Caller,
        action: Action,
        request: Request,
        user: str = "",
        command: Sequence[str] = (),
    ) -> None:
        refuse_labeller(caller, request)
        about = About(request.name, [one.named for one in request.resources], user, command)
        await self._doors.authority.authorize(caller, action, about=about)

    async def _may_choose_level(self, caller: Caller, request: Request) -> None:
        chosen = levels.chosen(self._doors, request)
        if chosen:
            files = [one.named for one in request.resources]
            about = About(request.name, files, level=chosen)
            await self._doors.authority.authorize(caller, Action.SET_LEVEL, about=about)

    def _refuse_many(self, resources: int) -> None:
        """With what lies under images, which is known once they are open."""
        limit = self._doors.config.limits.resources
        if resources > limit:
            raise LimitsExceeded(
                f"{resources} resources; [limits] resources allows {limit} at once"
            )

    @contextlib.asynccontextmanager
    async def _opened(
        self, caller: Caller, request: Request, held: Held
    ) -> AsyncIterator[list[Opened]]:
        """Open what a request names, and keep others from those objects until it is done."""
        self._refuse_many(len(request.resources))
        if not request.resources:
            yield []
            return
        opened = await self._openings.open(caller, request, held)
        try:
            self._refuse_many(len(opened))
            self._operations.trees.refuse_too_many(caller, opened)
            async with self._operations.objects.hold_all(o.seen.identity for o in opened):
                yield opened
        finally:
            opening.close_all(opened)

    async def _begin(
        self,
        caller: Caller,
        request: Request,
        goal: Goal,
        opened: Sequence[Opened],
        launching: Launching | Enrolling | None,
    ) -> Begun:
        seen = [one.seen for one in opened]
        stored = replace(caller, unique_name=self._departures.stored(caller.unique_name))
        others = await self._foreign.sets()
        reach(Point.BEGIN_BEFORE)
        begun = await self._doors.store.write(
            lambda db: entries.begin_acquire(
                db, self._doors, stored, request, seen, launching, others, goal
            )
        )
        reach(Point.BEGIN_AFTER)
        return begun

    async def _label_all(
        self,
        begun: Begun,
        opened: Sequence[Opened],
        goal: Goal,
        asked: Asked,
        enrolled: Enrolling | None,
    ) -> Entry:
        if begun.operation is None:
            return begun.entry
        await self._operations.label(begun.operation, opened, asked)
        try:
            entry = await self._operations.take_digests(goal, begun.entry, opened)
            if enrolled is not None:
                await self._units.make_folder(entry.vm, enrolled.account, {})
            await self._operations.close_acquire(begun.operation)
        except Exception:
            await self._operations.take_back(begun.operation)
            raise
        return entry

    async def _label_and_start(
        self,
        begun: Begun,
        opened: Sequence[Opened],
        goal: Goal,
        command: Command,
        account: runtime.Account,
        asked: Asked,
    ) -> Entry:
        if begun.operation is None:
            raise Failed("a launch has no entry in the ledger; nothing was started")
        await self._operations.label(begun.operation, opened, asked)
        try:
            entry = await self._operations.take_digests(goal, begun.entry, opened)
            async with outfitted(self._doors, goal, entry.vm, opened) as outfit:
                return await self._start(begun.operation, entry, command, account, outfit)
        except BusLost:
            raise  # what became of the unit is not known: the next start looks and settles it
        except UnitStuck as error:
            await self._operations.leave_failed(begun.operation, begun.entry, str(error))
            self._keep_trying(f"the end of {begun.entry.vm.unit}", self._end_stuck, begun.entry.vm)
            raise
        except Exception:
            # No process is left. The unit itself is not touched, it may be somebody else's.
            await self._operations.take_back(begun.operation)
            raise

    async def _start(
        self,
        operation: Operation,
        entry: Entry,
        command: Command,
        account: runtime.Account,
        outfit: Outfit,
    ) -> Entry:
        main_pid = await self._units.start(entry.vm, command, account, outfit)
        try:
            return await self._operations.finish_launch(operation, entry, main_pid)
        except BusLost:
            raise
        except Exception:
            # A process may not run under a label that the book is about to give away.
            await self._units.end(entry.vm)
            raise

    async def _watch_caller(self, caller: Caller, request: Request) -> None:
        """Watch a caller before its VM is made: one that cannot be watched gets none."""
        if request.lifetime is not Lifetime.CALLER:
            return
        try:
            here = await self._departures.watch(self._departures.stored(caller.unique_name))
        except (BusError, TimeoutError) as error:
            raise Failed(
                f"the bus does not let svirtd watch {caller.unique_name} ({error}); use lifetime "
                "'release'"
            ) from error
        if not here:
            raise Failed("the caller has left the bus")

    async def _end_if_gone(self, vm: VM) -> None:
        if vm.lifetime is Lifetime.CALLER and not self._departures.watched(vm.caller):
            # It left while we worked: the same end as leaving a moment later.
            await self._caller_gone(vm.caller)

    def _keep_trying(self, what: str, work: Callable[[T], Awaitable[None]], argument: T) -> None:
        self._doors.spawn(until_done(self._doors.journal, what, lambda: work(argument)))

    def _publish(self, before: Entry | None, after: Entry, cause: Cause) -> None:
        if before is None:
            self._events.added(after, cause)
        else:
            self._events.changed(before, after, cause)

    async def _ended(self, vm: VM, how: str) -> None:
        """A unit has ended: give the labels back, unless somebody else did or it is a new VM."""
        async with self._operations.names.hold(vm.name):
            now = await self._doors.store.read(lambda db: registry.current(db, vm))
            if now is None or now.unit != vm.unit:
                return
            if await self._units.running(now) is None:
                self._doors.journal.record(
                    MessageId.VM_CHANGED,
                    f"VM {now.name}: {now.unit} has ended ({how})",
                    SVIRT_VM=now.name,
                    SVIRT_VM_ID=now.id,
                    SVIRT_UNIT=now.unit,
                    SVIRT_OPERATION="end",
                )
                reach(Point.END_NOTICED)
                await self._operations.release(now, Cause("end", 0))

    async def _end_stuck(self, vm: VM) -> None:
        """A start that systemd did not answer: end what came of it, once it does."""
        async with self._operations.names.hold(vm.name):
            now = await self._doors.store.read(lambda db: registry.current(db, vm))
            if now is not None and now.state is State.FAILED:
                await self._operations.release(now, Cause("launch", 0))

    async def _caller_gone(self, stored: str) -> None:
        self._keep_trying("the end of a caller's VMs", self._end_with_caller, stored)

    async def _end_with_caller(self, stored: str) -> None:
        # Each on its own: one that cannot be released must not keep the others.
        for vm in await self._doors.store.read(registry.caller_vms):
            if vm.caller == stored:
                self._keep_trying(f"the end of VM {vm.name}", self._end_left, vm)

    async def _end_left(self, vm: VM) -> None:
        async with self._operations.names.hold(vm.name):
            now = await self._doors.store.read(lambda db: registry.current(db, vm))
            if now is not None and now.caller == vm.caller:
                await self._operations.release(now, Cause("caller-gone", 0))
