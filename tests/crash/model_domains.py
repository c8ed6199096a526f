# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs that libvirt starts, labels and ends: checked in, followed while they run, and released."""

from collections.abc import Sequence
from dataclasses import replace

from tests.crash.model import FAILED, GONE, NO_LABEL, REFUSED, Guest, Want
from tests.crash.model_labels import Labels


class Domains(Labels):
    """A world with VMs of libvirt's, whose processes are those of `alive`."""

    __slots__ = ()

    def follow(self, name: str, pid: int) -> set[str]:
        """libvirt says that a VM runs as a process; returns the errors of which one must be met."""
        vm = self.vms.get(name)
        if vm is None:
            return {GONE}
        running = vm.state == "running"
        if not vm.libvirt or (vm.state != "labelled" and not running):
            return {FAILED}
        if running and vm.pid != pid:
            return {FAILED}
        if pid not in self.alive or not all(self.stands(vm, hold.path) for hold in vm.holds):
            return {NO_LABEL}
        self.vms[name] = replace(vm, state="running", pid=pid)
        return set()

    def ending(self, name: str) -> set[str]:
        """libvirt says that a VM has ended, and gives labels back from here on."""
        vm = self.vms.get(name)
        if vm is None:
            return {GONE}
        if not vm.libvirt or vm.state == "failed":
            return {FAILED}
        if vm.state in ("labelled", "running"):
            self.vms[name] = replace(vm, state="releasing")
        return set()

    def stands(self, vm: Guest, path: str) -> bool:
        """Say whether what a VM holds by a path is there, and carries the VM's label."""
        file = self.at(path)
        (hold,) = (one for one in vm.holds if one.path == path)
        return file is not None and (file.ino, file.label) == (hold.ino, hold.label)

    def libvirt_sets(self, name: str, *, back: bool) -> dict[str, str | None]:
        """libvirt labels what a VM holds, by its paths, or gives it back; returns what it sets."""
        vm, done = self.vms[name], dict[str, str | None]()
        for hold in vm.holds:
            file = self.at(hold.path)
            # It counts who uses a file, and gives none back that another VM has.
            shared = any(other.name != name for other, _ in self.holders(hold.ino))
            if file is None or not self.writable(hold.path) or (back and shared):
                continue
            file.label = hold.original if back else hold.label
            file.theirs = back or file.ino != hold.ino
            done[hold.path] = file.label
        return done

    def judge_check_in(self, name: str, wants: Sequence[Want]) -> set[str]:
        """Return the errors of which a check-in must meet one; empty if it must succeed."""
        found = self.general(name, wants)
        for want in wants:
            file = self.at(want.path)
            if file is None or self.cannot_open(want):
                found.add(REFUSED)
            elif not want.group or want.group in self.groups:
                # Another VM of libvirt's may be about to get it labelled.
                holders = self.holders(file.ino)
                early = holders and file.label == holders[0][1].original
                found |= self.against(want) - ({REFUSED} if early else set())
        return found
