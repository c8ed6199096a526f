# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which category sets others on this host use at this moment."""

import asyncio
from dataclasses import dataclass

from svirtd.book import groups as rows
from svirtd.book import registry
from svirtd.core import foreign
from svirtd.core.foreign import ForeignSet
from svirtd.core.model import Caller, Process
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.host import processes
from svirtd.host.processes import Facts


@dataclass(frozen=True, slots=True)
class Listed:
    """A foreign set with what its first process is. `groups` are svirtd's whose category it has."""

    found: ForeignSet
    facts: Facts
    groups: tuple[str, ...]


class Foreign:
    """Looks at the processes of the host. Who asks at the same time shares one look."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._private = frozenset(doors.shape.private)
        self._one = asyncio.Lock()
        self._next: asyncio.Future[list[Process]] | None = None

    async def sets(self) -> frozenset[frozenset[int]]:
        """Return the category sets that processes run under, those of svirtd's own VMs among them.

        Never from memory: a set that libvirt gave a moment ago must not be handed out.
        """
        if not self._doors.kernel.enabled():
            return frozenset()
        return foreign.sets(await self.processes(), self._private)

    async def listed(self, caller: Caller) -> list[Listed]:
        """Return the sets in use that svirtd did not give, each with whose it is.

        Raises AccessDenied, LimitsExceeded; OSError if nobody knows.
        """
        doors = self._doors
        # It shows processes of everybody.
        await doors.authority.authorize(caller, Action.VERIFY)
        if not doors.kernel.enabled():
            return []
        vms, groups = await doors.store.read(
            lambda db: (registry.active_vms(db), rows.everything(db))
        )
        ours = {vm.process_context for vm in vms}
        found = []
        for one in foreign.by_context(await self.processes(), ours, self._private):
            facts = await doors.in_file_thread(processes.facts, one.pids[0])
            if facts is None:
                continue  # it has ended meanwhile
            names = tuple(group.name for group in groups if group.category in one.categories)
            found.append(Listed(one, facts, names))
        return found

    async def processes(self) -> list[Process]:
        """Return the host's processes with their labels, from a look that began after the call."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._look())
        # Shielded: another may wait for the same look.
        return await asyncio.shield(self._next)

    async def _look(self) -> list[Process]:
        async with self._one:
            # Begins now: who asks from here on must wait for the one after.
            self._next = None
            doors = self._doors
            return await doors.in_file_thread(processes.labelled, doors.kernel)
