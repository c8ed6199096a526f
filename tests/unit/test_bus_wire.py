# SPDX-License-Identifier: LGPL-2.1-or-later
"""The connection against a real bus: full sockets, descriptors, deadlines, strangers' signals."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from svirtd.host.bus import (
    BUS,
    BusError,
    BusLost,
    Connection,
    Message,
    MessageFlag,
    MessageType,
    Variant,
    error_reply,
    method_return,
)

NAME = "org.svirt1.Test"
PATH = "/test"
INTERFACE = "org.svirt1.Test"
DEADLINE_S = 20.0

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_message_size">130000000</limit>
</busconfig>
"""


@pytest.fixture
def bus_process(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A bus of the test's own: its address and its process."""
    config = tmp_path / "bus.conf"
    config.write_text(_CONFIG.replace("{socket}", str(tmp_path / "s")))
    with subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--print-address", "--nofork"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            yield address.partition(",")[0], process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


@pytest.fixture
def bus(bus_process: tuple[str, subprocess.Popen[str]]) -> str:
    return bus_process[0]


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


Test = Callable[[Connection, Connection], Awaitable[None]]


def run(bus: str, test: Test) -> None:
    """Run a test with a server, which owns NAME, and a client."""

    async def main() -> None:
        server, client = await Connection.open(bus), await Connection.open(bus)
        try:
            assert await server.request_name(NAME)
            async with asyncio.timeout(60):
                await test(server, client)
        finally:
            server.close()
            client.close()

    asyncio.run(main())


def call(client: Connection, member: str, signature: str = "", *body: Any, **more: Any) -> Any:
    more = {"timeout_s": DEADLINE_S, **more}
    return client.call(NAME, PATH, INTERFACE, member, signature, body, **more)


def emit(
    connection: Connection, member: str, *body: str, to: str = "", interface: str = INTERFACE
) -> None:
    connection.send(
        Message(
            MessageType.SIGNAL,
            path=PATH,
            interface=interface,
            member=member,
            destination=to,
            signature="s" * len(body),
            body=list(body),
        )
    )


async def until(what: str, look: Callable[[], Any]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not look():  # noqa: ASYNC110 -- what is looked at belongs to the other side
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not seen: {what}") from None


def test_thousands_of_messages_to_a_bus_that_reads_slowly(
    bus_process: tuple[str, subprocess.Popen[str]],
) -> None:
    """The socket is full after a few of them; each arrives, once and in order."""
    address, process = bus_process
    count, filler = 900, "x" * 65536  # below what may wait: 64 MiB

    async def test(server: Connection, client: Connection) -> None:
        heard: list[str] = []
        end = await client.subscribe(NAME, INTERFACE, "Many", lambda m: heard.append(m.body[0]))
        process.send_signal(signal.SIGSTOP)
        for number in range(count):
            emit(server, "Many", str(number), filler)
        for number in range(count, count + 4000):
            emit(server, "Many", str(number), "small")
        await asyncio.sleep(0)
        process.send_signal(signal.SIGCONT)
        await server.drain(DEADLINE_S)
        await until("every message", lambda: len(heard) >= count + 4000)
        assert heard == [str(number) for number in range(count + 4000)]
        end()
        assert await server.call_bus("GetId") == await client.call_bus("GetId")

    run(address, test)


def test_a_bus_that_never_reads_is_given_up(
    bus_process: tuple[str, subprocess.Popen[str]],
) -> None:
    address, process = bus_process

    async def test(server: Connection, _client: Connection) -> None:
        process.send_signal(signal.SIGSTOP)
        for _ in range(1020):
            emit(server, "Many", "x" * 65536)
        # That was nearly 64 MiB; the message that makes it more ends the connection.
        emit(server, "Many", "x" * 1_000_000)
        with pytest.raises(BusLost, match="the bus has not read"):
            emit(server, "Many", "x")
        process.send_signal(signal.SIGCONT)
        assert "has not read" in str(await server.wait_closed())

    run(address, test)


def test_descriptors_in_and_out(bus: str, tmp_path: Path) -> None:
    async def test(server: Connection, client: Connection) -> None:
        def answer(msg: Message) -> None:
            assert len(msg.unix_fds) == 3
            read = [os.read(fd, 100) for fd in msg.unix_fds]
            for fd in msg.unix_fds:
                os.close(fd)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.send(b"|".join(read))
                server.send(method_return(msg, "h", [0], [theirs.fileno()]))

        server.handle_methods(answer)
        files = []
        for number in range(3):
            (tmp_path / f"{number}").write_text(f"file {number}")
            files.append(os.open(tmp_path / f"{number}", os.O_RDONLY))
        # Others without descriptors around it, so that they share reads and writes.
        for _ in range(50):
            emit(client, "Noise", "n", to=NAME)
        reply = await call(client, "Swap", "hhh", 0, 1, 2, fds=files)
        for fd in files:
            os.close(fd)
        (fd,) = reply.unix_fds
        with socket.socket(fileno=fd) as theirs:
            assert theirs.recv(100) == b"file 0|file 1|file 2"

    run(bus, test)


def test_descriptors_that_nobody_handles_are_closed(bus: str) -> None:
    async def test(server: Connection, client: Connection) -> None:
        seen: list[str] = []
        server.handle_methods(lambda m: seen.append(m.member) or _close(m))  # type: ignore[func-returns-value]
        before = len(os.listdir("/proc/self/fd"))
        with _null() as null:
            for member in ("Unasked", "Last"):
                msg = Message(
                    MessageType.SIGNAL if member == "Unasked" else MessageType.METHOD_CALL,
                    path=PATH, interface=INTERFACE, member=member, destination=NAME,
                    signature="h", body=[0], unix_fds=[null.fileno()],
                )  # fmt: skip
                client.send(msg)
            await until("the last", lambda: seen == ["Last"])
        await client.drain(DEADLINE_S)
        assert len(os.listdir("/proc/self/fd")) == before

    run(bus, test)


def test_descriptors_that_cannot_be_received_are_their_messages_trouble(
    bus_process: tuple[str, subprocess.Popen[str]],
) -> None:
    """As on a host whose policy keeps a descriptor from us: here there is no room for it."""
    address, process = bus_process

    async def test(server: Connection, client: Connection) -> None:
        heard: list[Message] = []

        def answer(msg: Message) -> None:
            heard.append(msg)
            server.send(method_return(msg, "", [], []))

        server.handle_methods(answer)
        with _null() as null:
            # The bus holds it back until there is no room.
            process.send_signal(signal.SIGSTOP)
            first = asyncio.ensure_future(call(client, "Take", "hh", 0, 1, fds=[null.fileno()] * 2))
            await asyncio.sleep(0)
            await client.drain(DEADLINE_S)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            process.send_signal(signal.SIGCONT)
            try:
                await first
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await call(client, "Take", "h", 0, fds=[null.fileno()])
        lost, fine = heard
        assert (lost.fds_lost, lost.body, lost.unix_fds) == (True, [], [])
        assert (fine.fds_lost, fine.body, len(fine.unix_fds)) == (False, [0], 1)
        _close(fine)

    run(address, test)


def _null() -> IO[bytes]:
    return open("/dev/null", "rb")


def _close(msg: Message) -> None:
    for fd in msg.unix_fds:
        os.close(fd)


def test_a_deadline_leaves_nothing_behind(bus: str) -> None:
    async def test(server: Connection, client: Connection) -> None:
        late: list[Message] = []
        server.handle_methods(late.append)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await call(client, "Never", timeout_s=0.01)
        assert client._pending == {}
        await until("the calls", lambda: len(late) == 20)
        # Answers that come after all, with descriptors, find nobody and are closed.
        with _null() as null:
            for msg in late:
                server.send(method_return(msg, "h", [0], [null.fileno()]))
        server.handle_methods(lambda msg: server.send(method_return(msg, "s", ["pong"], [])))
        assert (await call(client, "Ping")).body == ["pong"]
        assert client._pending == {}

    run(bus, test)


def test_errors_are_the_peers(bus: str) -> None:
    async def test(server: Connection, client: Connection) -> None:
        server.handle_methods(
            lambda m: server.send(error_reply(m, "org.svirt1.Error.Failed", "éé"))
        )
        with pytest.raises(BusError) as refused:
            await call(client, "Fail")
        assert (refused.value.name, refused.value.text) == ("org.svirt1.Error.Failed", "éé")
        with pytest.raises(BusError, match="ServiceUnknown"):
            await client.call("org.nowhere", PATH, INTERFACE, "X", timeout_s=DEADLINE_S)
        # What cannot be sent is refused here, and the connection lives on.
        with pytest.raises(ValueError, match="fit"):
            await call(client, "Bad", "u", "text")
        for bad in ("a\0b", "\ud800"):
            with pytest.raises(ValueError):  # noqa: PT011 -- of the codec or of Python's own
                await call(client, "Bad", "s", bad)
        assert client._pending == {}
        assert len(await client.call_bus("GetId")) == 1

    run(bus, test)


def test_signals_of_strangers_do_not_count(bus: str) -> None:
    async def test(server: Connection, client: Connection) -> None:
        stranger = await Connection.open(bus)
        heard: list[str] = []

        def hear(msg: Message) -> None:
            heard.append(msg.body[0])

        await client.subscribe(NAME, INTERFACE, "Told", hear)
        await client.subscribe(BUS, BUS, "NameOwnerChanged", hear, arg0="org.svirt1.Other")
        for to in ("", client.unique_name):
            emit(stranger, "Told", "forged", to=to)
            emit(stranger, "NameOwnerChanged", "org.svirt1.Other", "", ":1.7", to=to, interface=BUS)
            emit(stranger, "NameOwnerChanged", NAME, "", stranger.unique_name, to=to, interface=BUS)
        emit(server, "Told", "true")
        await until("the owner's", lambda: heard == ["true"])
        # The name goes to another: from then on it is that one's word that counts.
        await server.call_bus("ReleaseName", "s", [NAME])
        assert await stranger.request_name(NAME)
        emit(server, "Told", "former owner", to=client.unique_name)
        emit(stranger, "Told", "new owner")
        await until("the new owner's", lambda: len(heard) >= 2)
        assert heard == ["true", "new owner"]
        stranger.close()

    run(bus, test)


def test_an_ended_subscription_hears_nothing(bus: str) -> None:
    async def test(server: Connection, client: Connection) -> None:
        first: list[str] = []
        second: list[str] = []
        end = await client.subscribe(NAME, INTERFACE, "Told", lambda m: first.append(m.body[0]))
        await client.subscribe(NAME, INTERFACE, "Told", lambda m: second.append(m.body[0]))
        emit(server, "Told", "one")
        await until("both", lambda: first == second == ["one"])
        end()
        end()
        emit(server, "Told", "two")
        await until("the second", lambda: second == ["one", "two"])
        assert first == ["one"]

    run(bus, test)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("s", ["x" * 40_000_000]),
        ("ay", [bytes(20_000_000)]),
        ("as", [["y" * 100] * 50_000]),
        ("aa{sv}", [[{"path": Variant("s", "/a" * 50), "n": Variant("t", 2**64 - 1)}] * 5_000]),
    ],
    ids=["text", "bytes", "texts", "dictionaries"],
)
def test_huge_messages_come_back_whole(bus: str, signature: str, body: list[Any]) -> None:
    async def test(server: Connection, client: Connection) -> None:
        server.handle_methods(lambda m: server.send(method_return(m, m.signature, m.body, [])))
        reply = await call(client, "Echo", signature, *body)
        assert reply.body == body

    run(bus, test)


def test_a_lost_bus_ends_every_wait(bus_process: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = bus_process

    async def test(server: Connection, client: Connection) -> None:
        server.handle_methods(lambda _: None)
        waiting = [asyncio.ensure_future(call(client, "Never")) for _ in range(5)]
        await asyncio.sleep(0)
        process.kill()
        for one in waiting:
            with pytest.raises(BusLost, match=r"bus closed|(reading from|writing to) the bus"):
                await one
        await client.wait_closed()
        with pytest.raises(BusLost):
            await client.call_bus("GetId")

    run(address, test)


def test_no_bus() -> None:
    with pytest.raises(BusLost, match="cannot connect to the bus"):
        asyncio.run(_open("unix:path=/nowhere/bus"))


async def _open(address: str) -> None:
    await Connection.open(address)


def test_a_bus_that_does_not_greet(tmp_path: Path) -> None:
    async def main() -> None:
        await Connection.open(f"unix:path={tmp_path}/mute", timeout_s=0.1)

    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        with pytest.raises(BusLost, match="cannot connect to the bus"):
            asyncio.run(main())


def test_many_messages_leave_the_loop_to_others(bus: str) -> None:
    """Whoever sends a thousand messages at once keeps nobody's turn for longer than a few."""

    async def work() -> None:
        service, client = await Connection.open(bus), await Connection.open(bus)
        turn, turns, done = 0, list[int](), asyncio.Event()

        def count() -> None:
            nonlocal turn
            turn += 1
            if not done.is_set():
                asyncio.get_running_loop().call_soon(count)

        def take(_: Message) -> None:
            turns.append(turn)
            if len(turns) == 1000:
                done.set()

        service.handle_methods(take)
        for _ in range(1000):
            client.send(
                Message(
                    MessageType.METHOD_CALL,
                    destination=service.unique_name,
                    path=PATH,
                    interface=INTERFACE,
                    member="Any",
                    flags=MessageFlag.NO_REPLY_EXPECTED,
                )
            )
        count()
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()
        assert max(turns.count(one) for one in set(turns)) <= 32
        # Nothing was left behind in the inbox, and it reads on.
        assert await service.call_bus("GetId")
        service.close()
        client.close()

    asyncio.run(work())
