# SPDX-License-Identifier: LGPL-2.1-or-later
"""The connection with a bus that a test plays: answers late, half, broken, or in one read."""

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from svirtd.host import message
from svirtd.host.bus import (
    BUS,
    BUS_PATH,
    BusError,
    Connection,
    Message,
    MessageType,
    error_reply,
    method_return,
)

NAME = "org.svirt1.Peer"
DEADLINE_S = 20.0


class Bus:
    """The other end of a connection. `answer` gets each call; what it returns goes out at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[Message] = []
        self.answer: Callable[[Message], list[Message]] = lambda msg: [reply(msg)]
        self.gone = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        for line in (b"OK 0123456789abcdef0123456789abcdef", b"AGREE_UNIX_FD"):
            await reader.readuntil(b"\r\n")
            writer.write(line + b"\r\n")
        assert await reader.readuntil(b"\r\n") == b"BEGIN\r\n"
        while True:
            try:
                raw = await reader.readexactly(16)
                raw += await reader.readexactly(message.size(bytearray(raw), 0) - 16)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                await writer.wait_closed()
                self.gone.set()
                return
            msg, at, _ = message.decode_header(raw)
            message.decode_body(raw, at, msg)
            if msg.member == "Hello":
                self.send(reply(msg, "s", ":1.1"))
                continue
            self.calls.append(msg)
            self.send(*self.answer(msg))

    def send(self, *messages: Message) -> None:
        """Send messages so that they come in one read."""
        assert self._writer is not None
        for number, msg in enumerate(messages):
            msg.serial = msg.serial or 1000 + number
        self._writer.write(b"".join(message.encode(msg) for msg in messages))

    def send_raw(self, raw: bytes) -> None:
        assert self._writer is not None
        self._writer.write(raw)


def reply(call: Message, signature: str = "", *body: Any) -> Message:
    return method_return(call, signature, list(body), [])


def signal(member: str, *body: str, sender: str, interface: str = NAME) -> Message:
    return Message(
        MessageType.SIGNAL,
        path="/peer",
        interface=interface,
        member=member,
        sender=sender,
        signature="s" * len(body),
        body=list(body),
    )


def run(tmp_path: Path, test: Callable[[Bus, Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        bus = Bus(str(tmp_path / "s"))
        server = await asyncio.start_unix_server(bus.serve, bus.path)
        connection = await Connection.open(f"unix:path={bus.path}")
        try:
            async with asyncio.timeout(DEADLINE_S):
                await test(bus, connection)
        finally:
            connection.close()
            await bus.gone.wait()
            server.close()
            await server.wait_closed()

    asyncio.run(main())


async def called(connection: Connection) -> None:
    """Wait until all that was sent before has been handled."""
    await connection.call_bus("Ping")


def test_a_handler_that_fails_takes_no_message_with_it(tmp_path: Path) -> None:
    """Neither those behind it in the same read nor, a second time, those before it."""

    async def test(bus: Bus, connection: Connection) -> None:
        heard: list[str] = []
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))

        def hear(msg: Message) -> None:
            heard.append(msg.member)
            if msg.member == "Bad":
                raise RuntimeError("cannot handle that")

        connection.handle_methods(hear)
        bus.send(*(Message(path="/", member=name, sender=":1.9") for name in ("A", "Bad", "B")))
        await called(connection)
        bus.send(Message(path="/", member="C", sender=":1.9"))
        await called(connection)
        assert heard == ["A", "Bad", "B", "C"]
        assert [str(what["exception"]) for what in failures] == ["cannot handle that"]

    run(tmp_path, test)


def test_an_owner_that_changes_in_the_moment_of_the_answer(tmp_path: Path) -> None:
    """The answer names the old owner, and the change stands behind it in the same read."""

    async def test(bus: Bus, connection: Connection) -> None:
        def answer(msg: Message) -> list[Message]:
            if msg.member != "GetNameOwner":
                return [reply(msg)]
            change = signal("NameOwnerChanged", NAME, ":1.5", ":1.6", sender=BUS, interface=BUS)
            return [reply(msg, "s", ":1.5"), change]

        bus.answer = answer
        heard: list[str] = []
        changes: list[str] = []
        connection.on_new_owner(NAME, lambda: changes.append("changed"))
        await connection.subscribe(NAME, NAME, "Told", lambda msg: heard.append(msg.body[0]))
        bus.send(signal("Told", "old", sender=":1.5"), signal("Told", "new", sender=":1.6"))
        await called(connection)
        assert (heard, changes) == (["new"], ["changed"])

    run(tmp_path, test)


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "not answered"])
def test_a_subscription_that_fails_leaves_nothing_behind(tmp_path: Path, silent: bool) -> None:
    async def test(bus: Bus, connection: Connection) -> None:
        def answer(msg: Message) -> list[Message]:
            if msg.member != "AddMatch":
                return [reply(msg)]
            return [] if silent else [error_reply(msg, "org.x.LimitsExceeded", "too many")]

        bus.answer = answer
        task = asyncio.ensure_future(
            connection.subscribe(BUS, BUS, "NameOwnerChanged", lambda _: None, arg0=":1.7")
        )
        if silent:
            while not bus.calls:  # noqa: ASYNC110 -- what is looked at belongs to the other side
                await asyncio.sleep(0.005)
            task.cancel()
        with pytest.raises((BusError, asyncio.CancelledError)):
            await task
        await called(connection)
        assert connection._signals == {}
        # A rule whose answer never came may stand all the same.
        assert ("RemoveMatch" in [msg.member for msg in bus.calls]) is silent

    run(tmp_path, test)


def test_an_answer_that_cannot_be_read_ends_the_wait(tmp_path: Path) -> None:
    async def test(bus: Bus, connection: Connection) -> None:
        def answer(msg: Message) -> list[Message]:
            broken = reply(msg, "s", "text")
            broken.serial = 7
            # The text's length points past the end of the message.
            bus.send_raw(message.encode(broken)[:-9] + b"\xff" + message.encode(broken)[-8:])
            return []

        bus.answer = answer
        with pytest.raises(BusError, match="the answer is not read"):
            await connection.call_bus("GetId", timeout_s=DEADLINE_S)
        assert connection._pending == {}

    run(tmp_path, test)


def test_a_deadline_says_who_did_not_answer_what(tmp_path: Path) -> None:
    async def test(bus: Bus, connection: Connection) -> None:
        bus.answer = lambda _: []
        with pytest.raises(TimeoutError, match=rf"{BUS} did not answer GetId within 0.01 s"):
            await connection.call(BUS, BUS_PATH, BUS, "GetId", timeout_s=0.01)

    run(tmp_path, test)


def test_a_message_whose_descriptors_have_no_room_leaves_none_open(tmp_path: Path) -> None:
    async def test(_bus: Bus, connection: Connection) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            before = os.listdir("/proc/self/fd")
            # Room for one more, where two are needed. The listing's own was one of them.
            free = max(int(fd) for fd in before) + 1
            spare = sorted(set(range(free)) - {int(fd) for fd in before})
            room = [os.dup(ours.fileno()) for _ in spare]
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                msg = Message(path="/", member="X", signature="hh", body=[0, 1])
                msg.unix_fds = [ours.fileno(), theirs.fileno()]
                with pytest.raises(OSError, match="Too many open files"):
                    connection.send(msg)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for fd in room:
                    os.close(fd)
            assert os.listdir("/proc/self/fd") == before

    run(tmp_path, test)
