# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench.flood KIND UID GID GROUP...`: one user who calls svirtd as fast as he can.

Says "ready" once he does, and goes on until he is ended. Kinds: "calls" waits for answers, with as
many calls under way on each of some connections as the bus lets it have; "silent" wants none.
"""

import asyncio
import contextlib
import os
import sys
from typing import Final

from svirtd.host.bus import BusError, Connection, Message, MessageFlag, MessageType
from tests.support import MANAGER, NAME, ROOT

_CONNECTIONS: Final = 4
_IN_FLIGHT: Final = 64
_BURST: Final = 256
_TIMEOUT_S: Final = 60.0


async def _calls(bus: Connection, number: int) -> None:
    """Acquire and release, list and plan, each as soon as the one before is answered."""
    name = f"flood-{number}"
    while True:
        for member, signature, body in (
            ("Acquire", "saa{sv}a{sv}", [name, [], {}]),
            ("ListVMs", "", []),
            ("Plan", "saa{sv}a{sv}", [name + "x", [], {}]),
            ("Release", "sa{sv}", [name, {}]),
        ):
            # A refusal is an answer too: the next call follows at once.
            with contextlib.suppress(BusError):
                await bus.call(NAME, ROOT, MANAGER, member, signature, body, timeout_s=_TIMEOUT_S)


async def _silent(bus: Connection) -> None:
    """Calls that want no answer: nothing but the bus's own pace holds them back."""
    while True:
        for _ in range(_BURST):
            bus.send(
                Message(
                    MessageType.METHOD_CALL,
                    destination=NAME,
                    path=ROOT,
                    interface=MANAGER,
                    member="ListVMs",
                    flags=MessageFlag.NO_REPLY_EXPECTED,
                )
            )
        await bus.drain(_TIMEOUT_S)


async def _flood(kind: str) -> None:
    buses = [await Connection.open() for _ in range(_CONNECTIONS)]
    async with asyncio.TaskGroup() as group:
        for at, bus in enumerate(buses):
            if kind == "silent":
                group.create_task(_silent(bus))
            else:
                for number in range(_IN_FLIGHT):
                    group.create_task(_calls(bus, at * _IN_FLIGHT + number))
        await asyncio.sleep(1.0)
        print("ready", flush=True)


if __name__ == "__main__":
    uid, gid, *groups = map(int, sys.argv[2:])
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    asyncio.run(_flood(sys.argv[1]))
