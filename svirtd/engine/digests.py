# SPDX-License-Identifier: LGPL-2.1-or-later
"""Digests of what a VM may only read: taken before the VM gets it, compared when it is given back.

Between the two the label keeps it from this VM and every other. What could still change it is the
host's administrator, or a service that the policy lets: that is found, and told.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from svirtd.core.findings import Finding, FindingKind
from svirtd.core.goals import Goal, Goals
from svirtd.core.model import VM, Access, Hold
from svirtd.engine.events import Entry
from svirtd.errors import Failed, ResourceRefused
from svirtd.host import digest, files
from svirtd.host.opening import Opened

_ALTERED: Final = "its content is not what it was when the VM got it"
_NOT_COMPARED: Final = "its content could not be compared with what it was when the VM got it"
_AT_START: Final = (
    "its content was not compared with what it was when the VM got it: it is large, and svirtd was "
    "about to start, with all other VMs waiting; compare it by hand (sha256sum)"
)
# A few seconds' reading. More would keep the service from starting, again and again.
_AT_START_MAX_BYTES: Final = 256 << 20
_REPAIR: Final = "nothing: find out who wrote it; its label is given back all the same"


class Digests:
    """Reads one file after the other, in a thread of its own: a large one holds up no other work
    on files."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._closed = threading.Event()
        # Until the daemon serves: then nobody waits but whoever has asked.
        self.starting = False

    def close(self) -> None:
        """Leave what is being read."""
        self._closed.set()
        self._thread.shutdown()

    async def take(self, goal: Goal, entry: Entry, opened: Sequence[Opened]) -> Entry:
        """Return an entry with the digest of each resource that the VM alone reads, if its goal
        wants that. Raises ResourceRefused for what cannot be read, Failed.
        """
        if not goal.digest:
            return entry
        fds = {one.seen.identity: one.fd for one in opened}
        holds = []
        for hold in entry.holds:
            found = hold.digest
            if hold.access is Access.READONLY:
                try:
                    found = await self._of(functools.partial(os.dup, fds[hold.identity]))
                except OSError as error:
                    raise ResourceRefused(
                        f"{hold.path} cannot be read whole for its digest ({error.strerror}), "
                        f"which goal {goal.name!r} takes of all that it reads"
                    ) from error
            holds.append(replace(hold, digest=found))
        return Entry(entry.vm, tuple(holds))

    async def compare(self, vm: VM, holds: Sequence[Hold]) -> list[Finding]:
        """Return what is to be told of holds whose content is not what it was. Raises Failed."""
        found = []
        for hold in holds:
            if hold.digest:
                try:
                    now = await self._of(functools.partial(self._find, hold))
                except _Large:
                    found.append(_finding(FindingKind.FAILED, vm, hold, "", _AT_START))
                    continue
                except (files.Missing, files.Replaced):
                    continue  # told when its label is to be given back
                except OSError as error:
                    why = f"{_NOT_COMPARED}: {error.strerror}"
                    found.append(_finding(FindingKind.FAILED, vm, hold, "", why))
                    continue
                if now != hold.digest:
                    found.append(_finding(FindingKind.ALTERED, vm, hold, now, _ALTERED))
        return found

    def _find(self, hold: Hold) -> int:
        fd = files.find(hold.path, hold.identity)
        if self.starting and os.lseek(fd, 0, os.SEEK_END) > _AT_START_MAX_BYTES:
            os.close(fd)
            raise _Large
        return fd

    async def _of(self, open_: Callable[[], int]) -> str:
        """Return the digest of what `open_` opens. It is closed again, whatever happens."""
        left = threading.Event()

        def work() -> str | None:
            if left.is_set() or self._closed.is_set():
                return None  # a descriptor that it was to use may be another file's by now
            fd = open_()
            try:
                return digest.sha256(fd, lambda: not left.is_set() and not self._closed.is_set())
            finally:
                os.close(fd)

        try:
            found = await asyncio.wrap_future(self._thread.submit(work))
        except asyncio.CancelledError:
            left.set()
            raise
        except RuntimeError as error:
            raise Failed(f"no digest can be taken: {error}") from error
        if found is None:
            raise Failed("svirtd stops; the digest was not taken to its end")
        return found


def lacking(known: Goals, vm: VM, holds: Sequence[Hold]) -> bool:
    """Say whether a digest that the VM's goal wants has not been taken."""
    goal = known.get(vm.goal)
    if goal is None or not goal.digest:
        return False
    return any(hold.access is Access.READONLY and not hold.digest for hold in holds)


class _Large(Exception):
    """More than what is read while the daemon starts."""


def _finding(kind: FindingKind, vm: VM, hold: Hold, now: str, why: str) -> Finding:
    expected = f"sha256:{hold.digest}"
    return Finding(
        kind, vm.name, hold.path, expected, f"sha256:{now}" if now else "", why, repair=_REPAIR
    )
