# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's reader, router and handlers in the tester's own process, on a bus that a test plays.

A bus that validates shields the reader; here every byte reaches it. Behind the handlers stands an
engine that lets nobody do anything.
"""

import asyncio
import contextlib
import inspect
import os
import socket
import traceback
from pathlib import Path
from typing import Any, Final

from svirtd.api import contract
from svirtd.api.enrolled_objects import EnrolledObjects
from svirtd.api.group_objects import GroupObjects
from svirtd.api.hotplug_objects import HotplugObjects
from svirtd.api.objects import Objects
from svirtd.api.router import Router
from svirtd.config import Limits
from svirtd.errors import AccessDenied
from svirtd.host import message
from svirtd.host.bus import Connection, Message, Variant, method_return

SENDER: Final = ":1.4711"
_UID: Final = 65534
_READ_BYTES: Final = 1 << 20
_DEADLINE_S: Final = 30.0
_QUIET_TURNS: Final = 50


_WITH_HANDLERS: Final[dict[str, Any]] = {
    "enrolled": EnrolledObjects,
    "groups": GroupObjects,
    "hotplug": HotplugObjects,
}


class _Closed:
    """An engine, or any part of it: whatever is asked for is denied, whatever is read is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Closed()

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AccessDenied("nobody may do anything here")


class _Doors(_Closed):
    class config:  # noqa: N801 -- named as the daemon names it
        limits = Limits()


class Journal:
    """Keeps what was unexpected, and nothing else."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def record(self, *_: Any, **__: Any) -> None:
        """Take a record."""

    def exception(self, what: str, error: BaseException, **_: Any) -> None:
        """Take an unexpected error."""
        self.unexpected.append(f"{what}: {''.join(traceback.format_exception(error))}")


class Service:
    """One connection with the daemon's router behind it, and the bus's end of that."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.answers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._contract = contract.load()
        self.connection: Connection | None = None
        self._bus: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._inbox = bytearray()
        self._outbox = bytearray()

    async def open(self, folder: Path) -> None:
        """Connect as the daemon does."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        path = folder / "bus"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            opening = asyncio.ensure_future(Connection.open(f"unix:path={path}"))
            self._bus, _ = await loop.sock_accept(listener)
        path.unlink()
        self._bus.setblocking(False)
        for answer in (b"OK 0123456789abcdef0123456789abcdef\r\n", b"AGREE_UNIX_FD\r\n"):
            await self._line()
            await loop.sock_sendall(self._bus, answer)
        assert await self._line() == b"BEGIN\r\n"
        while not opening.done():
            await self.turn()
        self.connection = opening.result()
        serving = asyncio.ensure_future(self._router(self.connection).open())
        while not serving.done():
            await self.turn()
        serving.result()

    @property
    def lost(self) -> bool:
        """Whether the daemon has given up the connection."""
        return self.connection is None or self.connection._wire.lost is not None

    async def feed(self, raw: bytes) -> None:
        """Have the daemon read bytes, and take in what it answers."""
        self._outbox += raw
        while self._outbox and not self.lost:
            await self.turn()

    async def turn(self) -> None:
        """Let the daemon work, and answer what it asks the bus."""
        await asyncio.sleep(0)
        assert self._bus is not None
        # In turn, whole messages each: an answer does not come in the middle of a call.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            if self._outbox:
                del self._outbox[: self._bus.send(self._outbox)]
        try:
            data = self._bus.recv(_READ_BYTES)
        except (BlockingIOError, ConnectionResetError):
            return
        self._inbox += data
        while len(self._inbox) >= 16:
            size = message.size(self._inbox, 0)
            if len(self._inbox) < size:
                return
            msg, at, _ = message.decode_header(bytes(self._inbox[:size]))
            if msg.message_type.value == 1:
                message.decode_body(bytes(self._inbox[:size]), at, msg)
                self._answer(msg)
            else:
                self.answers += 1
            del self._inbox[:size]

    async def settle(self) -> None:
        """Wait until nothing is under way any more, and nothing waits to be taken in."""
        assert self.connection is not None
        async with asyncio.timeout(_DEADLINE_S):
            while self._tasks or (self.connection._wire._paused and not self.lost):
                await self.turn()
        # What is answered already goes out one message at a time.
        quiet, before = 0, self.answers
        while quiet < _QUIET_TURNS:
            await self.turn()
            quiet, before = (quiet + 1, before) if self.answers == before else (0, self.answers)

    async def answers_to(self, call: bytes) -> bool:
        """Say whether a call is answered."""
        before = self.answers
        await self.feed(call)
        async with asyncio.timeout(_DEADLINE_S):
            while self.answers == before and not self.lost:
                await self.turn()
        return self.answers == before + 1

    async def abandon(self) -> None:
        """End both ends, and what waits for an answer of the bus."""
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """End both ends."""
        if self.connection is not None:
            self.connection.close()
        if self._bus is not None:
            self._bus.close()
        self._inbox.clear()

    def _router(self, bus: Connection) -> Router:
        # The handlers are the daemon's own, those of its parts among them.
        parts: dict[str, Any] = {name: _Closed() for name in inspect.signature(Objects).parameters}
        for name, part in _WITH_HANDLERS.items():
            parts[name] = part(*(_Closed() for _ in inspect.signature(part).parameters))
        objects = Objects(**parts)
        objects._doors = _Doors()  # type: ignore[assignment]
        taken: dict[str, Any] = {
            "bus": bus, "objects": objects, "contract": self._contract, "journal": self.journal,
            "limits": Limits, "spawn": self._spawn,
        }  # fmt: skip
        parameters = list(inspect.signature(Router).parameters)
        return Router(**{name: taken.get(name, _Closed()) for name in parameters})

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self.lost:
            self.journal.exception("a task failed", task.exception() or RuntimeError())

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.journal.exception(context["message"], context.get("exception") or RuntimeError())

    def _answer(self, call: Message) -> None:
        """Be the bus: say who is who, and that all is well."""
        answers: dict[str, tuple[str, list[Any]]] = {
            "Hello": ("s", [":1.1"]),
            "GetConnectionCredentials": (
                "a{sv}",
                [{"UnixUserID": Variant("u", _UID), "ProcessID": Variant("u", os.getpid())}],
            ),
            "GetMachineId": ("s", ["0" * 32]),
            "GetNameOwner": ("s", [":1.0"]),
        }
        signature, body = answers.get(call.member, ("", []))
        reply = method_return(call, signature, body, [])
        reply.serial = 1
        reply.sender = "org.freedesktop.DBus"
        self._outbox += message.encode(reply)

    async def _line(self) -> bytes:
        assert self._bus is not None
        line = b""
        while not line.endswith(b"\r\n"):
            line += await asyncio.get_running_loop().sock_recv(self._bus, 1)
        return line.lstrip(b"\0")
