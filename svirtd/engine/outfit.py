# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a launch gives a VM beside labels: what its unit is kept in, overlays, words."""

import contextlib
import fcntl
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.book import groups as group_rows
from svirtd.book.store import Database
from svirtd.core import confinement, nodes, overlays
from svirtd.core.confinement import Properties
from svirtd.core.goals import Goal, Network
from svirtd.core.model import VM, Format, Kind
from svirtd.core.overlays import Overlay
from svirtd.core.zones import zone_of
from svirtd.engine.doors import Doors
from svirtd.errors import InvalidArgs, ResourceRefused, UnitStuck
from svirtd.host import chains, netns
from svirtd.host.bus import BusLost
from svirtd.host.opening import Opened

_BLOCK_SIZE: Final = 0x80081272  # BLKGETSIZE64
_MAGIC_BYTES: Final = 4
_U64: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Outfit:
    """`bounds` are what its unit is kept in, `overlays` files of its runtime folder by name,
    `words` what the words of its command stand for."""

    bounds: Properties
    overlays: Mapping[str, Overlay]
    words: Mapping[str, str]


@contextlib.asynccontextmanager
async def outfitted(
    doors: Doors, goal: Goal, vm: VM, opened: Sequence[Opened]
) -> AsyncIterator[Outfit]:
    """Give a VM what one with this goal and these resources gets, for its start.

    Makes the caller's own files, in which writes are kept, overlays if they are empty; if the start
    fails they are empty again. Raises ResourceRefused, InvalidArgs, Failed.
    """
    namespace = ""
    if goal.network is Network.ZONE:
        namespace = await doors.store.read(lambda db: _namespace(db, goal, vm))
        await doors.in_file_thread(netns.check, namespace)
    begun: list[int] = []
    try:
        yield await doors.in_file_thread(_outfit, goal, vm, opened, namespace, begun)
    except (BusLost, UnitStuck):
        raise  # a process may be at them
    except Exception:
        await doors.in_file_thread(_empty_again, begun)
        raise


def _empty_again(begun: Sequence[int]) -> None:
    for fd in begun:
        # What fails here leaves an overlay with nothing in it, which a later start takes.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)


def _namespace(db: Database, goal: Goal, vm: VM) -> str:
    found = [group_rows.by_name(db, name) for name in vm.groups]
    zone = zone_of(vm.name, [group for group in found if group is not None])
    if zone is None:
        raise InvalidArgs(
            f"goal {goal.name!r} takes a group that is a zone, and VM {vm.name!r} is in none; name "
            "one among the groups of the request, or join the VM to it"
        )
    return zone.namespace


def _outfit(
    goal: Goal, vm: VM, opened: Sequence[Opened], namespace: str, begun: list[int]
) -> Outfit:
    """`begun` is told the descriptor of each of the caller's files that is made an overlay."""
    disks = []
    made: dict[str, Overlay] = {}
    kept = {one.seen.terms.takes: one for one in opened if one.seen.terms.takes}
    for one in opened:
        seen, id_ = one.seen, one.seen.terms.id
        if seen.kind is Kind.BLOCK:
            disks.append(("block", *nodes.major_minor(seen.device), seen.access.writes))
        elif seen.kind is Kind.CHARACTER:
            disks.append(("char", *nodes.major_minor(seen.device), seen.access.writes))
        if overlays.has_overlay(goal, seen):
            overlay = overlays.empty(seen.path, _size(one), seen.terms.format)
            if id_ in kept:
                _begin(kept[id_], overlay, begun)
            else:
                made[overlays.file_name(id_)] = overlay
    paths = {id_: one.seen.path for id_, one in kept.items()}
    meaning = overlays.words(goal, [one.seen for one in opened], vm.runtime_dir, paths)
    return Outfit(confinement.properties(goal, namespace, disks), made, meaning)


def _size(one: Opened) -> int:
    if one.seen.terms.format is Format.QCOW2:
        return chains.virtual_size(one.fd, one.seen.named)
    if one.seen.kind is not Kind.BLOCK:
        return os.fstat(one.fd).st_size
    (size,) = _U64.unpack(fcntl.ioctl(one.fd, _BLOCK_SIZE, bytes(_U64.size)))
    return int(size)


def _begin(one: Opened, overlay: Overlay, begun: list[int]) -> None:
    """Make an empty file an overlay; one that has something is used as it is.

    It may be the overlay of an earlier run. It is not looked at: whatever it says that it lies
    over, the VM's own process opens that, under the VM's own label.
    """
    if one.seen.kind is not Kind.FILE:
        raise ResourceRefused(f"{one.seen.named} is to keep what is written, and is no file")
    size = os.fstat(one.fd).st_size
    try:
        if size and (size != overlay.length or os.pread(one.fd, _MAGIC_BYTES, 0).strip(b"\0")):
            return
        begun.append(one.fd)
        # What makes it an image comes last: one that was cut off before is begun anew.
        os.ftruncate(one.fd, overlay.length)
        os.pwrite(one.fd, overlay.head[_MAGIC_BYTES:], _MAGIC_BYTES)
        os.pwrite(one.fd, overlay.head[:_MAGIC_BYTES], 0)
    except OSError as error:
        raise ResourceRefused(
            f"{one.seen.named} cannot be made an overlay: {error.strerror}"
        ) from error
