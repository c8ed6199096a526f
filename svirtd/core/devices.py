# SPDX-License-Identifier: LGPL-2.1-or-later
"""What became of the kernel's device numbers over a reboot. Pure.

A file is known by device and inode. The inode stays what it is, the number of the device is the
kernel's own and may be another after a reboot; two file systems may even have swapped theirs.

This decides which object is taken for one that the book knows, and so whose label may be changed:
what is not proven is refused. See `renumber` for what counts as proof, and why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from svirtd.core.model import Identity


@dataclass(frozen=True, slots=True)
class Known:
    """An object of the book, and the labels that it may carry by the book's word."""

    identity: Identity
    path: str
    labels: frozenset[str | None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to now."""

    identity: Identity
    label: str | None


@dataclass(frozen=True, slots=True)
class Renumbering:
    """Old number → new one, to be applied at once from the old values; and what was refused, why.

    A new number below zero is nobody's: see `is_parked`.
    """

    moves: Mapping[int, int]
    refused: tuple[str, ...]


def is_parked(device: int) -> bool:
    """Say whether a number stands for a device that was not found again.

    Its old number may belong to another one now. With a number that no device can have, its objects
    are nobody else's, and a later look may still find it.
    """
    return device < 0


def renumber(
    known: Sequence[Known], found: Mapping[str, Found], settled: Iterable[Identity] = ()
) -> Renumbering:
    """Decide which number each old device of `known` has now, by what is `found` at their paths.

    `settled` are identities of the book that are of this boot already. A device of which nothing is
    known any more is parked.

    - An object proves where its device is if its path leads to the same inode number and to a label
      that the book says it could carry. Inode numbers alone prove nothing: every file system counts
      from the same start. A label with a VM's pair is put on by svirtd alone; an original label
      proves less, but only who may mount can bring another file system to a path, see
      `files.found_at`, and then finds there a file with nothing to give back.
    - All proofs of a device must agree: it is one device. A path that leads to the very same device
      and inode, whatever its label, is a word against a move.
    - Two devices of one boot cannot have become one.
    - Objects that were different stay different: else a VM would be given another's file.
    """
    proofs, stay = _proofs(known, found)
    agreed = {old: min(numbers) for old, numbers in proofs.items() if len(numbers) == 1}
    refused = [
        f"device {old:#x} cannot be {_shown(numbers)} at once"
        for old, numbers in sorted(proofs.items())
        if len(numbers) > 1
    ]
    goes, merged = _apart(known, agreed, settled)
    moves = {old: new for old, new in goes.items() if old != new}
    taken = set(moves.values())
    devices = {one.identity.dev for one in known}
    nobodys = min(devices | {0}) - 1
    for device in sorted(devices - goes.keys()):
        # What may be where it was stays known as that, unless another device has the number now.
        if not is_parked(device) and (device not in stay or device in taken):
            moves[device] = nobodys
            nobodys -= 1
    return Renumbering(moves, (*refused, *merged))


def _proofs(
    known: Sequence[Known], found: Mapping[str, Found]
) -> tuple[dict[int, set[int]], set[int]]:
    """Return which numbers each device is proven to have, and the devices that have an object where
    it was."""
    proven: dict[int, set[int]] = {}
    stay: set[int] = set()
    for one in known:
        now = found.get(one.path)
        if now is None or now.identity.ino != one.identity.ino:
            continue
        if now.label in one.labels:
            proven.setdefault(one.identity.dev, set()).add(now.identity.dev)
        if now.identity == one.identity:
            stay.add(one.identity.dev)
    for device in stay & proven.keys():
        proven[device].add(device)
    return proven, stay


def _apart(
    known: Sequence[Known], goes: Mapping[int, int], settled: Iterable[Identity]
) -> tuple[dict[int, int], list[str]]:
    """Return the moves that keep apart what was apart, and those that do not."""
    inodes: dict[int, set[int]] = {}
    for one in known:
        inodes.setdefault(one.identity.dev, set()).add(one.identity.ino)
    there: dict[int, set[int]] = {}
    for identity in settled:
        there.setdefault(identity.dev, set()).add(identity.ino)
    sources: dict[int, list[int]] = {}
    for old, new in goes.items():
        sources.setdefault(new, []).append(old)
    kept, refused = {}, []
    for new, olds in sorted(sources.items()):
        numbered = [old for old in olds if not is_parked(old)]
        if len(numbered) > 1:
            refused.append(f"devices {_shown(numbered)} cannot both be {new:#x}")
            continue
        taken = there.get(new, set())
        # A parked device may join what is known of it under a later number, the newest first.
        for old in numbered + sorted(set(olds) - set(numbered)):
            if taken & inodes[old]:
                refused.append(f"device {old:#x} cannot be {new:#x}, whose files are known already")
                continue
            taken = taken | inodes[old]
            kept[old] = new
    return kept, refused


def _shown(numbers: Iterable[int]) -> str:
    return " and ".join(f"{number:#x}" for number in sorted(numbers))
