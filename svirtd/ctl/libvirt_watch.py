# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd-libvirt.service: adopts domains when they are defined, and tells svirtd what they use.

It works on what is now, not on what an event says: an event is only why it looks.
"""

import asyncio
import fnmatch
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from svirtd.core.names import shown
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.libvirt_adopt import adopt
from svirtd.ctl.libvirt_calls import RESERVED, LibvirtCalls
from svirtd.ctl.libvirt_door import Event, Libvirt


async def watch(client: LibvirtCalls, libvirt: Libvirt) -> None:
    """Look at every domain, then at each of which something is heard. Ends by raising Failure."""
    heard: asyncio.Queue[Event | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hears(event: Event | None) -> None:
        loop.call_soon_threadsafe(heard.put_nowait, event)

    libvirt.listen(hears)
    for name in libvirt.names():
        await _try(name, _defined(client, libvirt, name))
    while True:
        event = await heard.get()
        if event is None:
            raise Failure("Libvirt", "libvirt has hung up", Exit.UNREACHABLE)
        match event.kind:
            case "defined":
                await _try(event.name, _defined(client, libvirt, event.name))
            case "undefined":
                await _try(event.name, _undefined(client, event))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a domain of this name is to be adopted by itself."""
    return any(fnmatch.fnmatchcase(name, one) for one in patterns)


async def _defined(client: LibvirtCalls, libvirt: Libvirt, name: str) -> None:
    patterns, _ = await client.settings()
    if not matches(name, patterns):
        return
    # A definition of its own that this makes is heard again, and is found as it should be then.
    done = await adopt(client, libvirt, name, {})
    if done.changed:
        later = "; it runs on as it is until its next start" if done.runs else ""
        _say(f"domain {shown(name)} is VM {shown(done.vm)}, label {done.label}{later}")
        for problem in done.problems:
            _say(f"domain {shown(name)} would not start: {shown(problem)}")


async def _undefined(client: LibvirtCalls, event: Event) -> None:
    vm = await client.of_uuid(event.uuid)
    if vm and vm["State"] == RESERVED:
        await client.forget(str(vm["Name"]))
        _say(f"domain {shown(event.name)} is gone, and so is VM {shown(vm['Name'])}")


async def _try(name: str, work: Coroutine[Any, Any, None]) -> None:
    """One domain's fault is not the others'; without svirtd or the bus there is nothing to do."""
    try:
        await work
    except Failure as failure:
        if failure.code is Exit.UNREACHABLE:
            raise
        _say(f"domain {shown(name)}: {shown(failure.text)}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
