# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages to handlers: standard interfaces, limits, errors by name, descriptors closed.

Every call runs as its own task. An unexpected exception never reaches the caller: it gets a fixed
text, the log gets the details.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from svirtd.api.call import Call, Handler, Reply
from svirtd.api.callers import Callers
from svirtd.api.contract import (
    GROUP,
    GROUP_FOLDER,
    INTROSPECTABLE,
    JOB,
    JOB_FOLDER,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    ROOT,
    VM,
    VM_FOLDER,
    Interface,
    interfaces_of,
    introspection,
)
from svirtd.api.objects import Objects, job_number
from svirtd.api.refusals import Refusals
from svirtd.api.turns import Load, Turns
from svirtd.config import Limits
from svirtd.core.names import shown, unescape_path
from svirtd.errors import (
    AccessDenied,
    Failed,
    InvalidArgs,
    LimitsExceeded,
    NoSuchGroup,
    NoSuchVM,
    PropertyReadOnly,
    ResourceRefused,
    SvirtError,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
)
from svirtd.failpoints import Point, reach
from svirtd.host.bus import (
    BusError,
    BusLost,
    Connection,
    Message,
    MessageFlag,
    MessageType,
    Variant,
    error_reply,
    method_return,
    read_body,
)
from svirtd.host.journal import Journal
from svirtd.host.scarcity import scarcity

_VALUES_MIN: Final = 10_000
_VALUES_OF_A_RESOURCE: Final = 128
_INTERNAL: Final = "internal error; the system log has the details (journalctl -u svirtd)"


class Router:
    """Serves the contract on one connection."""

    def __init__(
        self,
        bus: Connection,
        objects: Objects,
        contract: Mapping[str, Interface],
        journal: Journal,
        limits: Callable[[], Limits],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._contract = contract
        self._journal = journal
        self._spawn = spawn
        self._limits = limits
        self._turns = Turns(limits)
        self._refusals = Refusals(journal)
        self._stopping = False
        self._callers = Callers(bus)
        self.handlers: dict[tuple[str, str], Handler] = {
            **objects.handlers(),
            (PEER, "Ping"): self._ping,
            (PEER, "GetMachineId"): self._machine_id,
        }
        objects.sends(self._emit)

    async def open(self) -> None:
        """Answer calls from now on."""
        await self._callers.open()
        self._bus.handle_methods(self._on_call, read=False)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls and wait for those under way; False if some did not end in time."""
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._turns.idle.wait()
        except TimeoutError:
            return False
        return True

    # -- one call ---------------------------------------------------------------------------

    def _on_call(self, msg: Message) -> None:
        try:
            self._refuse_unread(msg)
            self._turns.admit(msg.sender, self._callers.uid(msg.sender), _load(msg))
        except SvirtError as refusal:
            if isinstance(refusal, LimitsExceeded) and msg.flags & MessageFlag.NO_REPLY_EXPECTED:
                # Whoever does not wait for answers is not held back by this one.
                self._bus.mute(msg.sender)
            self._close_fds(msg)
            self._reply_error(msg, refusal)
            return
        self._spawn(self._serve(msg))

    def _refuse_unread(self, msg: Message) -> None:
        if msg.fds_lost:
            raise ResourceRefused(
                "svirtd did not get a descriptor that came with the call: on a host that enforces "
                "SELinux the policy says which it may have (svirtd(8), svirtd_bus_image_fds); name "
                "files by path"
            )
        if msg.unread:
            raise _unread(msg.unread)
        if self._stopping:
            raise Failed("svirtd is stopping; try again when it is back")

    async def _serve(self, msg: Message) -> None:
        load = _load(msg)
        try:
            # Answering is inside: a value that cannot be sent must not leave the caller waiting.
            self._reply(msg, await self._answer(msg))
        except SvirtError as error:
            self._reply_error(msg, error)
        except BusLost:
            raise
        except Exception as error:  # noqa: BLE001 -- the edge: nothing unexpected goes out
            refusal: SvirtError | None = scarcity(error)
            if refusal is None:
                self._journal.exception(f"{msg.member} failed unexpectedly", error)
                refusal = Failed(_INTERNAL)
            self._reply_error(msg, refusal)
        finally:
            self._close_fds(msg)
            self._turns.leave(msg.sender, load)

    async def _answer(self, msg: Message) -> Reply:
        vm_name, job, group = self._object(msg.path)
        interface = self._interface(msg)
        signature = interface.methods[msg.member][0]
        if msg.signature != signature:
            raise InvalidArgs(
                f"{interface.name}.{msg.member} takes {signature!r}, the message has "
                f"{msg.signature!r}"
            )
        caller = await self._callers.of(msg.sender)
        if msg.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION:
            caller = replace(caller, interactive=True)
        async with self._turns.turn(caller.uid, _load(msg)):
            try:
                read_body(msg, self._values_max())
            except ValueError as error:
                raise _unread(str(error)) from error
            call = Call(caller, vm_name, job, group, msg.body, tuple(msg.unix_fds))
            return await self._handle(msg, interface, call)

    def _values_max(self) -> int:
        """What the limits let a call have, with room to be refused in better words."""
        limits = self._limits()
        return _VALUES_MIN + limits.command_bytes + _VALUES_OF_A_RESOURCE * limits.resources

    async def _handle(self, msg: Message, interface: Interface, call: Call) -> Reply:
        try:
            match interface.name:
                case "org.freedesktop.DBus.Introspectable":
                    return await self._introspect(call, msg.path)
                case "org.freedesktop.DBus.Properties":
                    return await self._properties(call, msg.path, msg.member)
                case "org.freedesktop.DBus.ObjectManager":
                    return Reply([await self._objects.managed(call.caller)])
                case _:
                    return await self.handlers[interface.name, msg.member](call)
        except NoSuchVM as error:
            if call.vm_name:
                raise UnknownObject(f"{shown(msg.path)}: {error}") from error
            raise
        except NoSuchGroup as error:
            if call.group:
                raise UnknownObject(f"{shown(msg.path)}: {error}") from error
            raise
        except SvirtError as error:
            named = call.vm_name or call.group
            if not named and msg.signature.startswith("s"):
                named = call.body[0]
            self._refusals.record(call.caller.uid, msg.member, str(named), error)
            raise

    def _object(self, path: str) -> tuple[str, int, str]:
        """Return the VM's name, the job's number or the group's name of an object's path.

        None of them for the other objects. Raises UnknownObject.
        """
        folders = (VM_FOLDER, GROUP_FOLDER, JOB_FOLDER)
        if path in (ROOT, *folders) or ROOT.startswith(path.rstrip("/") + "/"):
            return "", 0, ""
        folder, _, element = path.rpartition("/")
        name = unescape_path(element) if folder == VM_FOLDER else None
        group = unescape_path(element) if folder == GROUP_FOLDER else None
        job = job_number(element) if folder == JOB_FOLDER else 0
        if not name and not job and not group:
            raise UnknownObject(f"there is no object at {shown(path)}")
        return name or "", job, group or ""

    def _interface(self, msg: Message) -> Interface:
        names = interfaces_of(msg.path)
        if not msg.interface:  # allowed by D-Bus where only one interface has the member
            names = tuple(n for n in names if msg.member in self._contract[n].methods)
            if not names:
                raise UnknownMethod(f"{shown(msg.path)} has no method {msg.member}")
            return self._contract[names[0]]
        if msg.interface not in names:
            raise UnknownInterface(f"{shown(msg.path)} has no interface {msg.interface}")
        interface = self._contract[msg.interface]
        if msg.member not in interface.methods:
            raise UnknownMethod(f"{msg.interface} has no method {msg.member}")
        return interface

    # -- standard interfaces ----------------------------------------------------------------

    async def _ping(self, _call: Call) -> Reply:
        return Reply([])

    async def _machine_id(self, _call: Call) -> Reply:
        # Of systemd: the bus's own policy keeps its Peer interface from its clients.
        manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
        try:
            reply = await self._bus.call(*manager, PEER, "GetMachineId", timeout_s=10.0)
        except (BusError, TimeoutError) as error:
            raise Failed(f"systemd does not say the machine's id ({error})") from error
        return Reply([reply.body[0]])

    async def _introspect(self, call: Call, path: str) -> Reply:
        if path == VM_FOLDER:
            try:
                children = await self._objects.children(call.caller)
            except SvirtError:
                children = []  # too many, or not for this caller to see; both are answered so
        elif path == GROUP_FOLDER:
            try:
                children = await self._objects.group_children(call.caller)
            except SvirtError:
                children = []
        elif path == JOB_FOLDER:
            children = self._objects.job_numbers()
        elif path == ROOT:
            children = ["group", "job", "vm"]
        elif call.vm_name or call.job or call.group:
            await self._values(call)  # does it exist?
            children = []
        else:
            rest = ROOT.removeprefix(path.rstrip("/") + "/")
            children = [rest.partition("/")[0]]
        return Reply([introspection(self._contract, path, children)])

    async def _properties(self, call: Call, path: str, member: str) -> Reply:
        name = call.body[0]
        if name and name not in interfaces_of(path):
            raise UnknownInterface(f"{shown(path)} has no interface {shown(name)}")
        # Read whatever is asked for: an object that is not there has no empty set of properties.
        values = await self._values(call)
        if name not in ("", MANAGER, VM, GROUP, JOB):
            values = {}
        if member == "GetAll":
            return Reply([values])
        if call.body[1] not in values and name and call.body[1] in self._contract[name].properties:
            raise AccessDenied(
                f"uid {call.caller.uid} may not see {call.body[1]} of another user's "
                + ("group" if call.group else "VM")
            )
        if call.body[1] not in values:
            raise UnknownProperty(f"{shown(name or path)} has no property {shown(call.body[1])}")
        if member == "Set":
            raise PropertyReadOnly(f"{call.body[1]} is read-only; call a method instead")
        return Reply([values[call.body[1]]])

    async def _values(self, call: Call) -> dict[str, Variant]:
        if call.vm_name:
            return await self._objects.vm_properties(call.caller, call.vm_name)
        if call.group:
            return await self._objects.group_properties(call.caller, call.group)
        if call.job:
            return await self._objects.job_properties(call.caller, call.job)
        return await self._objects.manager_properties(call.caller)

    # -- out --------------------------------------------------------------------------------

    def _reply(self, msg: Message, reply: Reply) -> None:
        interface = self._interface(msg)
        try:
            if not msg.flags & MessageFlag.NO_REPLY_EXPECTED:
                signature = interface.methods[msg.member][1]
                reach(Point.REPLY_BEFORE)
                self._bus.send(method_return(msg, signature, reply.body, list(reply.fds)))
                reach(Point.REPLY_AFTER)
        finally:
            for fd in reply.fds:
                os.close(fd)

    def _reply_error(self, msg: Message, error: SvirtError) -> None:
        if not msg.flags & MessageFlag.NO_REPLY_EXPECTED:
            reach(Point.REPLY_BEFORE)
            self._bus.send(error_reply(msg, error.name, error.text))
            reach(Point.REPLY_AFTER)

    def _emit(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        # Without a bus nobody is left to hear it, and the daemon is about to end for that.
        with contextlib.suppress(BusLost):
            self._bus.send(
                Message(
                    MessageType.SIGNAL,
                    path=path,
                    interface=interface,
                    member=member,
                    signature=signature,
                    body=body,
                )
            )

    def _close_fds(self, msg: Message) -> None:
        for fd in msg.unix_fds:
            os.close(fd)
        msg.unix_fds = []


def _load(msg: Message) -> Load:
    return Load(1, len(msg.raw), len(msg.unix_fds))


def _unread(why: str) -> LimitsExceeded:
    return LimitsExceeded(f"the message was not read: {why}")


__all__ = ["INTROSPECTABLE", "OBJECT_MANAGER", "Router"]
