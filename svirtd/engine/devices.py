# SPDX-License-Identifier: LGPL-2.1-or-later
"""Device nodes of a VM that runs: its unit may open those that it holds, where its goal says so.

The label is what keeps a VM from a device; the unit's own list is a second fence around those VMs
whose goal names the only devices that they may open.
"""

from collections.abc import Sequence

from svirtd.core import nodes
from svirtd.core.model import VM, Hold
from svirtd.engine.doors import Doors
from svirtd.errors import SvirtError
from svirtd.host.journal import MessageId, Priority


class Devices:
    """Changes the list of a VM's unit."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def set(self, vm: VM, changed: Sequence[Hold], stay: Sequence[Hold]) -> None:
        """Have the unit open the devices of `changed` as `stay` says, or not at all.

        Raises Failed.
        """
        goal = self._doors.goals.known.get(vm.goal)
        # An enrolled unit is the administrator's, and has the list that he gave it.
        if not vm.unit or vm.enrolled or (goal is not None and goal.devices is None):
            return
        for device in dict.fromkeys(hold.device for hold in changed if hold.device):
            held = [hold for hold in stay if hold.device == device]
            writes = any(hold.access.writes for hold in held)
            mode = ("rw" if writes else "r") if held else ""
            await self._doors.systemd.set_device(vm.unit, _node(device), mode)

    async def back(self, vm: VM, changed: Sequence[Hold], stay: Sequence[Hold]) -> None:
        """As set(), for what is taken back: without an answer the label alone keeps the VM out."""
        try:
            await self.set(vm, changed, stay)
        except SvirtError as error:
            self._doors.journal.record(
                MessageId.WARNING,
                f"VM {vm.name}: {error}",
                priority=Priority.WARNING,
                SVIRT_VM=vm.name,
                SVIRT_UNIT=vm.unit,
            )


def _node(device: int) -> str:
    """Return a device by its number: the path of a node is somebody's to exchange."""
    major, minor = nodes.major_minor(device)
    return f"/dev/{'char' if nodes.is_character(device) else 'block'}/{major}:{minor}"
