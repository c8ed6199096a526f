# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened, told to whoever listens. Called from closed operations only."""

import asyncio
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from svirtd.core.findings import Finding
from svirtd.core.groups import GroupView
from svirtd.core.job import JobView
from svirtd.core.model import VM, Hold, Standing
from svirtd.failpoints import Point, reach


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


class Listener:
    """One that wants to know. What it does not care for, it inherits."""

    def added(self, entry: Entry, cause: Cause, /) -> None:
        """A VM has entered the book."""

    def changed(self, before: Entry, after: Entry, cause: Cause, /) -> None:
        """A VM or its holds are not what they were."""

    def removed(self, entry: Entry, cause: Cause, /) -> None:
        """A VM has left the book."""

    def group_added(self, view: GroupView, cause: Cause, /) -> None:
        """A group has entered the book."""

    def group_changed(self, before: GroupView, after: GroupView, cause: Cause, /) -> None:
        """A group's lasting members or grants are not what they were."""

    def group_removed(self, view: GroupView, cause: Cause, /) -> None:
        """A group has left the book."""

    def drift(self, finding: Finding) -> None:
        """An object was found to be other than the book says, and was left alone."""

    def enforcement(self, before: Standing, after: Standing, /) -> None:
        """The kernel does something else with labels than before, or by another policy."""

    def job_new(self, job: JobView, /) -> None:
        """A job has begun."""

    def job_changed(self, before: JobView, after: JobView, /) -> None:
        """A job has got further."""

    def job_removed(self, job: JobView, /) -> None:
        """A job has ended; its state says how."""


class Events:
    """Passes events on, in the order in which they happened, once the reply has left.

    Whoever waits for the reply should not wait for the signals to everybody else.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._waiting: list[Callable[[Listener], None]] = []

    def listen(self, listener: Listener) -> None:
        """Tell `listener` of everything from now on."""
        self._listeners.append(listener)

    def added(self, entry: Entry, cause: Cause) -> None:
        """A VM has entered the book."""
        self._later(lambda to: to.added(entry, cause))

    def changed(self, before: Entry, after: Entry, cause: Cause) -> None:
        """A VM or its holds are not what they were."""
        if before != after:
            self._later(lambda to: to.changed(before, after, cause))

    def removed(self, entry: Entry, cause: Cause) -> None:
        """A VM has left the book."""
        self._later(lambda to: to.removed(entry, cause))

    def group_added(self, view: GroupView, cause: Cause) -> None:
        """A group has entered the book."""
        self._later(lambda to: to.group_added(view, cause))

    def group_changed(self, before: GroupView, after: GroupView, cause: Cause) -> None:
        """A group's lasting members or grants are not what they were."""
        if before != after:
            self._later(lambda to: to.group_changed(before, after, cause))

    def group_removed(self, view: GroupView, cause: Cause) -> None:
        """A group has left the book."""
        self._later(lambda to: to.group_removed(view, cause))

    def drift(self, findings: Iterable[Finding]) -> None:
        """Objects were found to be other than the book says, and were left alone."""
        for finding in findings:
            self._later(functools.partial(_tell_drift, finding))

    def enforcement(self, before: Standing, after: Standing) -> None:
        """The kernel does something else with labels than before, or by another policy."""
        if before != after:
            self._later(lambda to: to.enforcement(before, after))

    def job_new(self, job: JobView) -> None:
        """A job has begun."""
        self._later(lambda to: to.job_new(job))

    def job_changed(self, before: JobView, after: JobView) -> None:
        """A job has got further."""
        self._later(lambda to: to.job_changed(before, after))

    def job_removed(self, job: JobView) -> None:
        """A job has ended; its state says how."""
        self._later(lambda to: to.job_removed(job))

    def deliver(self) -> None:
        """Tell the listeners what has happened so far."""
        waiting, self._waiting = self._waiting, []
        reach(Point.PUBLISH_BEFORE)
        for tell in waiting:
            for listener in self._listeners:
                try:
                    tell(listener)
                except Exception as error:  # noqa: BLE001 -- handed on with its traceback
                    # What one cannot take in, the others still hear, and all that follows too.
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": "an event could not be told", "exception": error}
                    )
        reach(Point.PUBLISH_AFTER)

    def _later(self, tell: Callable[[Listener], None]) -> None:
        if not self._waiting:
            # The request's task sends its reply in this turn of the loop, the connection writes
            # it in the next, and the turn after that is ours.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self.deliver)
        self._waiting.append(tell)


def _tell_drift(finding: Finding, to: Listener) -> None:
    to.drift(finding)
