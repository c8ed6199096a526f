# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd's manager over D-Bus: transient units, their jobs and their ends.

systemd is the parent of every VM, so that a VM runs on while svirtd restarts.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from svirtd.core.model import UnitState
from svirtd.core.names import escape_path
from svirtd.errors import Failed, UnitFailed, UnitStuck
from svirtd.failpoints import Point, reach
from svirtd.host.bus import BusError, Connection, Message, Variant

_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_UNIT: Final = "org.freedesktop.systemd1.Unit"
_SERVICE: Final = "org.freedesktop.systemd1.Service"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_UNITS: Final = "/org/freedesktop/systemd1/unit"
_CALL_TIMEOUT_S: Final = 25.0
# Signals can overtake the reply that names the job; this many results are kept until then.
_RESULTS_KEPT: Final = 256
# Errors of systemd that mean: no such unit is loaded.
_NOT_LOADED: Final = (
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.DBus.Error.UnknownObject",
)


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """A transient service. `properties` are (name, signature, value) beyond the fixed ones."""

    name: str
    description: str
    argv: tuple[str, ...]
    context: str
    user: str
    slice: str
    environment: tuple[str, ...]
    working_directory: str
    properties: tuple[tuple[str, str, object], ...]


def _unit_properties(spec: UnitSpec) -> list[list[Any]]:
    # "no-env-expand": a "$" in an argument is the caller's, not systemd's.
    exec_start = [[spec.argv[0], list(spec.argv), ["no-env-expand"]]]
    fixed: list[tuple[str, str, object]] = [
        ("Description", "s", spec.description),
        ("Type", "s", "exec"),
        # Kept by our reference until we have read how its start went, then collected at its end,
        # even if it failed.
        ("CollectMode", "s", "inactive-or-failed"),
        ("AddRef", "b", True),
        ("Slice", "s", spec.slice),
        ("SELinuxContext", "s", spec.context),
        ("ExecStartEx", "a(sasas)", exec_start),
        ("Environment", "as", list(spec.environment)),
        # A VM that runs as root is root in name only, and no program it executes gets it more. The
        # policy lets systemd start a VM's domain all the same (nnp_transition).
        ("NoNewPrivileges", "b", True),
        ("CapabilityBoundingSet", "t", 0),
        ("AmbientCapabilities", "t", 0),
    ]
    if spec.user:
        fixed.append(("User", "s", spec.user))
    if spec.working_directory:
        fixed.append(("WorkingDirectory", "s", spec.working_directory))
    overridden = {name for name, _, _ in spec.properties}
    kept = [p for p in fixed if p[0] not in overridden]
    return [[name, Variant(sig, value)] for name, sig, value in (*kept, *spec.properties)]


class Systemd:
    """The manager on this bus. `on_change` is told of a watched unit that changed."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._results: OrderedDict[str, str] = OrderedDict()
        self._watched: dict[str, str] = {}  # object path to unit
        self.on_change: Callable[[str], None] = lambda _unit: None

    async def open(self) -> None:
        """Subscribe to the manager's signals. Raises Failed if there is no systemd on the bus."""
        try:
            await self._bus.subscribe(_NAME, _MANAGER, "JobRemoved", self._job_removed)
            await self._bus.subscribe(_NAME, _MANAGER, "UnitRemoved", self._unit_removed)
            # One rule for all units: a rule for each would end at the bus's limit of some hundred.
            await self._bus.subscribe(
                _NAME,
                _PROPERTIES,
                "PropertiesChanged",
                self._unit_changed,
                below=_UNITS,
                arg0=_UNIT,
            )
            await self._call("Subscribe")
        except BusError as error:
            if error.name.endswith(".AlreadySubscribed"):
                return
            raise Failed(f"systemd does not answer on this bus ({error.text})") from error

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
                [spec.name, "fail", _unit_properties(spec), []],
            )
        except BusError as error:
            raise UnitFailed(f"systemd refused {spec.name}: {error.text}") from error
        except Failed as error:
            await self.end(spec.name, timeout_s=timeout_s)
            raise UnitFailed(f"{spec.name} was not started: {error}") from error
        reach(Point.START_QUEUED)
        try:
            result = await self._job_done(reply.body[0], timeout_s)
        except TimeoutError as error:
            await self.end(spec.name, timeout_s=timeout_s)
            raise UnitFailed(
                f"{spec.name} did not start within {timeout_s:.0f} s; see journalctl -u {spec.name}"
            ) from error
        state = await self.state(spec.name)
        # A reference costs systemd a rule on the bus, which has room for some hundred.
        await self.forget(spec.name)
        if result == "done" and state is not None and not state.ended and state.main_pid:
            return state
        raise UnitFailed(_failure(spec.name, result, state))

    async def stop(self, unit: str, *, timeout_s: float) -> None:
        """Stop a unit and wait until none of its processes is left.

        A unit that is not loaded is stopped. Raises UnitFailed if it does not end in time.
        """
        try:
            reply = await self._call("StopUnit", "ss", [unit, "replace"])
            await self._job_done(reply.body[0], timeout_s)
        except BusError as error:
            if error.name in _NOT_LOADED:
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

    async def kill(self, unit: str) -> None:
        """Send SIGKILL to every process of a unit; one that is not loaded has none."""
        try:
            await self._call("KillUnit", "ssi", [unit, "all", 9])
        except BusError as error:
            if error.name not in _NOT_LOADED and "NoSuchProcess" not in error.name:
                raise UnitFailed(f"systemd did not kill {unit}: {error.text}") from error

    async def state(self, unit: str) -> UnitState | None:
        """Return a loaded unit's state, None if systemd has not loaded it."""
        try:
            path = (await self._call("GetUnit", "s", [unit])).body[0]
            general = await self._get_all(path, _UNIT)
            service = await self._get_all(path, _SERVICE)
        except BusError as error:
            if error.name in _NOT_LOADED:
                return None
            raise Failed(f"systemd did not tell the state of {unit}: {error.text}") from error
        return UnitState(
            name=unit,
            active=general["ActiveState"].value,
            result=service["Result"].value,
            main_pid=service["MainPID"].value,
            exit_code=service["ExecMainCode"].value,
            exit_status=service["ExecMainStatus"].value,
            context=service["SELinuxContext"].value[1],
        )

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

    async def forget(self, unit: str) -> None:
        """Drop our reference, so that systemd collects the unit once it has ended."""
        # An error says that the unit or our reference is gone: what was wanted.
        with contextlib.suppress(BusError):
            await self._call("UnrefUnit", "s", [unit])

    async def end(self, unit: str, *, timeout_s: float) -> None:
        """Kill a unit and wait until none of its processes is left. Raises UnitStuck."""
        try:
            await self.kill(unit)
            await self.stop(unit, timeout_s=timeout_s)
        except (UnitFailed, Failed) as error:
            raise UnitStuck(f"{unit} may still run under the VM's label: {error}") from error

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

    async def _get_all(self, path: str, interface: str) -> dict[str, Variant]:
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
        """Call systemd. Raises BusError, or Failed if it does not answer in time."""
        try:
            return await self._bus.call(
                _NAME, path, interface, member, signature, body, timeout_s=_CALL_TIMEOUT_S
            )
        except TimeoutError as error:
            raise Failed(
                f"systemd did not answer {member} within {_CALL_TIMEOUT_S:.0f} s; see whether it "
                "is stuck (systemctl list-jobs), then try again"
            ) from error


def _failure(unit: str, job_result: str, state: UnitState | None) -> str:
    """One sentence on why a unit did not start, with systemd's own words."""
    if state is None:
        return f"{unit} failed: job result {job_result}; see journalctl -u {unit}"
    if state.result == "success":
        return (
            f"{unit} ended at once, with exit status 0; a VM's command must stay in the foreground"
        )
    status = f"exit status {state.exit_status}"
    if state.exit_status == 203:
        status += "/EXEC: the command could not be executed; does it exist, may the user run it"
        status += ", and does the policy let systemd start it under the VM's context?"
    return f"{unit} failed: result {state.result}, {status}; see journalctl -u {unit}"
