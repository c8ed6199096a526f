# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group objects: contract members to requests, events to signals. No decisions."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from svirtd.api import wire
from svirtd.api.call import Call, Handler, Reply
from svirtd.api.contract import (
    GROUP,
    GROUP_FOLDER,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    VM,
)
from svirtd.core.groups import Grant, GroupView
from svirtd.core.model import Caller
from svirtd.core.names import escape_path
from svirtd.engine.authorize import sees_group
from svirtd.engine.groups import Groups
from svirtd.host.bus import Variant

Emit = Callable[[str, str, str, str, list[Any]], None]

GROUP_PROPERTIES: Final[Mapping[str, tuple[str, Callable[[GroupView], object]]]] = {
    "Name": ("s", lambda view: view.group.name),
    "Owner": ("u", lambda view: view.group.owner_uid),
    "Category": ("s", lambda view: f"c{view.group.category}"),
    "Members": ("as", lambda view: [name for name, _ in view.members]),
    "Grants": ("aa{sv}", lambda view: [_grant(one) for one in view.grants]),
    "Writers": ("s", lambda view: view.group.writers.value),
    "Namespace": ("s", lambda view: view.group.namespace),
    "CreatedAt": ("t", lambda view: view.group.created_us),
}
# As of a VM: that there is one, and whose. Who is in it is for its owner and its members' owners.
_PUBLIC: Final = ("Name", "Owner")


def group_path(name: str) -> str:
    """Return the object path of a group."""
    return f"{GROUP_FOLDER}/{escape_path(name)}"


def group_properties(view: GroupView) -> dict[str, Variant]:
    """Return every property of org.svirt1.Group."""
    return {name: Variant(sig, get(view)) for name, (sig, get) in GROUP_PROPERTIES.items()}


def _visible(caller: Caller, view: GroupView) -> dict[str, Variant]:
    values = group_properties(view)
    return values if sees_group(caller, view) else {name: values[name] for name in _PUBLIC}


def _grant(one: Grant) -> dict[str, Variant]:
    return {
        "vm": Variant("s", one.vm_name),
        "owner": Variant("u", one.owner_uid),
        "until": Variant("t", one.until_us),
        "at-end": Variant("s", one.at_end.value),
        "since": Variant("t", one.since_us),
    }


class GroupObjects:
    """Handlers of every member that is about groups, and their signals."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self.emit: Emit = lambda *_: None

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handler of each method, by interface and member."""
        return {
            (MANAGER, "CreateGroup"): self._create,
            (MANAGER, "DeleteGroup"): self._delete,
            (MANAGER, "ListGroups"): self._list,
            (GROUP, "Grant"): self._grant_vm,
            (GROUP, "Revoke"): self._revoke,
            (VM, "JoinGroup"): self._join,
            (VM, "LeaveGroup"): self._leave,
        }

    async def _create(self, call: Call) -> Reply:
        name, options = call.body
        made = await self._groups.create(call.caller, wire.read_group(name, options))
        return Reply([group_path(made.name)])

    async def _delete(self, call: Call) -> Reply:
        name, options = call.body
        wire.no_options(options)
        await self._groups.delete(call.caller, name)
        return Reply([])

    async def _list(self, call: Call) -> Reply:
        groups = await self._groups.all(call.caller)
        return Reply([[[one.name, one.owner_uid, group_path(one.name)] for one in groups]])

    async def _grant_vm(self, call: Call) -> Reply:
        vm_name, options = call.body
        await self._groups.grant(call.caller, call.group, wire.read_grant(vm_name, options))
        return Reply([])

    async def _revoke(self, call: Call) -> Reply:
        vm_name, options = call.body
        next_start = wire.read_when(options)
        await self._groups.revoke(call.caller, call.group, vm_name, next_start=next_start)
        return Reply([])

    async def _join(self, call: Call) -> Reply:
        name, options = call.body
        next_start = wire.read_when(options)
        await self._groups.join(call.caller, call.vm_name, name, next_start=next_start)
        return Reply([])

    async def _leave(self, call: Call) -> Reply:
        name, options = call.body
        next_start = wire.read_when(options)
        await self._groups.leave(call.caller, call.vm_name, name, next_start=next_start)
        return Reply([])

    async def properties(self, caller: Caller, name: str) -> dict[str, Variant]:
        """Return every property of one group that the caller may see. Raises NoSuchGroup."""
        return _visible(caller, await self._groups.view(caller, name))

    async def managed(self, caller: Caller) -> dict[str, dict[str, dict[str, Variant]]]:
        """Return every group with what the caller may see of it, for GetManagedObjects."""
        return {
            group_path(view.group.name): {GROUP: _visible(caller, view)}
            for view in await self._groups.views(caller)
        }

    async def children(self, caller: Caller) -> list[str]:
        """Return the path elements of the groups, for introspection."""
        return [escape_path(group.name) for group in await self._groups.all(caller)]

    # -- signals ----------------------------------------------------------------------------

    def added(self, view: GroupView) -> None:
        """A group has entered the book."""
        values = group_properties(view)
        public = {name: values[name] for name in _PUBLIC}
        path = group_path(view.group.name)
        self.emit(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, {GROUP: public}])

    def changed(self, before: GroupView, after: GroupView) -> None:
        """A group is not what it was; all that can change is not for everybody."""
        changed = [n for n, (_, get) in GROUP_PROPERTIES.items() if get(before) != get(after)]
        self._invalidated(after.group.name, changed)

    def members_changed(self, names: set[str]) -> None:
        """VMs have begun or ended that are in these groups."""
        for name in sorted(names):
            self._invalidated(name, ["Members"])

    def removed(self, view: GroupView) -> None:
        """A group has left the book."""
        path = group_path(view.group.name)
        self.emit(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [GROUP]])

    def _invalidated(self, name: str, properties: list[str]) -> None:
        if properties:
            path = group_path(name)
            self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [GROUP, {}, properties])
