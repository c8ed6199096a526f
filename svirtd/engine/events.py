# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened, told to whoever listens. Called from closed operations only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from svirtd.core.model import VM, Finding, Hold


@dataclass(frozen=True, slots=True)
class Entry:
    """A VM with what it holds."""

    vm: VM
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """Which operation did it, and for whom (uid 0 for what the daemon does by itself)."""

    operation: str
    caller_uid: int


class Listener(Protocol):
    """One that wants to know."""

    def added(self, entry: Entry, cause: Cause, /) -> None:
        """A VM has entered the book."""

    def changed(self, before: Entry, after: Entry, cause: Cause, /) -> None:
        """A VM or its holds are not what they were."""

    def removed(self, entry: Entry, cause: Cause, /) -> None:
        """A VM has left the book."""

    def drift(self, finding: Finding) -> None:
        """An object was found to be other than the book says, and was left alone."""


class Events:
    """Passes events on, in the order in which they happened."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Tell `listener` of everything from now on."""
        self._listeners.append(listener)

    def added(self, entry: Entry, cause: Cause) -> None:
        """A VM has entered the book."""
        for to in self._listeners:
            to.added(entry, cause)

    def changed(self, before: Entry, after: Entry, cause: Cause) -> None:
        """A VM or its holds are not what they were."""
        if before != after:
            for to in self._listeners:
                to.changed(before, after, cause)

    def removed(self, entry: Entry, cause: Cause) -> None:
        """A VM has left the book."""
        for to in self._listeners:
            to.removed(entry, cause)

    def drift(self, findings: Sequence[Finding]) -> None:
        """Objects were found to be other than the book says, and were left alone."""
        for finding in findings:
            for to in self._listeners:
                to.drift(finding)
