# SPDX-License-Identifier: LGPL-2.1-or-later
"""What VM objects offer about single resources: contract members to requests. No decisions."""

from collections.abc import Mapping

from svirtd.api import wire
from svirtd.api.call import Call, Handler, Reply
from svirtd.api.contract import VM
from svirtd.engine.attachments import Attachments
from svirtd.engine.doors import Doors
from svirtd.engine.queries import Queries


class HotplugObjects:
    """Handlers of every member that attaches or detaches."""

    def __init__(self, attachments: Attachments, doors: Doors) -> None:
        self._attachments = attachments
        self._queries = Queries(doors)
        self._doors = doors

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handler of each method, by interface and member."""
        return {(VM, "Attach"): self._attach, (VM, "Detach"): self._detach}

    async def _attach(self, call: Call) -> Reply:
        resource, options = call.body
        entry = await self._queries.vm(call.caller, call.vm_name)
        goal = self._doors.goals.named(entry.vm.goal)
        asked, id_ = wire.read_attach(resource, options, call.fds, goal)
        return Reply([await self._attachments.attach(call.caller, call.vm_name, id_, asked)])

    async def _detach(self, call: Call) -> Reply:
        resource, options = call.body
        id_ = wire.read_id(options)
        await self._attachments.detach(call.caller, call.vm_name, id_, resource)
        return Reply([])
