# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of a VM when what it has leased is over."""

from dataclasses import replace

from tests.crash.model import Finding
from tests.crash.model_attach import Attaching


class Leases(Attaching):
    """A world in which a VM has some of what it has for a time."""

    __slots__ = ()

    def end_leases(self, name: str) -> None:
        """All that a VM that is up has leased is over: one that does not run loses it, one that
        runs does so where the lease says it, or ends, or keeps it, and that is told."""
        vm = self.vms[name]
        runs, over = vm.state == "running", [hold for hold in vm.holds if hold.until]
        if runs and any(hold.at_end == "stop" for hold in over):
            self.release(name)
            return
        for hold in over:
            if runs and hold.at_end == "report":
                self.findings.append(Finding("expired", name, hold.path))
            elif hold in vm.holds:
                leaving = self._with_parts(vm, hold)
                if len(leaving) == len(vm.holds) and not runs:
                    self.release(name)
                    return
                assert self.lose(vm, leaving)
                stay = tuple(one for one in vm.holds if one not in leaving)
                vm = self.vms[name] = replace(vm, holds=stay)
