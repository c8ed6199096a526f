# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix of VMs and what they can do: the book's contexts, put before the loaded policy."""

from collections.abc import Sequence
from typing import Final

from svirtd.book import registry
from svirtd.book.store import Database
from svirtd.core import matrix
from svirtd.core.matrix import Cell
from svirtd.core.model import VM, Caller, Hold
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.errors import Failed, LimitsExceeded

# More would make an answer of some megabytes, which the loop takes apart for every other caller's
# time; a person who asks for less reads more.
CELLS_MAX: Final = 10_000


class Matrix:
    """Asks the policy about every VM of the book."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def run(self, caller: Caller) -> tuple[list[Cell], bool]:
        """Return every cell, and whether the loaded policy has answered (else: the algebra).

        Raises AccessDenied, LimitsExceeded for more than CELLS_MAX cells, and Failed where the
        kernel does not tell.
        """
        doors = self._doors
        await doors.authority.authorize(caller, Action.VERIFY)
        limit = doors.config.limits.listed_vms

        def look(db: Database) -> tuple[list[VM], list[Hold]]:
            vms = registry.all_vms(db, limit)
            if vms is None:
                raise LimitsExceeded(f"the book has more than [limits] listed-vms = {limit} VMs")
            return vms, [hold for vm in vms for hold in registry.holds_of(db, vm)]

        vms, holds = await doors.store.read(look)
        resources = matrix.resources_of(holds)
        cells = matrix.size(len(vms), len(resources))
        if cells > CELLS_MAX:
            raise LimitsExceeded(
                f"{len(vms)} VMs and {len(resources)} resources make {cells} questions; at most "
                f"{CELLS_MAX} are answered at once: release or forget VMs that are not used"
            )
        found: list[Cell] = []
        # One VM at a time: between two of them, others get the thread.
        for vm in vms:
            found += await doors.in_file_thread(self._row, vm, vms, resources)
        return found, doors.kernel.enabled()

    def _row(self, vm: VM, vms: Sequence[VM], resources: Sequence[Sequence[Hold]]) -> list[Cell]:
        doors = self._doors
        ask = (
            doors.kernel.decide
            if doors.kernel.enabled()
            else matrix.algebra(doors.contexts, doors.goals.image_types())
        )
        try:
            return list(matrix.row(vm, vms, resources, ask))
        except (OSError, ValueError) as error:
            raise Failed(
                f"what VM {vm.name!r} can do is not known: the kernel does not tell ({error})"
            ) from error
