# SPDX-License-Identifier: LGPL-2.1-or-later
"""One run of the service: build, recover, own the name, say READY, keep watch, drain."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

from svirtd import __version__
from svirtd.api import contract
from svirtd.api.enrolled_objects import EnrolledObjects
from svirtd.api.group_objects import GroupObjects
from svirtd.api.hotplug_objects import HotplugObjects
from svirtd.api.objects import Objects
from svirtd.api.router import Router
from svirtd.book import pool
from svirtd.book.store import Store
from svirtd.config import Config
from svirtd.core.goals import Goals
from svirtd.core.model import Contexts
from svirtd.engine import keeper
from svirtd.engine.attachments import Attachments
from svirtd.engine.authorize import Authority
from svirtd.engine.backups import Backups
from svirtd.engine.departures import Departures
from svirtd.engine.dialogs import Dialogs
from svirtd.engine.digests import Digests
from svirtd.engine.doors import Doors, file_threads
from svirtd.engine.drift import Drift, Repair
from svirtd.engine.enforcement import Enforcement
from svirtd.engine.enrolled import Enrolled
from svirtd.engine.events import Events
from svirtd.engine.followed import Followed
from svirtd.engine.foreign import Foreign
from svirtd.engine.goals import SiteGoals
from svirtd.engine.groups import Groups
from svirtd.engine.holdings import Holdings
from svirtd.engine.jobs import Jobs
from svirtd.engine.leases import Leases
from svirtd.engine.log import Log
from svirtd.engine.object_manager import ObjectManager
from svirtd.engine.operations import Operations
from svirtd.engine.quarantine import Quarantine
from svirtd.engine.queries import Queries
from svirtd.engine.recovery import Recovery
from svirtd.engine.reentry import Reentry
from svirtd.engine.reload import enter_walls, reload
from svirtd.engine.requests import Requests
from svirtd.engine.tasks import Tasks
from svirtd.engine.units import Units
from svirtd.engine.verify import Verify
from svirtd.engine.watch import Watch
from svirtd.errors import StartError, SvirtError
from svirtd.host import notify, runtime
from svirtd.host.audit import AuditLog
from svirtd.host.bus import Connection
from svirtd.host.crew import Crew
from svirtd.host.journal import Journal, MessageId, Priority
from svirtd.host.kernel import Kernel
from svirtd.host.machined import Machined
from svirtd.host.opener import Opener
from svirtd.host.systemd import Systemd

# Far above what the limits on resources and commands let through, far below what would hurt.
_CALL_MAX_BYTES: Final = 4 * 1024 * 1024
_FILE_THREADS: Final = 4
_DRAIN_S: Final = 20.0
_STATUS_S: Final = 10.0
_QUARANTINE_S: Final = 60.0
# New objects before the young are looked through; a call makes a few hundred.
_COLLECT_AFTER: Final = (20_000, 10, 10)


class Service:
    """One run of the daemon on one bus connection."""

    def __init__(
        self, config: Config, config_path: str | None, goals: Goals, journal: Journal
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._goals = goals
        self._journal = journal
        self._stop = asyncio.Event()
        self._tasks = Tasks(journal)

    async def serve(
        self,
        kernel: Kernel,
        opener: Opener,
        crew: Crew,
        enforcement: Enforcement,
        contexts: Contexts,
        store: Store,
        shape: Any,
        permutation: Any,
    ) -> None:
        """Serve until a signal or the loss of the bus ends it."""
        bus = await Connection.open(call_max_bytes=_CALL_MAX_BYTES)
        threads, digests = file_threads(_FILE_THREADS), Digests(file_threads(1))
        audit = AuditLog(self._journal) if kernel.enabled() else None
        self._object_manager = ObjectManager(kernel, audit, self._journal)
        try:
            (bus_id,) = await bus.call_bus("GetId")
            machined = Machined(bus)
            self._doors = Doors(
                config=self._config,
                store=store,
                shape=shape,
                permutation=permutation,
                contexts=contexts,
                enforcement=enforcement,
                goals=SiteGoals(self._goals, enforcement, contexts),
                kernel=kernel,
                opener=opener,
                crew=crew,
                bus=bus,
                bus_id=bus_id,
                systemd=Systemd(bus, lambda: self._doors.config.answer_timeout_s),
                machined=machined if await machined.available() else None,
                journal=self._journal,
                authority=Authority(
                    self._object_manager,
                    Dialogs(bus, lambda: self._doors.config),
                    lambda uid: self._doors.in_file_thread(runtime.user_name, uid),
                ),
                file_threads=threads,
                digests=digests,
                spawn=self._tasks.spawn,
            )
            async with self._tasks:
                await self._serve(bus)
        finally:
            bus.close()
            digests.close()
            threads.shutdown()
            self._object_manager.close()

    async def _serve(self, bus: Connection) -> None:
        doors = self._doors
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await doors.systemd.open()

        events = Events()
        units = Units(doors)
        departures = Departures(bus, doors.bus_id)
        jobs = Jobs(events, doors.authority, lambda: doors.config.limits)
        operations = Operations(doors, events, units, jobs)
        foreign = Foreign(doors)
        requests = Requests(doors, events, units, departures, operations, foreign)
        enrolled = Enrolled(doors, events, units, operations, requests, foreign)
        holdings = Holdings(doors, events, operations)
        quarantine = Quarantine(doors, operations.trees)
        recovery = Recovery(
            doors,
            operations,
            holdings,
            units,
            departures,
            quarantine,
            Reentry(doors, events, operations, units),
        )
        drift = Drift(doors, operations, events)
        verify = Verify(doors, events, jobs, recovery, quarantine, drift, foreign, units)
        watch = Watch(doors, drift)
        leases = Leases(doors, events, operations, holdings, units)
        for listener in (Log(self._journal), watch, leases, self._object_manager):
            events.listen(listener)
        doors.digests.starting = True
        if not await self._unless_stopped(recovery.run()):
            self._say_stopped()  # recovery may be cut off anywhere: the next start goes on
            return
        doors.digests.starting = False
        await enter_walls(doors)

        backups = Backups(doors.config.registry_path, doors.store, self._journal, doors.authority)
        groups = GroupObjects(Groups(doors, events, foreign))
        objects = Objects(
            requests,
            HotplugObjects(Attachments(doors, operations, holdings, foreign), doors),
            Queries(doors),
            verify,
            jobs,
            backups,
            groups,
            EnrolledObjects(enrolled, doors),
            foreign,
            Followed(doors, events, operations),
            doors,
        )
        events.listen(objects)
        router = Router(
            bus, objects, contract.load(), self._journal, lambda: doors.config.limits, doors.spawn
        )
        await router.open()
        if not await bus.request_name(contract.NAME):
            raise StartError(
                f"another process owns {contract.NAME} on this bus; stop it first "
                f"(busctl status {contract.NAME} shows it)"
            )
        # What stands now stands for good: without this each collection walks all of it, which is
        # the largest part of what the slowest calls wait for.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        standing = doors.enforcement.now()
        self._object_manager.warn(standing)
        notify.ready(await self._status())
        self._journal.record(
            MessageId.STARTED,
            f"svirtd {__version__} serves {contract.NAME}; SELinux is {standing.mode.value}"
            + (
                "" if standing.enforced else f": labels are NOT ENFORCED {standing.problem}"
            ).rstrip(),
            priority=Priority.NOTICE,
        )
        background = [
            asyncio.ensure_future(work)
            for work in (
                self._lost(bus),
                doors.opener.lost(),
                doors.crew.lost(),
                self._watch(bus),
                self._tell(),
                self._again(quarantine, verify, watch),
                watch.run(),
                leases.run(),
                doors.enforcement.watch(events),
                keeper.watch(doors.store, doors.config.registry_path, self._journal),
            )
        ]
        stop = asyncio.ensure_future(self._stop.wait())
        done, _ = await asyncio.wait([stop, *background], return_when=asyncio.FIRST_COMPLETED)
        backups.close()
        for task in (stop, *background):
            task.cancel()
        await asyncio.gather(stop, *background, return_exceptions=True)
        for task in done - {stop}:
            task.result()  # raises why it ended: without the bus or the book there is no service
        await self._drain(bus, router, events)

    async def _drain(self, bus: Connection, router: Router, events: Events) -> None:
        notify.stopping()
        self._doors.authority.end()
        if not await router.drain(_DRAIN_S):
            self._journal.record(
                MessageId.STOPPED,
                f"requests are still under way after {_DRAIN_S:.0f} s; the next start settles them",
                priority=Priority.WARNING,
            )
        self._tasks.end()
        events.deliver()
        try:
            await bus.drain(_DRAIN_S)
        except TimeoutError:
            self._journal.record(
                MessageId.STOPPED,
                f"the bus has not taken the last messages within {_DRAIN_S:.0f} s",
                priority=Priority.WARNING,
            )
        self._say_stopped()

    def _say_stopped(self) -> None:
        self._journal.record(MessageId.STOPPED, "svirtd has stopped", priority=Priority.NOTICE)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it; False if the daemon was told to stop meanwhile. Raises what it raises."""
        doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([doing, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        doing.cancel()
        await asyncio.wait([doing, stop])
        if doing.cancelled():
            return False
        doing.result()
        return True

    async def _lost(self, bus: Connection) -> None:
        raise await bus.wait_closed()

    async def _watch(self, bus: Connection) -> None:
        """Feed the watchdog from what a request needs: the book was read, the bus has answered."""
        interval_s = notify.watchdog_interval_s()
        if not interval_s:
            await asyncio.Event().wait()
        while True:
            await self._doors.store.read(pool.counts)
            await bus.call_bus("GetId", timeout_s=interval_s)
            notify.watchdog()
            await asyncio.sleep(interval_s)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_S)
            notify.status(await self._status())

    async def _again(self, quarantine: Quarantine, verify: Verify, watch: Watch) -> None:
        """Compare everything at start, from time to time, and when the watch has lost count."""
        doors = self._doors
        await self._round(verify.alone(Repair.START))
        compared_s = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_QUARANTINE_S, doors.config.drift_interval_s)):
                    await watch.overflowed.wait()
            due = time.monotonic() >= compared_s + doors.config.drift_interval_s
            if due or watch.overflowed.is_set():
                watch.overflowed.clear()
                await self._round(verify.alone(Repair.AUTOMATIC))
                compared_s = time.monotonic()
            else:
                await self._round(quarantine.recheck(restore=True))

    async def _round(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (SvirtError, OSError, TimeoutError) as error:
            # A full disk, a bus that is slow, no descriptor left: the next round may do.
            self._journal.record(MessageId.WARNING, str(error), priority=Priority.WARNING)

    async def _status(self) -> str:
        counts = await self._doors.store.read(pool.counts)
        text = (
            f"{counts.vms_active} VMs active; {counts.pairs_in_use} of {self._doors.shape.total} "
            f"category sets in use, {counts.pairs_quarantined} in quarantine"
        )
        return text if self._doors.enforcement.now().enforced else f"NOT ENFORCED: {text}"

    def _reload(self) -> None:
        self._tasks.spawn(self._reload_now())

    async def _reload_now(self) -> None:
        notify.reloading()
        await reload(self._doors, self._config_path)
        notify.ready(await self._status())
