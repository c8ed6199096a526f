# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM that a request is about: that very one, while nobody else changes it."""

import contextlib
from collections.abc import AsyncIterator

from svirtd.book import registry
from svirtd.core.model import VM, Caller
from svirtd.core.names import shown
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.engine.locks import Locks
from svirtd.errors import NoSuchVM


class Meant:
    """Finds VMs for callers. Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors, names: Locks) -> None:
        self._doors = doors
        self._names = names

    @contextlib.asynccontextmanager
    async def owned(self, caller: Caller, action: Action, name: str, id_: str) -> AsyncIterator[VM]:
        """Hold the name of a VM that the caller may do this to.

        Nobody is asked while the name is held: a dialog would keep the VM from its owner. What was
        answered is about the VM that was looked at, not about the next one of its name.
        """
        allowed = ""
        while True:
            async with self._names.hold(name):
                vm = await self.vm(caller, name, allowed or id_)
                if allowed or self._doors.authority.at_once(caller, action, vm=vm):
                    yield vm
                    return
            await self._doors.authority.authorize(caller, action, vm=vm)
            allowed = vm.id

    async def vm(self, caller: Caller, name: str, id_: str) -> VM:
        """Return the VM of this name, if it has this Id or none is given. Raises NoSuchVM."""
        try:
            vm = await vm_named(self._doors, name)
            _refuse_other(vm, id_)
        except NoSuchVM:
            # What there is not is for those who may read; to others all names are alike.
            self._doors.authority.at_once(caller, Action.READ)
            raise
        return vm


async def vm_named(doors: Doors, name: str) -> VM:
    """Return the VM of this name. Raises NoSuchVM."""
    vm = await doors.store.read(lambda db: registry.vm_by_name(db, name))
    if vm is None:
        raise NoSuchVM(f"no VM is named {shown(name)}; see svirtctl list")
    return vm


def _refuse_other(vm: VM, id_: str) -> None:
    """A name is used again: whoever means one VM must not get the next one of its name."""
    if id_ and vm.id != id_:
        raise NoSuchVM(f"VM {vm.name!r} is not the one that is meant: look at it again")
