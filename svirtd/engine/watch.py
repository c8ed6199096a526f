# SPDX-License-Identifier: LGPL-2.1-or-later
"""The live watch: whatever happens to a held object is looked at within a moment.

`restorecon -R` over the images of running VMs strips their labels where the policy does not call
the type customizable, and the kernel cuts the VMs off their disks at once.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

from svirtd.book import registry
from svirtd.book.store import Database
from svirtd.core.findings import Look
from svirtd.core.model import VM, Hold, Identity, State
from svirtd.core.nodes import is_character
from svirtd.engine import apply
from svirtd.engine.doors import Doors
from svirtd.engine.drift import Drift, Repair
from svirtd.engine.events import Cause, Entry, Listener
from svirtd.host import files
from svirtd.host.journal import MessageId, Priority
from svirtd.host.watches import WatchError, Watches

# What comes in one go (a label and its sync, ours included) is one look.
_SETTLE_S: Final = 0.01
_WATCHED: Final = (State.LABELLED, State.RUNNING)


class Watch(Listener):
    """Listens to events for what is held, and to the kernel for what happens to it."""

    def __init__(self, doors: Doors, drift: Drift) -> None:
        """Raises StartError where the kernel gives no watch at all."""
        self._doors = doors
        self._drift = drift
        self._watches = Watches()
        self._of: dict[str, tuple[Hold, ...]] = {}  # VM's Id to what it holds
        self._holds: dict[Identity, dict[str, Hold]] = {}  # by object and VM's Id
        self._stale: set[Identity] = set()
        self._wake = asyncio.Event()
        self._looking: dict[Identity, bool] = {}  # True: look once more
        self._told_full = False
        # More happened than the kernel kept: all has to be looked at.
        self.overflowed = asyncio.Event()

    async def run(self) -> None:
        """Watch for ever what the book says is held, and what events add to that."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._watches.fd, self._readable)
        try:
            for vm, holds in await self._doors.store.read(_held):
                self._set(vm, holds)
            while True:
                await self._wake.wait()
                self._wake.clear()
                stale, self._stale = self._stale, set()
                await self._follow(stale)
        finally:
            loop.remove_reader(self._watches.fd)
            self._watches.close()

    # -- what is held (engine.events.Listener) ------------------------------------------------

    def added(self, entry: Entry, _cause: Cause) -> None:
        """A VM has entered the book."""
        self._set(entry.vm, entry.holds)

    def changed(self, _before: Entry, after: Entry, _cause: Cause) -> None:
        """A VM is in another state."""
        self._set(after.vm, after.holds)

    def removed(self, entry: Entry, _cause: Cause) -> None:
        """A VM has left the book."""
        self._set(entry.vm, ())

    def _set(self, vm: VM, holds: Iterable[Hold]) -> None:
        held = tuple(holds) if vm.state in _WATCHED else ()
        for hold in self._of.pop(vm.id, ()):
            others = self._holds.get(hold.identity, {})
            others.pop(vm.id, None)
            if not others:
                self._holds.pop(hold.identity, None)
            self._stale.add(hold.identity)
        if held:
            self._of[vm.id] = held
        for hold in held:
            self._holds.setdefault(hold.identity, {})[vm.id] = hold
            self._stale.add(hold.identity)
        if self._stale:
            self._wake.set()

    async def _follow(self, stale: set[Identity]) -> None:
        """Watch the objects of these that are held, and no other."""
        begin = []
        for identity in stale:
            hold = next(iter(self._holds.get(identity, {}).values()), None)
            if hold is None:
                self._watches.remove(identity)
                self._drift.forget(identity)
            elif not self._watches.watched(identity):
                begin.append(hold)
        if begin:
            try:
                odd = await self._doors.in_file_thread(self._begin, begin)
            except WatchError as error:
                self._full(error)
                return
            for identity in odd:
                self._look_soon(identity)

    def _begin(self, holds: Sequence[Hold]) -> list[Identity]:
        """Watch these objects, and return those that are not as the book says by then: what
        happened to them before has told nobody. Raises WatchError."""
        odd = []
        for hold in holds:
            # The service's unit may not read a character device, as a watch takes it: what happens
            # to one is seen with the next comparison.
            if is_character(hold.device):
                continue
            with contextlib.suppress(files.Missing, files.Replaced, OSError):
                self._watches.add(hold.path, hold.identity)
            if apply.look(self._doors.kernel, hold.path, hold.identity) != Look(hold.label):
                odd.append(hold.identity)
        return odd

    def _full(self, error: WatchError) -> None:
        if not self._told_full:
            self._told_full = True
            self._doors.journal.record(
                MessageId.WARNING,
                f"not every held object is watched, changed labels are noticed late: {error}",
                priority=Priority.WARNING,
            )

    # -- what happens to it -------------------------------------------------------------------

    def _readable(self) -> None:
        identities, overflow = self._watches.read()
        if overflow:
            self.overflowed.set()
        for identity in identities:
            if identity in self._holds:
                self._look_soon(identity)

    def _look_soon(self, identity: Identity) -> None:
        if identity in self._looking:
            self._looking[identity] = True
            return
        self._looking[identity] = False
        self._doors.spawn(self._look(identity))

    async def _look(self, identity: Identity) -> None:
        try:
            while True:
                await asyncio.sleep(_SETTLE_S)
                self._looking[identity] = False
                if identity in self._holds:
                    await self._drift.check(identity, Repair.AUTOMATIC)
                if not self._looking[identity]:
                    return
        finally:
            del self._looking[identity]


def _held(db: Database) -> list[tuple[VM, list[Hold]]]:
    return [(vm, registry.holds_of(db, vm)) for vm in registry.active_vms(db)]
