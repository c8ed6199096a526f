# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd's manager over D-Bus: transient units, their jobs and their ends.

systemd is the parent of every VM, so that a VM runs on while svirtd restarts.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

from svirtd.core.names import escape_path
from svirtd.core.unit_state import UnitDetails, UnitState
from svirtd.errors import Failed, NoAnswer, SvirtError, UnitFailed, UnitStuck
from svirtd.failpoints import Point, reach
from svirtd.host.bus import BusError, Connection, Message, Variant
from svirtd.host.unit import (
    Properties,
    UnitSpec,
    failure,
    unit_details,
    unit_properties,
    unit_state,
)

_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_UNIT: Final = "org.freedesktop.systemd1.Unit"
_SERVICE: Final = "org.freedesktop.systemd1.Service"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_UNITS: Final = "/org/freedesktop/systemd1/unit"
_JOB: Final = "org.freedesktop.systemd1.Job"
# Signals can overtake the reply that names the job; this many results are kept until then.
_RESULTS_KEPT: Final = 4096
# Instead of a result: the job was over before we could hear of it.
_UNHEARD: Final = "unheard"
# Errors of systemd that mean: no such unit is loaded.
_NOT_LOADED: Final = (
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.DBus.Error.UnknownObject",
)
# Errors of the bus that do not tell whether systemd took the call: it left before it answered.
_NO_ANSWER: Final = tuple(
    f"org.freedesktop.DBus.Error.{name}" for name in ("NoReply", "Disconnected", "TimedOut")
)


class Systemd:
    """The manager on this bus.

    `on_change` is told of a watched unit that changed, `on_renewed` that the manager was executed
    anew or has read its units again; resume() is due then. `answer_s` says how long it may take to
    answer a call.
    """

    def __init__(self, bus: Connection, answer_s: Callable[[], float]) -> None:
        self._bus = bus
        self._answer_s = answer_s
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._results: OrderedDict[str, str] = OrderedDict()
        self._watched: dict[str, str] = {}  # object path to unit
        self._referenced: set[str] = set()
        self.on_change: Callable[[str], None] = lambda _unit: None
        self.on_renewed: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Subscribe to the manager's signals. Raises Failed if there is no systemd on the bus."""
        try:
            await self._bus.subscribe(_NAME, _MANAGER, "JobRemoved", self._job_removed)
            await self._bus.subscribe(_NAME, _MANAGER, "UnitRemoved", self._unit_removed)
            await self._bus.subscribe(_NAME, _MANAGER, "Reloading", self._reloading)
            # One rule for all units: a rule for each would end at the bus's limit of some hundred.
            await self._bus.subscribe(
                _NAME,
                _PROPERTIES,
                "PropertiesChanged",
                self._unit_changed,
                below=_UNITS,
                arg0=_UNIT,
            )
            self._bus.on_new_owner(_NAME, self._renewed)
            await self._subscribe()
        except BusError as error:
            raise Failed(f"systemd does not answer on this bus ({error.text})") from error

    async def resume(self) -> None:
        """Go on with a manager that was executed anew: it may have forgotten who listens, and what
        it told meanwhile nobody heard. Raises Failed."""
        try:
            await self._subscribe()
            for job in tuple(self._jobs):
                await self._look_for(job)
            running = set(await self.units("*.service"))
        except BusError as error:
            raise Failed(f"systemd does not say what it runs ({error.text})") from error
        for unit in tuple(self._watched.values()):
            if unit not in running:
                self.on_change(unit)

    async def _subscribe(self) -> None:
        try:
            await self._call("Subscribe")
        except BusError as error:
            if not error.name.endswith(".AlreadySubscribed"):
                raise

    async def start(self, spec: UnitSpec, *, timeout_s: float) -> UnitState:
        """Start a transient unit and wait until its command was executed.

        The unit is watched from before its first moment. Raises UnitFailed with the unit's result;
        no process of the unit is left then. Raises UnitStuck if that is not sure; the unit is
        watched on, so that its end is noticed.
        """
        self.watch(spec.name)
        try:
            return await self._start(spec, timeout_s)
        except UnitStuck:
            raise
        except BaseException:
            self.unwatch(spec.name)
            raise

    async def _start(self, spec: UnitSpec, timeout_s: float) -> UnitState:
        try:
            reply = await self._call(
                "StartTransientUnit",
                "ssa(sv)a(sa(sv))",
                [spec.name, "fail", unit_properties(spec), []],
            )
        except BusError as error:
            raise UnitFailed(f"systemd refused {spec.name}: {error.text}") from error
        except NoAnswer as error:
            await self._end_if_started(spec, timeout_s)
            raise UnitFailed(f"{spec.name} was not started: {error}") from error
        self._referenced.add(spec.name)
        reach(Point.START_QUEUED)
        try:
            result = await self._job_done(reply.body[0], timeout_s)
            state = await self.state(spec.name)
        except TimeoutError as error:
            await self.end(spec.name, timeout_s=timeout_s)
            raise UnitFailed(
                f"{spec.name} did not start within {timeout_s:.0f} s; see journalctl -u {spec.name}"
            ) from error
        except SvirtError as error:
            await self.end(spec.name, timeout_s=timeout_s)
            raise UnitFailed(f"{spec.name} was ended again: {error}") from error
        if _runs(state, result):
            # A reference costs systemd a rule on the bus, which has room for some hundred.
            await self._unreference(spec.name)
            return state
        if state is not None and not state.ended:
            await self.end(spec.name, timeout_s=timeout_s)
        await self._unreference(spec.name)
        raise UnitFailed(failure(spec.name, result, state))

    async def _end_if_started(self, spec: UnitSpec, timeout_s: float) -> None:
        """Make sure that a start nobody answered has not happened and does not happen yet.

        systemd takes calls in turn: with an answer to a later one it has dealt with the start too.
        A unit of the name may be somebody else's, for which the start was refused.
        """
        try:
            state = await self.state(spec.name)
        except SvirtError as error:
            self._referenced.add(spec.name)
            raise UnitStuck(f"{spec.name} may still start under the VM's label: {error}") from error
        if state is not None and state.context == spec.context:
            self._referenced.add(spec.name)
            await self.end(spec.name, timeout_s=timeout_s)

    async def stop(self, unit: str, *, timeout_s: float) -> None:
        """Stop a unit and wait until none of its processes is left.

        A unit that is not loaded is stopped. Raises UnitFailed if it does not end in time.
        """
        try:
            reply = await self._call("StopUnit", "ss", [unit, "replace"])
            await self._job_done(reply.body[0], timeout_s)
        except BusError as error:
            if error.name in _NOT_LOADED:
                self._referenced.discard(unit)
                return
            raise UnitFailed(f"systemd did not stop {unit}: {error.text}") from error
        except TimeoutError as error:
            raise UnitFailed(
                f"{unit} did not stop within {timeout_s:.0f} s; end it with "
                f"systemctl kill -s KILL {unit}, then release again"
            ) from error
        state = await self.state(unit)
        if state is not None and not state.ended:
            raise UnitFailed(f"{unit} is still {state.active} after it was stopped")
        await self._unreference(unit)

    async def ask_to_stop(self, unit: str) -> None:
        """Have a unit stopped, and do not wait for that. Raises UnitFailed."""
        try:
            await self._call("StopUnit", "ss", [unit, "replace"])
        except BusError as error:
            if error.name not in _NOT_LOADED:
                raise UnitFailed(f"systemd did not stop {unit}: {error.text}") from error

    async def kill(self, unit: str) -> None:
        """Send SIGKILL to every process of a unit; one that is not loaded has none."""
        try:
            await self._call("KillUnit", "ssi", [unit, "all", 9])
        except BusError as error:
            if error.name not in _NOT_LOADED and "NoSuchProcess" not in error.name:
                raise UnitFailed(f"systemd did not kill {unit}: {error.text}") from error

    async def state(self, unit: str) -> UnitState | None:
        """Return a loaded unit's state, None if systemd has not loaded it."""
        found = await self._properties(unit)
        return None if found is None else unit_state(unit, *found)

    async def details(self, unit: str) -> UnitDetails | None:
        """Return a loaded unit's state and what it runs, None if systemd has not loaded it."""
        found = await self._properties(unit)
        return None if found is None else unit_details(unit, *found)

    async def _properties(self, unit: str) -> tuple[Properties, Properties] | None:
        try:
            path = (await self._call("GetUnit", "s", [unit])).body[0]
            return await self._get_all(path, _UNIT), await self._get_all(path, _SERVICE)
        except BusError as error:
            if error.name in _NOT_LOADED:
                return None
            raise Failed(f"systemd did not tell the state of {unit}: {error.text}") from error

    async def set_device(self, unit: str, node: str, mode: str) -> None:
        """Let a running unit open a device node in these ways ("r", "rw"), or in none if empty.

        A unit that is not loaded is left alone. Raises Failed.
        """
        try:
            path = (await self._call("GetUnit", "s", [unit])).body[0]
            reply = await self._call(
                "Get", "ss", [_SERVICE, "DeviceAllow"], path=path, interface=_PROPERTIES
            )
            nodes = [one for one in reply.body[0].value if one[0] != node]
            nodes += [[node, mode]] if mode else []
            # An empty list takes back what was there before, in the same breath.
            lists = [["DeviceAllow", Variant("a(ss)", one)] for one in ([], nodes)]
            await self._call("SetUnitProperties", "sba(sv)", [unit, True, lists])
        except BusError as error:
            if error.name not in _NOT_LOADED:
                raise Failed(
                    f"systemd did not change which devices {unit} may open: {error.text}"
                ) from error

    async def unit_of_pid(self, pid: int) -> str:
        """Return the unit that a process belongs to, empty if none."""
        try:
            path = (await self._call("GetUnitByPID", "u", [pid])).body[0]
            reply = await self._call("Get", "ss", [_UNIT, "Id"], path=path, interface=_PROPERTIES)
        except BusError:
            return ""  # the process has ended or is in no unit: the answer, not a failure
        return str(reply.body[0].value)

    async def units(self, pattern: str) -> list[str]:
        """Return the names of the loaded units that match a shell pattern and have not ended."""
        reply = await self._call("ListUnitsByPatterns", "asas", [[], [pattern]])
        return [row[0] for row in reply.body[0] if row[3] not in ("inactive", "failed")]

    def watch(self, unit: str) -> None:
        """Have `on_change` called when the unit's state changes or it is unloaded."""
        self._watched[f"{_UNITS}/{escape_path(unit)}"] = unit

    def unwatch(self, unit: str) -> None:
        """End what watch() began."""
        self._watched.pop(f"{_UNITS}/{escape_path(unit)}", None)

    async def end(self, unit: str, *, timeout_s: float) -> None:
        """Kill a unit and wait until none of its processes is left. Raises UnitStuck."""
        try:
            await self.kill(unit)
            await self.stop(unit, timeout_s=timeout_s)
        except (UnitFailed, Failed) as error:
            raise UnitStuck(f"{unit} may still run under the VM's label: {error}") from error

    async def _unreference(self, unit: str) -> None:
        """Drop our reference, if there is one: systemd collects the unit once it has ended."""
        if unit not in self._referenced:
            return
        # Without an answer it stays, until the unit is stopped or we leave the bus.
        with contextlib.suppress(NoAnswer):
            # An error says that the unit or our reference is gone: what was wanted.
            with contextlib.suppress(BusError):
                await self._call("UnrefUnit", "s", [unit])
            self._referenced.discard(unit)

    async def _job_done(self, job: str, timeout_s: float) -> str:
        if job in self._results:
            return self._results.pop(job)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs[job] = future
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._jobs.pop(job, None)

    async def _look_for(self, job: str) -> None:
        """End the wait for a job that is over already."""
        try:
            await self._call("Get", "ss", [_JOB, "State"], path=job, interface=_PROPERTIES)
        except BusError as error:
            if error.name not in _NOT_LOADED:
                raise
            future = self._jobs.get(job)
            if future is not None and not future.done():
                future.set_result(_UNHEARD)

    def _renewed(self) -> None:
        self.on_renewed()

    def _reloading(self, msg: Message) -> None:
        if not msg.body[0]:  # it is over
            self.on_renewed()

    def _job_removed(self, msg: Message) -> None:
        _, job, _, result = msg.body
        future = self._jobs.get(job)
        if future is not None and not future.done():
            future.set_result(result)
            return
        self._results[job] = result
        while len(self._results) > _RESULTS_KEPT:
            self._results.popitem(last=False)

    def _unit_removed(self, msg: Message) -> None:
        unit = self._watched.get(msg.body[1])
        if unit is not None:
            self.on_change(unit)

    def _unit_changed(self, msg: Message) -> None:
        unit = self._watched.get(msg.path)
        if unit is not None:
            self.on_change(unit)

    async def _get_all(self, path: str, interface: str) -> Properties:
        reply = await self._call("GetAll", "s", [interface], path=path, interface=_PROPERTIES)
        return dict(reply.body[0])

    async def _call(
        self,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        path: str = _PATH,
        interface: str = _MANAGER,
    ) -> Message:
        """Call systemd. Raises BusError, or NoAnswer if it did not say what became of the call."""
        answer_s = self._answer_s()
        try:
            return await self._bus.call(
                _NAME, path, interface, member, signature, body, timeout_s=answer_s
            )
        except TimeoutError as error:
            raise NoAnswer(
                f"systemd did not answer {member} within {answer_s:g} s; see whether it is stuck "
                "(systemctl list-jobs), then try again"
            ) from error
        except BusError as error:
            if error.name not in _NO_ANSWER:
                raise
            raise NoAnswer(
                f"systemd left the bus before it answered {member}; try again"
            ) from error


def _runs(state: UnitState | None, result: str) -> TypeGuard[UnitState]:
    """Say whether a start has come to its good end."""
    if state is None or state.ended or not state.main_pid:
        return False
    return result == "done" or (result == _UNHEARD and state.active == "active")
