# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes to and from a message bus: dbus-next's connection with our reader and writer.

dbus-next 0.2.3 finds the bus and authenticates. Its own writer dies when the socket is full, and
its reader makes several system calls for each message.
"""

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dbus_next.aio import MessageBus
from dbus_next.constants import BusType, MessageType

from svirtd.host import message
from svirtd.host.message import Message
from svirtd.host.mute import Muted

# A peer gets its own messages dropped by the bus long before; if *we* cannot hand this much to the
# bus, the bus has stopped reading and the connection is useless.
_QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024
# Messages taken in before the loop has its turn; one that is dropped unread is a part of one.
_MESSAGES_AT_ONCE: Final = 16
_DROPPED_COSTS: Final = 1 / 64
# The kernel refuses more descriptors than this in one message (SCM_MAX_FD).
_READ_FDS: Final = 253
_SEND_JOIN_BYTES: Final = 128 * 1024


class BusLost(Exception):
    """The connection to the bus has ended."""


class _Writer:
    """Sends one message after the other from a bounded queue; survives EAGAIN."""

    def __init__(self, bus: "Wire") -> None:
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
        data = message.encode(msg)
        self._queue.append((data, _duplicates(msg.unix_fds)))
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


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    """Return descriptors of our own for the same; all or none. Raises OSError."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return tuple(made)


@dataclass(frozen=True, slots=True)
class _Rights:
    """Descriptors that came together. Not `whole`: the kernel kept some of them back."""

    fds: "array.array[int]"
    whole: bool = True

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Wire(MessageBus):  # type: ignore[misc]  # dbus-next carries no types
    """dbus-next's bus with our reader and writer, handing every message to one callback."""

    def __init__(self, address: str | None) -> None:
        try:
            if address is None:
                super().__init__(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            else:
                super().__init__(bus_address=address, negotiate_unix_fd=True)
        except BaseException:
            # dbus-next makes its socket first and leaves it open where it cannot connect.
            for made in ("_stream", "_sock"):
                if hasattr(self, made):
                    getattr(self, made).close()
            raise
        self.loop = asyncio.get_running_loop()
        self.sock: socket.socket = self._sock
        self.fileno: int = self._fd
        self.lost: BusLost | None = None
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.receive: Callable[[Message], None] | None = None
        self.errors = 0
        self.call_max_bytes = message.MESSAGE_MAX
        self._writer = _Writer(self)
        self._inbox = bytearray()
        # More of the inbox is cut in the loop's next turn; until then nothing is read.
        self._cut_planned = self._paused = False
        self.muted = Muted()
        # What came with one read; the bus sends all descriptors of a message at once.
        self._inbox_fds: deque[_Rights] = deque()

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
            self._inbox_fds.popleft().close()
        self._stream.close()
        self.sock.close()
        if not self.closed.done():
            self.closed.set_result(None)

    def _message_reader(self) -> None:
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_READ_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(BusLost(f"reading from the bus: {error.strerror}"))
            return
        fds = array.array("i")
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        if fds or flags & socket.MSG_CTRUNC:
            self._inbox_fds.append(_Rights(fds, whole=not flags & socket.MSG_CTRUNC))
        if not data:
            self.lose(BusLost("the bus closed the connection"))
            return
        self._inbox += data
        self._cut_messages()

    def _cut_messages(self) -> None:
        self._cut_planned = False
        inbox, start, left = self._inbox, 0, float(_MESSAGES_AT_ONCE)
        muted = bool(self.muted)
        while len(inbox) - start >= 16 and not self.lost:
            if left <= 0:
                # What is under way gets its turn before more is taken in: whoever sends many
                # must not keep the loop from those who sent one.
                self._pause()
                break
            try:
                size = message.size(inbox, start)
            except ValueError as error:
                self.lose(BusLost(f"the bus sent {error}"))
                return
            if len(inbox) - start < size:
                break
            raw = bytes(memoryview(inbox)[start : start + size])
            start += size
            if muted and self.muted.drops(raw):
                left -= _DROPPED_COSTS
                continue
            left -= 1
            try:
                self._one_message(raw)
            except Exception as error:  # noqa: BLE001 -- handed on with its traceback
                # It concerns this message: those behind it, which the socket does not announce
                # again, are read, and those before it are not read twice.
                self.loop.call_exception_handler(
                    {"message": "a message could not be handled", "exception": error}
                )
        if start:
            del inbox[:start]
        if not self._cut_planned and self._paused and not self.lost:
            self._paused = False
            self.loop.add_reader(self.fileno, self._message_reader)

    def _pause(self) -> None:
        self._cut_planned = True
        if not self._paused:
            self._paused = True
            self.loop.remove_reader(self.fileno)
        self.loop.call_soon(self._cut_messages)

    def _one_message(self, raw: bytes) -> None:
        try:
            msg, body, fds = message.decode_header(raw)
        except ValueError:
            # A type or field that we do not know must not end the service. Only its header says
            # whose the descriptors are that came meanwhile: with some waiting there is no way on.
            self.errors += 1
            if self._inbox_fds:
                self.lose(BusLost("a message that cannot be read came with descriptors"))
            return
        if fds and not self._take_fds(msg, fds):
            return
        if not msg.fds_lost:
            self._read_body(raw, body, msg)
        handler = self._method_return_handlers.pop(msg.reply_serial, None)
        if handler is not None:  # only dbus-next's own Hello
            handler(msg, None)
        elif self.receive is not None:
            self.receive(msg)

    def _take_fds(self, msg: Message, announced: int) -> bool:
        """Give a message its descriptors; False if the connection cannot go on."""
        rights = self._inbox_fds.popleft() if self._inbox_fds else _Rights(array.array("i"))
        if not rights.whole:
            # The kernel kept some back: a security policy that does not let us have them, or no
            # room. That is this message's trouble; whoever sent it must not end the service.
            rights.close()
            self.errors += 1
            msg.fds_lost = True
            return True
        if len(rights.fds) != announced:
            rights.close()
            self.lose(BusLost(f"a message brought {len(rights.fds)} of {announced} descriptors"))
            return False
        msg.unix_fds = list(rights.fds)
        return True

    def _read_body(self, raw: bytes, at: int, msg: Message) -> None:
        """Read the body, but that of a method call, which takes memory and time: whoever handles
        it reads it once it is known who the sender is, and that his turn has come."""
        if msg.message_type is MessageType.METHOD_CALL:
            if len(raw) > self.call_max_bytes:
                msg.unread = f"a call of {len(raw)} bytes; at most {self.call_max_bytes} are read"
            else:
                msg.raw, msg.body_at = raw, at
            return
        try:
            message.decode_body(raw, at, msg)
        except ValueError as error:
            self.errors += 1
            msg.body, msg.unread = [], str(error)
