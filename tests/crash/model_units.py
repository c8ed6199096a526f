# SPDX-License-Identifier: LGPL-2.1-or-later
"""An enrolled unit: a persistent VM, labelled at each start of the unit, given back at its end."""

from collections.abc import Sequence
from dataclasses import replace

from tests.crash.model import (
    DRIFT,
    EXHAUSTED,
    EXISTS,
    FAILED,
    NO_GROUP,
    NO_VM,
    Guest,
    Pair,
    Want,
)
from tests.crash.model_labels import Labels

UNIT = "histories.service"


class Units(Labels):
    """A world with one unit of the administrator's; `enrolled` says as what, and for what."""

    __slots__ = ()

    @property
    def of_unit(self) -> Guest | None:
        """The VM that the unit is enrolled as."""
        return self.vms[self.enrolled[0]] if self.enrolled is not None else None

    @property
    def unit_shares(self) -> Pair:
        """The categories that the VM has beside its pair at the unit's next start."""
        vm, enrolled = self.of_unit, self.enrolled
        if vm is None or enrolled is None:
            return frozenset()
        groups = vm.lasting | {want.group for want in enrolled[1] if want.group}
        return frozenset(self.groups[one] for one in groups if one in self.groups)

    def against_enrolling(self, name: str, wants: Sequence[Want]) -> set[str]:
        """Return the errors of which an Enroll must meet one. What it names is not looked at."""
        found, known = set(), self.vms.get(name)
        if self.enrolled is not None and self.enrolled[0] != name:
            found.add(EXISTS)
        if known is not None and (
            not known.persistent or known.libvirt or known.state != "reserved"
        ):
            found.add(EXISTS)
        if known is None and not self.free():
            found.add(EXHAUSTED)
        if {want.group for want in wants} - {"", *self.groups}:
            found.add(NO_GROUP)
        return found

    def enroll(self, vm: Guest, wants: Sequence[Want]) -> None:
        """Enter the unit as a VM that the service has made, or had."""
        known = self.vms.get(vm.name)
        if known is None:
            assert vm.pair in self.free()
        else:
            assert (known.pair, known.id) == (vm.pair, vm.id)
        kept = known or replace(vm, state="reserved", persistent=True)
        self.vms[vm.name] = replace(kept, enrolled=True)
        self.enrolled = vm.name, tuple(wants)

    def start_unit(self, shared: Pair | None) -> bool:
        """systemd starts the unit, whose file gives it these categories beside the VM's pair;
        returns whether it runs."""
        vm = self.of_unit
        if vm is None or self.enrolled is None:
            return False
        wants = self.enrolled[1]
        errors = self.judge(vm.name, wants, starts=True)
        if shared != self.unit_shares:
            errors.add(DRIFT)
        if not errors:
            self.grant(replace(vm, unit=True), wants)
            return True
        if vm.state != "reserved":
            # The end of a start that was refused is told as every end is: it is tried once more.
            self.release(vm.name)
        return False

    def unenroll(self, *, keep: bool) -> set[str]:
        """Take the unit out of the book, and its VM; returns the errors of which one is met."""
        vm = self.of_unit
        if vm is None:
            return {NO_VM}
        if vm.state != "reserved":
            return {FAILED}
        self.enrolled = None
        if keep:
            self.vms[vm.name] = replace(vm, enrolled=False)
        else:
            del self.vms[vm.name]
        return set()
