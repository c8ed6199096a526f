# SPDX-License-Identifier: LGPL-2.1-or-later
"""Differences between the book and the machine, as plain values."""

import enum
from dataclasses import dataclass


class FindingKind(enum.StrEnum):
    """What sort of difference a finding is; the contract words each."""

    CHANGED = "changed"
    MISSING = "missing"
    REPLACED = "replaced"
    UNSYNCED = "unsynced"
    ALTERED = "altered"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    ENDED = "ended"
    STALE = "stale"
    QUARANTINE = "quarantine"
    FOREIGN = "foreign"
    CONFLICT = "conflict"
    ORPHAN = "orphan"
    GUESSED = "guessed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the book and the machine.

    `path` is the object's: of a file, of a process below /proc, or the name of a unit. `repair`
    says what a repair does about it, or why it does nothing; `repaired` whether that was done.
    """

    kind: FindingKind
    vm_name: str
    path: str
    expected: str
    found: str
    reason: str
    repair: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at an object's place: its label (None if it has none), or what is wrong."""

    label: str | None
    problem: FindingKind | None = None
    why: str = ""
