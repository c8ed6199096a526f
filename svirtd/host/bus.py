# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus connection: calls with a deadline, signals of known senders, names and credentials.

dbus-next is used as a wire library (addresses, authentication, signatures, introspection), behind
this module and the three below it: transport, message and marshal.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.introspection import Node

from svirtd.core.model import Caller
from svirtd.host.marshal import Variant
from svirtd.host.message import MESSAGE_MAX, Message, read_body
from svirtd.host.transport import BusLost, Wire

__all__ = [
    "BUS",
    "BUS_PATH",
    "BusError",
    "BusLost",
    "Connection",
    "Message",
    "MessageFlag",
    "MessageType",
    "Variant",
    "error_reply",
    "method_return",
    "parse_introspection",
    "read_body",
]

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"

_UNREADABLE: Final = "org.freedesktop.DBus.Error.InconsistentMessage"

SignalHandler = Callable[[Message], None]


class BusError(Exception):
    """The peer answered with an error. `name` is the D-Bus error name, `text` its message."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Connection:
    """One connection to a message bus.

    Every wait for a peer has a deadline (`asyncio.TimeoutError` past it). Descriptors of a
    received message belong to whoever handles the message; those of a message that nobody
    handles are closed here.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._method_handler: Callable[[Message], None] | None = None
        self._read_calls = True
        # By interface, member, path and first argument; the last two empty where any will do.
        self._signals: dict[tuple[str, str, str, str], list[tuple[str, SignalHandler]]] = {}
        # By well-known name; None until the bus has told.
        self._owners: dict[str, str | None] = {}
        self._owner_handlers: dict[str, Callable[[], None]] = {}
        wire.receive = self._on_message
        wire.closed.add_done_callback(self._on_closed)

    @classmethod
    async def open(
        cls,
        address: str | None = None,
        *,
        timeout_s: float = 10.0,
        call_max_bytes: int = MESSAGE_MAX,
    ) -> "Connection":
        """Connect to `address`, or to the system bus (DBUS_SYSTEM_BUS_ADDRESS is honoured).

        Bodies of method calls longer than `call_max_bytes` are not read (Message.unread).
        Raises BusLost with the reason if there is no bus there.
        """
        wire = None
        try:
            wire = Wire(address)
            async with asyncio.timeout(timeout_s):
                await wire.connect()
        except Exception as error:
            if wire is not None:
                wire.lose(BusLost("not connected"))
            raise BusLost(f"cannot connect to the bus: {error or type(error).__name__}") from error
        wire.call_max_bytes = call_max_bytes
        return cls(wire)

    @property
    def unique_name(self) -> str:
        """The name that the bus gave this connection."""
        return str(self._wire.unique_name)

    @property
    def unreadable(self) -> int:
        """How many received messages could not be parsed."""
        return self._wire.errors

    def close(self) -> None:
        """End the connection at once."""
        self._wire.lose(BusLost("closed by us"))

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything queued has been handed to the bus."""
        async with asyncio.timeout(timeout_s):
            await self._wire.drained()

    async def wait_closed(self) -> BusLost:
        """Wait for the end of the connection and return its reason."""
        await asyncio.shield(self._wire.closed)
        return self._wire.lost or BusLost("closed")

    def mute(self, sender: str) -> None:
        """Drop calls of a sender that want no answer, for a moment: it floods us."""
        self._wire.muted.add(sender)

    def handle_methods(self, handler: Callable[[Message], None], *, read: bool = True) -> None:
        """Let `handler` have every incoming method call.

        Without `read` it reads their bodies itself, with read_body(), once it knows whose they are.
        """
        self._method_handler, self._read_calls = handler, read

    def send(self, msg: Message) -> None:
        """Queue a message; its descriptors are duplicated, the caller keeps its own.

        Raises BusLost.
        """
        self._wire.send(msg)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout_s: float,
        fds: Sequence[int] = (),
        interactive: bool = False,
    ) -> Message:
        """Call a method and return the reply; its `unix_fds` then belong to the caller.

        Raises BusError (the peer's error), BusLost, TimeoutError.
        """
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        msg = Message(
            MessageType.METHOD_CALL,
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            unix_fds=list(fds),
            flags=flags,
        )
        msg.serial = self._wire.next_serial()
        future: asyncio.Future[Message] = self._wire.loop.create_future()
        self._pending[msg.serial] = future
        try:
            self._wire.send(msg)
            async with asyncio.timeout(timeout_s):
                reply = await future
        except TimeoutError:
            raise TimeoutError(
                f"{destination} did not answer {member} within {timeout_s:g} s"
            ) from None
        finally:
            # A reply that comes after the deadline finds nobody and is closed by _on_message.
            self._pending.pop(msg.serial, None)
        if reply.message_type is MessageType.ERROR:
            _close_fds(reply)
            text = reply.body[0] if reply.signature.startswith("s") else ""
            raise BusError(reply.error_name, text)
        return reply

    async def call_bus(
        self, member: str, signature: str = "", body: Sequence[Any] = (), *, timeout_s: float = 10.0
    ) -> list[Any]:
        """Call a method of the bus itself and return the reply's body."""
        reply = await self.call(BUS, BUS_PATH, BUS, member, signature, body, timeout_s=timeout_s)
        return list(reply.body)

    async def request_name(self, name: str) -> bool:
        """Own `name`; False if another connection owns it (nobody is queued or replaced)."""
        do_not_queue = 4
        (result,) = await self.call_bus("RequestName", "su", [name, do_not_queue])
        return bool(result in (1, 4))

    async def subscribe(
        self,
        sender: str,
        interface: str,
        member: str,
        handler: SignalHandler,
        *,
        path: str = "",
        below: str = "",
        arg0: str = "",
    ) -> Callable[[], None]:
        """Call `handler` for each such signal of the owner of the well-known name `sender`.

        The sender is checked against the bus's word on who owns the name: anybody may send us
        a signal directly, and a stranger's must not count. `path` is that of one object, `below`
        that of a tree of them; with neither, any will do.
        Returns a function that ends the subscription.
        """
        rule = f"type='signal',sender='{sender}',interface='{interface}',member='{member}'"
        rule += f",path='{path}'" if path else ""
        rule += f",path_namespace='{below}'" if below else ""
        rule += f",arg0='{arg0}'" if arg0 else ""
        if sender != BUS and sender not in self._owners:
            await self._learn_owner(sender)
        entry = (sender, handler)
        key = (interface, member, path, arg0)
        self._signals.setdefault(key, []).append(entry)

        def end(*, rule_stands: bool = True) -> None:
            entries = self._signals.get(key, [])
            if entry in entries:
                entries.remove(entry)
                if not entries:
                    del self._signals[key]
                if rule_stands and not self._wire.lost:
                    self._wire.send(
                        Message(
                            MessageType.METHOD_CALL,
                            destination=BUS,
                            path=BUS_PATH,
                            interface=BUS,
                            member="RemoveMatch",
                            signature="s",
                            body=[rule],
                            flags=MessageFlag.NO_REPLY_EXPECTED,
                        )
                    )

        try:
            await self.call_bus("AddMatch", "s", [rule])
        except BaseException as error:
            # A rule that the bus refused is not there; of one that it did not answer nobody knows.
            end(rule_stands=not isinstance(error, BusError))
            raise
        return end

    async def _learn_owner(self, name: str) -> None:
        """Know who owns a name, from now on."""
        self._owners[name] = None
        try:
            await self.subscribe(BUS, BUS, "NameOwnerChanged", self._owner_changed, arg0=name)
            try:
                (owner,) = await self.call_bus("GetNameOwner", "s", [name])
            except BusError:
                owner = ""
        except BaseException:
            del self._owners[name]
            raise
        # A change that came in the same read as the answer was told before we go on here.
        if self._owners[name] is None:
            self._owners[name] = owner

    def on_new_owner(self, name: str, handler: Callable[[], None]) -> None:
        """Call `handler` when somebody else owns a name that was subscribed to."""
        self._owner_handlers[name] = handler

    async def has_owner(self, name: str) -> bool:
        """Say whether somebody owns this bus name."""
        (owned,) = await self.call_bus("NameHasOwner", "s", [name])
        return bool(owned)

    async def credentials(self, unique_name: str) -> Caller:
        """Ask the bus who a sender is. Raises BusError if it has left the bus."""
        (found,) = await self.call_bus("GetConnectionCredentials", "s", [unique_name])
        label, groups = found.get("LinuxSecurityLabel"), found.get("UnixGroupIDs")
        return Caller(
            unique_name=unique_name,
            uid=int(found["UnixUserID"].value),
            pid=int(found["ProcessID"].value) if "ProcessID" in found else 0,
            label=bytes(label.value).rstrip(b"\0").decode("utf-8", "replace") if label else "",
            groups=None if groups is None else tuple(groups.value),
        )

    def _on_message(self, msg: Message) -> None:
        match msg.message_type:
            case MessageType.METHOD_CALL if self._method_handler is not None:
                if self._read_calls:
                    try:
                        read_body(msg)
                    except ValueError as error:
                        msg.unread = str(error)
                self._method_handler(msg)
                return
            case MessageType.METHOD_RETURN | MessageType.ERROR:
                future = self._pending.get(msg.reply_serial)
                if future is not None and not future.done():
                    if not msg.unread and not msg.fds_lost:
                        future.set_result(msg)
                        return
                    why = msg.unread or "its descriptors did not get through"
                    future.set_exception(BusError(_UNREADABLE, f"the answer is not read: {why}"))
            case MessageType.SIGNAL if not msg.unread:
                self._on_signal(msg)
        _close_fds(msg)

    def _on_signal(self, msg: Message) -> None:
        first = msg.body[0] if msg.body and isinstance(msg.body[0], str) else ""
        for path in {"", msg.path}:
            for arg0 in {"", first}:
                key = (msg.interface, msg.member, path, arg0)
                for sender, handler in tuple(self._signals.get(key, ())):
                    owner = sender if sender == BUS else self._owners.get(sender)
                    if owner and msg.sender == owner:
                        handler(msg)

    def _owner_changed(self, msg: Message) -> None:
        name, _, new = msg.body
        if name in self._owners:
            self._owners[name] = new
            if new and name in self._owner_handlers:
                self._owner_handlers[name]()

    def _on_closed(self, _: object) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._wire.lost or BusLost("closed"))
        self._pending.clear()


def method_return(call: Message, signature: str, body: list[Any], fds: list[int]) -> Message:
    """Return the reply to a method call."""
    return Message(
        MessageType.METHOD_RETURN,
        destination=call.sender,
        reply_serial=call.serial,
        signature=signature,
        body=body,
        unix_fds=fds,
    )


def error_reply(call: Message, name: str, text: str) -> Message:
    """Return the error that answers a method call."""
    return Message(
        MessageType.ERROR,
        destination=call.sender,
        reply_serial=call.serial,
        error_name=name,
        signature="s",
        body=[text],
    )


def _close_fds(msg: Message) -> None:
    for fd in msg.unix_fds:
        os.close(fd)
    msg.unix_fds = []


def parse_introspection(
    text: str,
) -> dict[str, tuple[dict[str, tuple[str, str]], dict[str, str], dict[str, str]]]:
    """Return (methods with in and out signature, signals, properties) by interface name.

    Raises ValueError if the XML is not an introspection document.
    """
    try:
        node = Node.parse(text)
    except Exception as error:
        raise ValueError(str(error)) from error
    return {
        interface.name: (
            {m.name: (m.in_signature, m.out_signature) for m in interface.methods},
            {s.name: s.signature for s in interface.signals},
            {p.name: p.signature for p in interface.properties},
        )
        for interface in node.interfaces
    }
