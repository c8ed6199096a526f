# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs that libvirt starts, labels and ends: its hook tells svirtd of each, and svirtd looks.

What the hook says is not taken for true: that a process runs under the VM's label is asked of the
kernel, and that libvirt has labelled what the book says is looked at, file by file.
"""

import os
from dataclasses import replace

from svirtd.book import registry
from svirtd.book.store import Database
from svirtd.core.findings import Look
from svirtd.core.model import VM, Caller, Hold, Labeller, State
from svirtd.core.names import shown
from svirtd.engine import apply
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.meant import vm_named
from svirtd.engine.operations import Operations
from svirtd.errors import Failed, LabelRefused, NoSuchVM

# What a VM of libvirt's has been entered for, and libvirt has not begun to end.
_CHECKED_IN = (State.LABELLED, State.RUNNING)


class Followed:
    """Follows VMs that libvirt has. Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors, events: Events, operations: Operations) -> None:
        self._doors = doors
        self._events = events
        self._operations = operations

    async def follow(self, caller: Caller, name: str, pid: int, id_: str) -> None:
        """Have a VM be running as this process, if it runs under the VM's label and libvirt has
        labelled all that the VM holds. Raises LabelRefused if not, and changes nothing then."""
        vm = await self._meant(caller, name, id_)
        async with self._operations.names.hold(name):
            now = await self._checked_in(vm)
            if now.state is State.RUNNING and now.main_pid != pid:
                raise Failed(f"VM {name!r} runs as process {now.main_pid} already, not as {pid}")
            holds = tuple(await self._doors.store.read(lambda db: registry.holds_of(db, now)))
            await self._doors.in_file_thread(self._check, now, pid, holds)
            await self._become(now, State.RUNNING, pid, Cause("follow", caller.uid))

    async def ending(self, caller: Caller, name: str, id_: str) -> None:
        """Have a VM be releasing: from here on libvirt gives labels back, and that is no drift."""
        vm = await self._meant(caller, name, id_)
        async with self._operations.names.hold(name):
            now = await self._checked_in(vm, State.RELEASING, State.RESERVED)
            if now.state in _CHECKED_IN:
                await self._become(now, State.RELEASING, now.main_pid, Cause("ending", caller.uid))

    async def _meant(self, caller: Caller, name: str, id_: str) -> VM:
        authority = self._doors.authority
        # What there is not is for those who may read; to others all names are alike.
        authority.at_once(caller, Action.READ)
        vm = await vm_named(self._doors, name)
        await authority.authorize(caller, Action.RELEASE, vm=vm)
        if id_ and vm.id != id_:
            raise NoSuchVM(f"VM {shown(name)} is not the one that is meant: look at it again")
        if vm.labeller is not Labeller.LIBVIRT:
            raise Failed(f"VM {name!r} is not libvirt's: svirtd itself labels what it holds")
        return vm

    async def _checked_in(self, vm: VM, *also: State) -> VM:
        """Return what the VM is now, under its lock. Raises Failed if it is not to be followed."""
        now = await self._doors.store.read(lambda db: registry.current(db, vm))
        if now is None or now.labeller is not Labeller.LIBVIRT:
            raise NoSuchVM("the VM has left the book meanwhile")
        if now.state not in (*_CHECKED_IN, *also):
            raise Failed(
                f"VM {vm.name!r} is {now.state.value}, and was not checked in before its start"
            )
        return now

    async def _become(self, vm: VM, state: State, pid: int, cause: Cause) -> None:
        after = replace(vm, state=state, main_pid=pid)
        if after == vm:
            return

        def write(db: Database) -> tuple[Hold, ...]:
            registry.update_vm(db, after)
            return tuple(registry.holds_of(db, after))

        # Not durable: after a power cut nothing runs, and the next start looks at that itself.
        holds = await self._doors.store.write(write, durable=False)
        self._events.changed(Entry(vm, holds), Entry(after, holds), cause)

    def _check(self, vm: VM, pid: int, holds: tuple[Hold, ...]) -> None:
        self._check_process(vm, pid)
        kernel = self._doors.kernel
        for hold in holds:
            seen = apply.look(kernel, hold.path, hold.identity)
            if seen != Look(hold.label):
                found = seen.why or f"it carries {seen.label or 'no label'}"
                raise LabelRefused(
                    f"{hold.path}: libvirt was to label it {hold.label} for VM {vm.name!r}, and "
                    f"{found}; look whether the domain has relabel='yes' and no other seclabel on "
                    "that disk, or have it written again: svirtctl libvirt adopt"
                )

    def _check_process(self, vm: VM, pid: int) -> None:
        """As of every VM: the label is asked of the kernel, never assumed."""
        kernel = self._doors.kernel
        if not kernel.enabled():
            if not is_there(pid):
                raise LabelRefused(f"there is no process {pid}")
            return
        try:
            found = kernel.process_label(pid)
        except OSError as error:
            raise LabelRefused(f"the label of process {pid} cannot be read ({error})") from error
        if found != vm.process_context:
            raise LabelRefused(
                f"process {pid} runs as {found} instead of {vm.process_context}, the label of VM "
                f"{vm.name!r}; have the domain's label written again: svirtctl libvirt adopt"
            )


def is_there(pid: int) -> bool:
    """Say whether there is such a process."""
    return pid > 0 and os.path.exists(f"/proc/{pid}")


async def alive(doors: Doors, vm: VM) -> bool:
    """Say whether the process of a VM of libvirt's still runs under the VM's label."""

    def look() -> bool:
        if not vm.main_pid or not is_there(vm.main_pid):
            return False
        if not doors.kernel.enabled():
            return True
        try:
            return doors.kernel.process_label(vm.main_pid) == vm.process_context
        except OSError:
            return False  # it has ended meanwhile

    return await doors.in_file_thread(look)


async def refuse_running(doors: Doors, vm: VM) -> None:
    """Raise Failed for a VM that runs and that svirtd cannot end: it would lose its disks."""
    if vm.labeller is Labeller.LIBVIRT and vm.state is State.RUNNING and await alive(doors, vm):
        raise Failed(
            f"VM {vm.name!r} runs under libvirt (process {vm.main_pid}), and its disks stay "
            "labelled as long as it does; end it there (virsh shutdown, virsh destroy): it is "
            "released then"
        )
