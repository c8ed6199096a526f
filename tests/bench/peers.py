# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client that drives echo and svirtd alike, and the two as processes."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

from tests.bench import echo
from tests.bus.agent import acting_as
from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S, MANAGER, NAME, REPO, ROOT, Daemon

_POLICY_FOLDER = Path("/usr/share/dbus-1/system.d")  # the sandbox's own
_POLICY = f"""\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <policy user="root">
    <allow own="{echo.NAME}"/>
    <allow send_destination="{echo.NAME}"/>
  </policy>
</busconfig>
"""
_BUS = "org.freedesktop.DBus"
_BUS_PATH = "/org/freedesktop/DBus"


class Caller:
    """A client of the system bus on dbus-next as it comes: what a program of a user's would be."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self._owned: dict[str, asyncio.Future[float]] = {}
        bus.add_message_handler(self._on_message)

    @classmethod
    async def open(cls) -> "Caller":
        """Connect, and let echo have its name on this bus."""
        caller = cls(await MessageBus(bus_type=BusType.SYSTEM).connect())
        (_POLICY_FOLDER / f"{echo.NAME}.conf").write_text(_POLICY)
        await caller.call(_BUS, _BUS_PATH, _BUS, "ReloadConfig", "", [])
        rule = f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged'"
        await caller.call(_BUS, _BUS_PATH, _BUS, "AddMatch", "s", [rule])
        return caller

    @classmethod
    async def open_as(cls, account: Account) -> "Caller":
        """Connect as another user."""
        with acting_as(account):
            return cls(await MessageBus(bus_type=BusType.SYSTEM).connect())

    async def close(self) -> None:
        """End the connection."""
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()
        # dbus-next leaves its socket open.
        self._bus._sock.close()

    async def call(
        self, to: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        """Call a method and return the reply's body. Raises RuntimeError with the peer's error.

        Has no deadline of its own, which would cost as much as it measures: see `in_time`.
        """
        msg = Message(
            destination=to,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        reply = await self._bus.call(msg)
        if reply.message_type is MessageType.ERROR:
            raise RuntimeError(f"{member} failed: {reply.error_name}: {reply.body}")
        return list(reply.body)

    async def echo(self, text: str) -> None:
        """Have echo return a text."""
        await self.call(echo.NAME, echo.PATH, echo.INTERFACE, "Echo", "s", [text])

    async def echo_acquire(self, name: str, disks: Sequence[Path] = ()) -> None:
        """Send echo what `acquire` sends svirtd."""
        body = [name, _resources(disks), {}]
        await self.call(echo.NAME, echo.PATH, echo.INTERFACE, "Echo", "saa{sv}a{sv}", body)

    async def ping(self, _name: str) -> None:
        """Have svirtd answer without doing anything."""
        await self.call(NAME, ROOT, "org.freedesktop.DBus.Peer", "Ping", "", [])

    async def ask_bus(self) -> None:
        """Have the bus itself answer."""
        await self.call(_BUS, _BUS_PATH, _BUS, "GetId", "", [])

    async def acquire(self, name: str, disks: Sequence[Path] = ()) -> None:
        """Acquire a VM with these disks, each for itself alone."""
        body = [name, _resources(disks), {}]
        await self.call(NAME, ROOT, MANAGER, "Acquire", "saa{sv}a{sv}", body)

    async def release(self, name: str) -> None:
        """Release a VM."""
        await self.call(NAME, ROOT, MANAGER, "Release", "sa{sv}", [name, {}])

    def owned(self, name: str) -> "asyncio.Future[float]":
        """Return a future for the clock's time at which somebody next comes to own a name."""
        self._owned[name] = asyncio.get_running_loop().create_future()
        return self._owned[name]

    def _on_message(self, msg: Message) -> None:
        if msg.member == "NameOwnerChanged" and msg.sender == _BUS and msg.body[2]:
            waiting = self._owned.pop(msg.body[0], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(time.perf_counter())


def _resources(disks: Sequence[Path]) -> list[dict[str, Variant]]:
    return [{"path": Variant("s", str(disk))} for disk in disks]


@contextlib.asynccontextmanager
async def echoing(caller: Caller) -> AsyncIterator[None]:
    """Have echo run."""
    owned = caller.owned(echo.NAME)
    process = _spawn_echo()
    try:
        await _running(owned, process.poll, "echo")
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, DEADLINE_S)


def _spawn_echo() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.bench.echo"], cwd=REPO)


@contextlib.asynccontextmanager
async def serving(caller: Caller, daemon: Daemon) -> AsyncIterator[float]:
    """Have svirtd run; yields the seconds from its spawn until it owned its name."""
    owned = caller.owned(NAME)
    started = time.perf_counter()
    daemon.spawn()
    process = daemon.process
    assert process is not None
    try:
        yield await _running(owned, process.poll, "svirtd") - started
    finally:
        code = await asyncio.to_thread(daemon.stop)
    if code != 0:
        raise RuntimeError(f"svirtd ended with {code}: {daemon.output()}")


async def _running(
    owned: "asyncio.Future[float]", poll: Callable[[], int | None], what: str
) -> float:
    async with asyncio.timeout(DEADLINE_S):
        while not owned.done():
            if poll() is not None:
                raise RuntimeError(f"{what} ended with {poll()} before it owned its name")
            await asyncio.wait([owned], timeout=0.05)
    return owned.result()


def make_daemon(folder: Path, settings: str = "") -> Daemon:
    """Return svirtd with a folder of its own and these settings; not started."""
    daemon = Daemon(folder)
    drop_ins = Path(f"{daemon.config}.d")
    drop_ins.mkdir()
    (drop_ins / "bench.toml").write_text(settings)
    return daemon
