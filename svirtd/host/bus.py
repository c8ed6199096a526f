# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus connection: the only user of dbus-next's transport.

dbus-next 0.2.3 is used as a wire library (addresses, authentication, signatures, introspection).
Its reader and writer are replaced, because a write that meets EAGAIN kills its connection, its
reader makes several system calls for each message, and `call()` has no deadline.
"""

import array
import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbus_next.aio import MessageBus
from dbus_next.constants import BusType, MessageFlag, MessageType
from dbus_next.introspection import Node

from svirtd.core.model import Caller
from svirtd.host import codec
from svirtd.host.codec import Message, Variant

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
    "escape_path",
    "method_return",
    "parse_introspection",
    "unescape_path",
]

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"

# A peer gets its own messages dropped by the bus long before; if *we* cannot hand this much to the
# bus, the bus has stopped reading and the connection is useless.
_QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024
# The kernel refuses more descriptors than this in one message (SCM_MAX_FD).
_READ_FDS: Final = 253
_SEND_JOIN_BYTES: Final = 128 * 1024

SignalHandler = Callable[[Message], None]


class BusError(Exception):
    """The peer answered with an error. `name` is the D-Bus error name, `text` its message."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class BusLost(Exception):
    """The connection to the bus has ended."""


def escape_path(label: str) -> str:
    """Return `label` as one element of an object path, escaped as sd-bus does it."""
    if not label:
        return "_"
    out = []
    for position, byte in enumerate(label.encode()):
        char = chr(byte)
        plain = char.isascii() and char.isalnum() and not (position == 0 and char.isdigit())
        out.append(char if plain else f"_{byte:02x}")
    return "".join(out)


def unescape_path(element: str) -> str | None:
    """Return the label behind an escaped path element, None if it is not one."""
    if element == "_":
        return ""
    if not re.fullmatch(r"(?:[A-Za-z0-9]|_[0-9a-f]{2})+", element):
        return None
    raw = re.sub(r"_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), element)
    try:
        label = raw.encode("latin-1").decode()
    except UnicodeDecodeError:
        return None
    # Only the canonical spelling is an object: two paths for one VM would confuse every cache.
    return label if escape_path(label) == element else None


class _Writer:
    """Sends one message after the other from a bounded queue; survives EAGAIN."""

    def __init__(self, bus: "_Wire") -> None:
        self._bus = bus
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._queued_bytes = 0
        self._offset = 0
        self._flush_planned = False
        self._waiting = False
        self.idle = asyncio.Event()
        self.idle.set()

    # dbus-next's own code calls this name.
    def schedule_write(self) -> None:
        """Nothing waits for the greeting: we send only once it is over."""

    def put(self, msg: Message) -> None:
        data = codec.encode(msg)
        fds = tuple(os.dup(fd) for fd in msg.unix_fds)
        self._queue.append((data, fds))
        self.idle.clear()
        self._queued_bytes += len(data)
        if self._queued_bytes > _QUEUE_MAX_BYTES:
            self._bus.lose(BusLost(f"the bus has not read for {self._queued_bytes} bytes"))
            return
        if not self._flush_planned and not self._waiting:
            self._flush_planned = True
            self._bus.loop.call_soon(self._flush)

    def close(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self._queued_bytes = 0
        self.idle.set()

    def _flush(self) -> None:
        self._flush_planned = False
        if self._bus.lost:
            self.close()
            return
        try:
            while self._queue:
                if not self._send_some():
                    if not self._waiting:
                        self._waiting = True
                        self._bus.loop.add_writer(self._bus.fileno, self._flush)
                    return
        except OSError as error:
            self._bus.lose(BusLost(f"writing to the bus: {error.strerror}"))
            return
        self.idle.set()
        if self._waiting:
            self._waiting = False
            self._bus.loop.remove_writer(self._bus.fileno)

    def _send_some(self) -> bool:
        """Send as much as the socket takes of the first message(s); False on EAGAIN."""
        data, fds = self._queue[0]
        try:
            if fds and self._offset == 0:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sent = self._bus.sock.sendmsg([data], rights)
                for fd in fds:
                    os.close(fd)
                self._queue[0] = (data, ())
            elif not self._offset and len(self._queue) > 1 and not self._queue[1][1]:
                sent = self._bus.sock.send(self._join())
            else:
                sent = self._bus.sock.send(memoryview(data)[self._offset :])
        except BlockingIOError:
            return False
        self._take(sent)
        return True

    def _join(self) -> bytes:
        """Return the next messages that carry no descriptors as one block."""
        parts, size = [], 0
        for data, fds in self._queue:
            if fds or size > _SEND_JOIN_BYTES:
                break
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    def _take(self, sent: int) -> None:
        self._queued_bytes -= sent
        sent += self._offset
        while self._queue and sent >= len(self._queue[0][0]):
            sent -= len(self._queue.popleft()[0])
        self._offset = sent


class _Wire(MessageBus):  # type: ignore[misc]  # dbus-next carries no types
    """dbus-next's bus with our reader and writer, handing every message to one callback."""

    def __init__(self, address: str | None) -> None:
        if address is None:
            super().__init__(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
        else:
            super().__init__(bus_address=address, negotiate_unix_fd=True)
        self.loop = asyncio.get_running_loop()
        self.sock: socket.socket = self._sock
        self.fileno: int = self._fd
        self.lost: BusLost | None = None
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.receive: Callable[[Message], None] | None = None
        self.errors = 0
        self._writer = _Writer(self)
        self._inbox = bytearray()
        self._inbox_fds: deque[int] = deque()

    def send(self, msg: Message) -> None:
        if self.lost:
            raise self.lost
        if not msg.serial:
            msg.serial = self.next_serial()
        self._writer.put(msg)

    async def drained(self) -> None:
        if not self.lost:
            await self._writer.idle.wait()

    def lose(self, reason: BusLost) -> None:
        if self.lost:
            return
        self.lost = reason
        self.loop.remove_reader(self.fileno)
        self.loop.remove_writer(self.fileno)
        self._writer.close()
        while self._inbox_fds:
            os.close(self._inbox_fds.popleft())
        self._stream.close()
        self.sock.close()
        if not self.closed.done():
            self.closed.set_result(None)

    def _message_reader(self) -> None:
        try:
            data, ancillary, *_ = self.sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_READ_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(BusLost(f"reading from the bus: {error.strerror}"))
            return
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
                self._inbox_fds.extend(fds)
        if not data:
            self.lose(BusLost("the bus closed the connection"))
            return
        self._inbox += data
        self._cut_messages()

    def _cut_messages(self) -> None:
        inbox, start = self._inbox, 0
        while len(inbox) - start >= 16 and not self.lost:
            try:
                size = codec.size(inbox, start)
            except ValueError as error:
                self.lose(BusLost(f"the bus sent {error}"))
                return
            if len(inbox) - start < size:
                break
            raw = bytes(memoryview(inbox)[start : start + size])
            start += size
            self._one_message(raw)
        if start:
            del inbox[:start]

    def _one_message(self, raw: bytes) -> None:
        try:
            msg, fds = codec.decode(raw)
        except ValueError:
            # One that cannot be read must not end the service. Whose descriptors came with it
            # cannot be known any more; none of them is kept.
            self.errors += 1
            while self._inbox_fds:
                os.close(self._inbox_fds.popleft())
            return
        # Descriptors arrive in order; the header says how many belong to this message.
        if fds > len(self._inbox_fds):
            self.lose(BusLost("a message announced more descriptors than it brought"))
            return
        msg.unix_fds = [self._inbox_fds.popleft() for _ in range(fds)]
        handler = self._method_return_handlers.pop(msg.reply_serial, None)
        if handler is not None:  # only dbus-next's own Hello
            handler(msg, None)
        elif self.receive is not None:
            self.receive(msg)


class Connection:
    """One connection to a message bus.

    Every wait for a peer has a deadline (`asyncio.TimeoutError` past it). Descriptors of a
    received message belong to whoever handles the message; those of a message that nobody
    handles are closed here.
    """

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._method_handler: Callable[[Message], None] | None = None
        # By interface, member, path and first argument; the last two empty where any will do.
        self._signals: dict[tuple[str, str, str, str], list[tuple[str, SignalHandler]]] = {}
        self._owners: dict[str, str] = {}
        wire.receive = self._on_message
        wire.closed.add_done_callback(self._on_closed)

    @classmethod
    async def open(cls, address: str | None = None, *, timeout_s: float = 10.0) -> "Connection":
        """Connect to `address`, or to the system bus (DBUS_SYSTEM_BUS_ADDRESS is honoured).

        Raises BusLost with the reason if there is no bus there.
        """
        wire = None
        try:
            wire = _Wire(address)
            async with asyncio.timeout(timeout_s):
                await wire.connect()
        except Exception as error:
            if wire is not None:
                wire.lose(BusLost("not connected"))
            raise BusLost(f"cannot connect to the bus: {error or type(error).__name__}") from error
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

    def handle_methods(self, handler: Callable[[Message], None]) -> None:
        """Let `handler` have every incoming method call."""
        self._method_handler = handler

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
        arg0: str = "",
    ) -> Callable[[], None]:
        """Call `handler` for each such signal of the owner of the well-known name `sender`.

        The sender is checked against the bus's word on who owns the name: anybody may send us
        a signal directly, and a stranger's must not count. An empty path stands for any.
        Returns a function that ends the subscription.
        """
        rule = f"type='signal',sender='{sender}',interface='{interface}',member='{member}'"
        rule += f",path='{path}'" if path else ""
        rule += f",arg0='{arg0}'" if arg0 else ""
        if sender != BUS and sender not in self._owners:
            self._owners[sender] = ""
            await self.subscribe(BUS, BUS, "NameOwnerChanged", self._owner_changed, arg0=sender)
            try:
                (self._owners[sender],) = await self.call_bus("GetNameOwner", "s", [sender])
            except BusError:
                self._owners[sender] = ""
        entry = (sender, handler)
        key = (interface, member, path, arg0)
        self._signals.setdefault(key, []).append(entry)
        await self.call_bus("AddMatch", "s", [rule])

        def end() -> None:
            entries = self._signals.get(key, [])
            if entry in entries:
                entries.remove(entry)
                if not entries:
                    del self._signals[key]
                if not self._wire.lost:
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

        return end

    async def has_owner(self, name: str) -> bool:
        """Say whether somebody owns this bus name."""
        (owned,) = await self.call_bus("NameHasOwner", "s", [name])
        return bool(owned)

    async def credentials(self, unique_name: str) -> Caller:
        """Ask the bus who a sender is. Raises BusError if it has left the bus."""
        (found,) = await self.call_bus("GetConnectionCredentials", "s", [unique_name])
        label = found.get("LinuxSecurityLabel")
        return Caller(
            unique_name=unique_name,
            uid=int(found["UnixUserID"].value),
            pid=int(found["ProcessID"].value) if "ProcessID" in found else 0,
            label=bytes(label.value).rstrip(b"\0").decode("utf-8", "replace") if label else "",
        )

    def _on_message(self, msg: Message) -> None:
        match msg.message_type:
            case MessageType.METHOD_CALL if self._method_handler is not None:
                self._method_handler(msg)
                return
            case MessageType.METHOD_RETURN | MessageType.ERROR:
                future = self._pending.get(msg.reply_serial)
                if future is not None and not future.done():
                    future.set_result(msg)
                    return
            case MessageType.SIGNAL:
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
