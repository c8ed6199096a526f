# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtd promises, as a world that counts.

No line of it comes from the engine: it says what a request must lead to, and what the files, the
VMs and the quarantine must be afterwards.
"""

from collections.abc import Sequence
from dataclasses import replace

from tests.crash.model import (
    BUSY,
    FAILED,
    GONE,
    GROUP_POOL,
    NO_GROUP,
    NO_VM,
    TAKEN,
    TWICE,
    Hold,
    Suspect,
    categories,
)
from tests.crash.model_domains import Domains
from tests.crash.model_labels import earlier
from tests.crash.model_leases import Leases
from tests.crash.model_units import Units


class World(Leases, Domains, Units):
    """Everything that there is. `restart`: what a new start of the daemon makes of it."""

    __slots__ = ()

    # -- groups -----------------------------------------------------------------------------

    def join(self, name: str, group: str) -> set[str]:
        """Have a persistent VM be in a group from its next start on."""
        vm = self.vms.get(name)
        if vm is None or group not in self.groups:
            return {NO_VM, GONE, NO_GROUP}
        if not vm.persistent or (vm.state != "reserved" and group not in vm.lasting):
            return {FAILED}
        self.vms[name] = replace(vm, lasting=vm.lasting | {group})
        return set()

    def leave(self, name: str, group: str) -> set[str]:
        """Have a VM not be in a group any more."""
        vm = self.vms.get(name)
        if vm is None or group not in self.groups:
            return {NO_VM, GONE, NO_GROUP}
        if group in vm.groups:
            return {FAILED}
        if group not in vm.lasting:
            return {TWICE}
        self.vms[name] = replace(vm, lasting=vm.lasting - {group})
        return set()

    def grant_group(self, name: str, group: str) -> set[str]:
        """Allow a VM of this name to be in a group, whether it is in the book or not."""
        if group not in self.groups:
            return {GONE}
        self.grants.add((group, name))
        return set()

    def revoke(self, name: str, group: str) -> set[str]:
        """Take that back, and have the VM leave the group."""
        vm = self.vms.get(name)
        if group not in self.groups:
            return {GONE}
        if vm is not None and group in vm.groups:
            return {FAILED}
        member = vm is not None and group in vm.lasting
        if (group, name) not in self.grants and not member:
            return {TWICE}
        self.grants.discard((group, name))
        if vm is not None:
            self.vms[name] = replace(vm, lasting=vm.lasting - {group})
        return set()

    def delete_group(self, group: str) -> set[str]:
        """Delete a group that no VM is in."""
        if group not in self.groups:
            return {NO_GROUP}
        if any(group in vm.groups | vm.lasting for vm in self.vms.values()):
            return {BUSY}
        del self.groups[group]
        self.grants = {one for one in self.grants if one[0] != group}
        return set()

    def create_group(self, group: str, category: int) -> None:
        """A group with a category that the service has chosen: one that nothing may carry."""
        assert category in GROUP_POOL - set(self.groups.values())
        assert (category,) not in {one.pair for one in self.suspects}, f"c{category} is suspected"
        self.groups[group] = category

    # -- a new start of the daemon ----------------------------------------------------------

    def restart(self, *, ended: Sequence[str] = (), gone: Sequence[int] = ()) -> None:
        """Settle failed releases, VMs whose unit or caller is gone, and the quarantine."""
        self.findings.clear()
        for vm in list(self.vms.values()):
            over = vm.state in ("running", "releasing") and vm.pid not in self.alive
            gone_on = vm.name in ended or vm.caller in gone
            if vm.state == "failed" or gone_on or (vm.libvirt and over):
                self.release(vm.name)
        self.suspects = [one for one in self.suspects if not self._clean(one)]
        for vm in self.vms.values():
            # What libvirt is about to label, or to give back, is libvirt's to do.
            ours = vm.state == "running" or (vm.state == "labelled" and not vm.libvirt)
            for hold in vm.holds if ours else ():
                self._put_back(hold)
        # Nobody is on the bus to hear of it.
        self.findings.clear()

    def _clean(self, suspect: Suspect) -> bool:
        """Say whether a pair is proven gone from a file, or can be taken off it now."""
        file = self.at(suspect.path)
        if file is None or file.ino != suspect.ino:
            return False
        if not self.carries(suspect.path, frozenset(suspect.pair)):
            return True
        if self.holders(file.ino):
            return False
        left = self.left(suspect)
        self.give_back_parts(suspect)
        return not left

    def _put_back(self, hold: Hold) -> None:
        """A label that had not reached the disk in a power cut: what was before it is there."""
        file = self.at(hold.path)
        if file is None or file.ino != hold.ino:
            return
        for part in self.parts(hold.path):
            plain = part.label is None or part.label.split(":")[2] in TAKEN
            back = part.label == earlier(hold, part) != hold.label
            if back and plain and not categories(part.label) and self.writable(hold.path, part):
                part.label, part.theirs = hold.label, False
