# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd's D-Bus contract from the caller's side: plain values in, plain values out."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from svirtd.core.model import State
from svirtd.ctl.answers import Event, Row
from svirtd.ctl.arguments import Disk
from svirtd.ctl.calls import MANAGER, NAME, PROPERTIES, ROOT, VM, failures
from svirtd.ctl.enrolling import Enrolling
from svirtd.ctl.failures import INCONSISTENT, Exit, Failure, bus_lost
from svirtd.ctl.following import JOB_TIMEOUT_S, Following, Progress
from svirtd.ctl.hotplug import Hotplug
from svirtd.ctl.sharing import Sharing
from svirtd.ctl.values import Options, Values, plain, resources
from svirtd.errors import Failed
from svirtd.host.bus import BUS, Message, Variant

# Starting and stopping wait for systemd, and a guest may take its time to end.
_LONG_TIMEOUT_S: Final = 150.0
_OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

# Interface, member, signature, and the names that a line of output gives to the arguments.
_SIGNALS: Final = (
    (MANAGER, "VMAdded", "so", ("name", "vm")),
    (MANAGER, "VMRemoved", "so", ("name", "vm")),
    (MANAGER, "DriftFound", "a{sv}", ("finding",)),
    (MANAGER, "JobNew", "uo", ("id", "job")),
    (MANAGER, "JobRemoved", "uos", ("id", "job", "result")),
    (PROPERTIES, "PropertiesChanged", "sa{sv}as", ("interface", "changed", "invalidated")),
    (_OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", ("object", "interfaces")),
    (_OBJECT_MANAGER, "InterfacesRemoved", "oas", ("object", "interfaces")),
)


def _stream(reply: Message) -> socket.socket:
    """Take the socket out of a reply."""
    fds, reply.unix_fds = list(reply.unix_fds), []
    try:
        if reply.body[0] >= len(fds):
            raise Failure(INCONSISTENT, "svirtd announced a stream and sent none", Exit.REFUSED)
        return socket.socket(fileno=os.dup(fds[reply.body[0]]))
    finally:
        for fd in fds:
            os.close(fd)


class Client(Sharing, Enrolling, Hotplug, Following):
    """Calls to svirtd. Every method raises Failure, and nothing else, for what the bus does."""

    async def launch(
        self,
        name: str,
        command: Sequence[str],
        disks: Sequence[Disk],
        options: Options,
        progress: Progress | None = None,
    ) -> tuple[str, str]:
        """Launch a VM; returns its object path and its unit. Cancelled while it labels trees, it
        takes them back."""
        body = [name, list(command), resources(disks), options.variants()]
        async with self._labelling(disks, progress) as timeout_s:
            path, unit = await self._manager("Launch", "sasaa{sv}a{sv}", body, "os", timeout_s)
        return path, unit

    async def acquire(
        self,
        name: str,
        disks: Sequence[Disk],
        options: Options,
        progress: Progress | None = None,
    ) -> str:
        """Label resources for a VM; returns its object path. Cancelled while it labels trees, it
        takes them back."""
        body = [name, resources(disks), options.variants()]
        async with self._labelling(disks, progress) as timeout_s:
            (path,) = await self._manager("Acquire", "saa{sv}a{sv}", body, "o", timeout_s)
        return str(path)

    @contextlib.asynccontextmanager
    async def _labelling(
        self, disks: Sequence[Disk], progress: Progress | None
    ) -> AsyncIterator[float]:
        """Follow the job if there are trees; the value is how long to wait for the reply."""
        if not any(one.recursive for one in disks):
            yield _LONG_TIMEOUT_S
            return
        async with self._following("tree", progress):
            yield JOB_TIMEOUT_S

    async def release(self, name: str, progress: Progress | None = None) -> None:
        """Take the labels of a VM back; with `progress`, of trees it is told how far that is."""
        if progress is None:
            await self._manager("Release", "sa{sv}", [name, {}], "", JOB_TIMEOUT_S)
            return
        async with self._following("tree", progress):
            await self._manager("Release", "sa{sv}", [name, {}], "", JOB_TIMEOUT_S)

    async def forget(self, name: str) -> None:
        """Free the reservation of a VM."""
        await self._manager("Forget", "sa{sv}", [name, {}], "")

    async def plan(
        self, name: str, disks: Sequence[Disk], options: Options
    ) -> tuple[list[Values], Values]:
        """Return what acquire would do, resource by resource, and what the goal does."""
        body = [name, resources(disks), options.variants()]
        (answer,) = await self._manager("Plan", "saa{sv}a{sv}", body, "aa{sv}")
        *steps, goal = plain(answer)
        return steps, goal

    async def vms(self) -> list[Row]:
        """Return every VM, by name."""
        (rows,) = await self._manager("ListVMs", "", [], "a(sssuo)")
        return [Row(*row) for row in rows]

    async def goals(self) -> list[Values]:
        """Return every goal with its rules."""
        (found,) = await self._manager("ListGoals", "", [], "aa{sv}")
        return list(plain(found))

    async def owners(self, what: str) -> list[Values]:
        """Return who holds a path, categories or a context."""
        (owners,) = await self._manager("FindOwners", "s", [what], "aa{sv}")
        return list(plain(owners))

    async def verify(
        self, folders: Sequence[str], progress: Progress, *, repair: bool
    ) -> list[Values]:
        """Compare the book with the host; returns what differs. Cancelled, the daemon stops too."""
        options = {"scan": Variant("as", list(folders))} if folders else {}
        async with self._following("verify", progress):
            (findings,) = await self._manager(
                "Verify", "ba{sv}", [repair, options], "aa{sv}", JOB_TIMEOUT_S
            )
        return list(plain(findings))

    async def matrix(self) -> list[Values]:
        """Return what each VM can do to each resource and each other VM."""
        (cells,) = await self._manager("Matrix", "a{sv}", [{}], "aa{sv}")
        return list(plain(cells))

    async def foreign(self) -> list[Values]:
        """Return the sets of categories in use that svirtd did not give."""
        (found,) = await self._manager("ListForeign", "", [], "aa{sv}")
        return list(plain(found))

    async def vm(self, name: str) -> Values:
        """Return every property of a VM."""
        return await self._get_all(await self._path_of(name), VM)

    async def manager(self) -> Values:
        """Return every property of the daemon."""
        return await self._get_all(ROOT, MANAGER)

    async def enforced(self) -> bool:
        """Say whether the kernel keeps VMs apart."""
        reply = await self._call(ROOT, PROPERTIES, "Get", "ss", [MANAGER, "Enforced"], "v")
        return bool(plain(reply.body[0]))

    async def open_channel(self, name: str, socket_name: str) -> socket.socket:
        """Connect to a socket in a VM's runtime folder; the caller closes the stream."""
        path = await self._path_of(name)
        reply = await self._call(path, VM, "OpenChannel", "sa{sv}", [socket_name, {}], "h")
        return _stream(reply)

    async def backup(self) -> socket.socket:
        """Return a stream of a copy of the book; the caller closes it."""
        reply = await self._call(ROOT, MANAGER, "Backup", "a{sv}", [{}], "h", _LONG_TIMEOUT_S)
        return _stream(reply)

    async def watch(self, handler: Callable[[Event], None]) -> None:
        """Have `handler` called for each signal of the daemon, until the connection ends.

        The daemon's coming and going is told as "Started" and "Stopped".
        """

        def deliver(signature: str, names: tuple[str, ...]) -> Callable[[Message], None]:
            def one(msg: Message) -> None:
                if msg.signature == signature:
                    values = dict(zip(names, plain(msg.body), strict=True))
                else:
                    values = {"unreadable": msg.signature}
                handler(Event(time.time(), msg.member, msg.path, values))

            return one

        def owner_changed(msg: Message) -> None:
            kind = "Started" if msg.body[2] else "Stopped"
            handler(Event(time.time(), kind, ROOT, {"service": NAME}))

        with failures(bus_lost("it does not answer")):
            for interface, member, signature, names in _SIGNALS:
                await self._bus.subscribe(NAME, interface, member, deliver(signature, names))
            await self._bus.subscribe(BUS, BUS, "NameOwnerChanged", owner_changed, arg0=NAME)

    async def lost(self) -> Failure:
        """Wait for the end of the connection and return what to say then."""
        return bus_lost(str(await self._bus.wait_closed()))

    async def ended(self, name: str, *, holds: bool) -> None:
        """Stay on the bus until the VM that now has this name has ended.

        A persistent VM stays in the book; it has ended when it holds nothing any more, which only
        says something of one that did (`holds`). Raises Failure if it got stuck on the way.
        """
        changed = asyncio.Event()
        with failures(bus_lost("it does not answer")):
            for sender, interface, member, arg0 in (
                (NAME, MANAGER, "VMRemoved", name),
                (NAME, PROPERTIES, "PropertiesChanged", VM),
                (BUS, BUS, "NameOwnerChanged", NAME),
            ):
                await self._bus.subscribe(
                    sender, interface, member, lambda _: changed.set(), arg0=arg0
                )
        lost = asyncio.create_task(self.lost())
        lost.add_done_callback(lambda _: changed.set())
        first_id = ""
        while not lost.done():
            changed.clear()
            # While the daemon is restarted it holds the VM, and a call would be in its way.
            if await self._running():
                try:
                    vm = await self._vm_if_any(name)
                except Failure as failure:
                    if failure.code not in (Exit.REFUSED, Exit.UNREACHABLE):
                        raise
                    # It is about to stop, or just has; that it is back is told.
                    await changed.wait()
                    continue
                first_id = first_id or vm.get("Id", "")
                released = holds and vm.get("State") == State.RESERVED
                if not vm or vm["Id"] != first_id or released:
                    lost.cancel()
                    return
                if vm["State"] == State.FAILED:
                    raise Failure(Failed.name, str(vm.get("StateReason")), Exit.REFUSED)
            await changed.wait()
        raise lost.result()

    async def _running(self) -> bool:
        with failures(bus_lost("it does not answer")):
            return await self._bus.has_owner(NAME)

    async def _vm_if_any(self, name: str) -> Values:
        try:
            return await self.vm(name)
        except Failure as failure:
            if failure.code is Exit.NOT_FOUND:
                return {}
            raise
