# SPDX-License-Identifier: LGPL-2.1-or-later
"""Overlays: what takes a VM's writes to a disk that it only reads. Pure.

An overlay is an empty qcow2 image over the disk. svirtd writes it, which takes no look into any
file, and never reads one: what is in it later is the VM's, and it is the VM's own process that
reads it, under the VM's own label.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.core.goals import Goal, Written
from svirtd.core.model import Format, ResourceRequest, Seen
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs, ResourceRefused

# The format's own limit.
BACKING_MAX_BYTES: Final = 1023
_CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << _CLUSTER_BITS
# Of the virtual disk, behind one entry of the first table: a cluster full of entries of clusters.
_PER_ENTRY: Final = _CLUSTER * (_CLUSTER // 8)
# QEMU takes no larger first table.
_ENTRIES_MAX: Final = 32 * 1024 * 1024 // 8
_SECTOR: Final = 512
_BACKING_FORMAT: Final = 0xE2792ACA
# magic, version, where and how long the backing name is, cluster bits, size, encryption, entries
# and place of the first table, place and clusters of the reference counts, snapshots, features, the
# width of a count (as a power of two), length of this.
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_COUNTS_AT: Final = 1
_TABLE_AT: Final = 3
# The words of a command that stand for something.
_WORD: Final = re.compile(r"\{(runtime|resource\.[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Overlay:
    """An empty overlay: the first bytes of its file, and how long the file is."""

    head: bytes
    length: int


def empty(backing: str, size: int, form: Format = Format.RAW) -> Overlay:
    """Return an empty overlay over the image at `backing`, whose disk has `size` bytes.

    Raises ResourceRefused for what the format cannot hold.
    """
    name = backing.encode()
    if len(name) > BACKING_MAX_BYTES:
        raise ResourceRefused(
            f"{backing[:64]}… has a path of {len(name)} bytes, and an overlay names the file below "
            f"it in at most {BACKING_MAX_BYTES}: move the file to a shorter path"
        )
    size = -(-size // _SECTOR) * _SECTOR
    entries = max(1, -(-size // _PER_ENTRY))
    if entries > _ENTRIES_MAX:
        raise ResourceRefused(f"{backing} is too large for an overlay ({size} bytes)")
    clusters = _TABLE_AT + -(-entries * 8 // _CLUSTER)
    said = form.value.encode()
    extension = struct.pack(">II8s", _BACKING_FORMAT, len(said), said) + bytes(8)
    header = _HEADER.pack(
        *(b"QFI\xfb", 3, _HEADER.size + len(extension), len(name), _CLUSTER_BITS, size, 0),
        *(entries, _TABLE_AT * _CLUSTER, _COUNTS_AT * _CLUSTER, 1, 0, 0, 0, 0, 0, 4, _HEADER.size),
    )
    counts_table = struct.pack(">Q", (_COUNTS_AT + 1) * _CLUSTER)
    counts = struct.pack(">H", 1) * clusters
    head = b"".join(
        part.ljust(_CLUSTER, b"\0") for part in (header + extension + name, counts_table, counts)
    )
    return Overlay(head, clusters * _CLUSTER)


def file_name(id_: str) -> str:
    """Return the name of a resource's overlay in the VM's runtime folder."""
    return f"{id_}.overlay.qcow2"


def has_overlay(goal: Goal, seen: Seen) -> bool:
    """Say whether a resource gets an overlay: the VM only reads it, and its command can name it."""
    return goal.written is Written.OVERLAY and bool(seen.terms.id) and not seen.access.writes


def refuse_requests(goal: Goal, requests: Sequence[ResourceRequest]) -> None:
    """Raise InvalidArgs for an id that is there twice, or a file to keep writes in that goes with
    nothing."""
    ids = [one.terms.id for one in requests if one.terms.id]
    for number, id_ in enumerate(ids):
        if id_ in ids[:number]:
            raise InvalidArgs(f"two resources have the id {id_!r}; give each its own")
    for one in requests:
        if one.terms.takes and goal.written is not Written.OVERLAY:
            raise InvalidArgs(
                f"{one.named} is named as 'overlay', and with goal {goal.name!r} none is made; "
                "goals forensic and view-only make overlays"
            )


def refuse_unknown_words(argv: Sequence[str], requests: Sequence[ResourceRequest]) -> None:
    """Raise InvalidArgs for a word {resource.…} of a command that stands for no resource."""
    known = {
        word
        for one in requests
        if one.terms.id
        for word in (f"resource.{one.terms.id}", f"resource.{one.terms.id}.source")
    }
    for word in (word for argument in argv for word in _WORD.findall(argument)):
        if word != "runtime" and word not in known:
            told = ", ".join(sorted(f"{{{one}}}" for one in known)) or "none: no resource has an id"
            raise InvalidArgs(f"command: {shown('{' + word + '}')} is not known; known: {told}")


def words(
    goal: Goal, seen: Sequence[Seen], runtime: str, kept: Mapping[str, str]
) -> Mapping[str, str]:
    """Return what each word of a command stands for.

    `kept` has, by the id of a resource, the path of the caller's file that takes its writes.
    """
    found = {"runtime": runtime}
    for one in seen:
        id_ = one.terms.id
        if id_:
            own = f"{runtime}/{file_name(id_)}" if has_overlay(goal, one) else one.path
            found[f"resource.{id_}"] = kept.get(id_, own)
            found[f"resource.{id_}.source"] = one.path
    return found


def filled(argument: str, meaning: Mapping[str, str]) -> str:
    """Return an argument with its words replaced, once: what was put in is not looked at again."""
    return _WORD.sub(lambda found: meaning.get(found[1], found[0]), argument)
