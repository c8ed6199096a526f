# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd-libvirt.service: adopts domains when they are defined, and tells svirtd what they use.

It works on what is now, not on what an event says: an event is only why it looks.
"""

import asyncio
import fnmatch
import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from svirtd.core.domains import Domain, Hold, holds
from svirtd.core.model import State
from svirtd.core.names import shown
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.libvirt_adopt import adopt, read
from svirtd.ctl.libvirt_calls import RESERVED, LibvirtCalls
from svirtd.ctl.libvirt_door import Event, Libvirt
from svirtd.ctl.values import Values

# Between two looks at all domains that run.
_INTERVAL_S: Final = 60.0


async def watch(client: LibvirtCalls, libvirt: Libvirt) -> None:
    """Look at every domain, then at each of which something is heard. Ends by raising Failure."""
    heard: asyncio.Queue[Event | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hears(event: Event | None) -> None:
        loop.call_soon_threadsafe(heard.put_nowait, event)

    libvirt.listen(hears)
    for name in libvirt.names():
        await _try(name, _defined(client, libvirt, name))
        await _try(name, _changed(client, libvirt, name))
    while True:
        try:
            async with asyncio.timeout(_INTERVAL_S):
                event = await heard.get()
        except TimeoutError:
            # Of a snapshot nothing is heard.
            for name in libvirt.names():
                await _try(name, _changed(client, libvirt, name))
            continue
        if event is None:
            raise Failure("Libvirt", "libvirt has hung up", Exit.UNREACHABLE)
        match event.kind:
            case "defined":
                await _try(event.name, _defined(client, libvirt, event.name))
            case "undefined":
                await _try(event.name, _undefined(client, event))
            case "changed":
                await _try(event.name, _changed(client, libvirt, event.name))


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


async def _changed(client: LibvirtCalls, libvirt: Libvirt, name: str) -> None:
    """Bring the book in line with what a domain uses by now: disks were plugged in or out.

    libvirt asks nobody before it does that: what somebody else holds is told, and is drift.
    """
    text = libvirt.running(name)
    if text is None:
        return
    domain = read(name, text)
    vm = await client.of_uuid(domain.uuid)
    if vm.get("State") != State.RUNNING:
        return
    more, less = differences(domain, vm["Resources"])
    for hold in more:
        await _try(name, _attach(client, str(vm["Name"]), hold))
    for path, id_ in less:
        await client.detach(str(vm["Name"]), id_)
        _say(f"VM {shown(vm['Name'])} does not use {path} any more")


def differences(domain: Domain, held: Sequence[Values]) -> tuple[list[Hold], list[tuple[str, str]]]:
    """Return what a domain uses and the book does not have, and path and id of what the book has
    and the domain does not name any more, in whatever place."""
    there = {os.path.realpath(one["path"]) for one in held}
    used = {os.path.realpath(one.path) for one in domain.uses if one.path}
    more = [one for one in holds(domain) if os.path.realpath(one.path) not in there]
    less = [(one["path"], one["id"]) for one in held if os.path.realpath(one["path"]) not in used]
    return more, less


async def _attach(client: LibvirtCalls, vm: str, hold: Hold) -> None:
    await client.attach(vm, hold)
    _say(f"VM {shown(vm)} uses {hold.path}, too")


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
