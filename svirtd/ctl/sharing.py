# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract about groups and walls from the caller's side: a part of the client."""

from typing import Final

from svirtd.core.groups import AtEnd
from svirtd.core.names import escape_path
from svirtd.ctl.calls import VM, Calls
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.values import Values, plain
from svirtd.errors import NoSuchGroup, UnknownObject
from svirtd.host.bus import Variant

_GROUP: Final = "org.svirt1.Group"
_FOLDER: Final = "/org/svirt1/group"


class Sharing(Calls):
    """Calls about groups and walls. Every method raises Failure, as the client's own do."""

    async def create_group(self, name: str, namespace: str | None, *, one_writer: bool) -> str:
        """Make a group; returns its object path."""
        options = {}
        if one_writer:
            options["writers"] = Variant("s", "one")
        if namespace is not None:
            options["namespace"] = Variant("s", namespace)
        (path,) = await self._manager("CreateGroup", "sa{sv}", [name, options], "o")
        return str(path)

    async def delete_group(self, name: str) -> None:
        """Delete a group that nothing uses."""
        await self._manager("DeleteGroup", "sa{sv}", [name, {}], "")

    async def groups(self) -> list[tuple[str, int]]:
        """Return name and owner's uid of every group."""
        (rows,) = await self._manager("ListGroups", "", [], "a(suo)")
        return [(name, owner) for name, owner, _ in rows]

    async def group(self, name: str) -> Values:
        """Return every property of a group."""
        try:
            return await self._get_all(_group_path(name), _GROUP)
        except Failure as failure:
            raise _named(failure, name) from failure

    async def grant(
        self, group: str, vm: str, owner_uid: int | None, until_us: int | None, *, stop: bool
    ) -> None:
        """Let a VM into a group, of `owner_uid` if that is not the caller."""
        options = {}
        if owner_uid is not None:
            options["owner"] = Variant("u", owner_uid)
        if until_us is not None:
            options["until"] = Variant("t", until_us)
        if stop:
            options["at-end"] = Variant("s", AtEnd.STOP.value)
        await self._of_group(group, "Grant", vm, options)

    async def revoke(self, group: str, vm: str, *, at_next_start: bool) -> None:
        """Keep a VM out of a group again."""
        await self._of_group(group, "Revoke", vm, _when(at_next_start=at_next_start))

    async def join(self, group: str, vm: str, *, at_next_start: bool) -> None:
        """Make a VM a lasting member of a group."""
        await self._of_vm(vm, "JoinGroup", group, _when(at_next_start=at_next_start))

    async def leave(self, group: str, vm: str, *, at_next_start: bool) -> None:
        """End a VM's lasting membership."""
        await self._of_vm(vm, "LeaveGroup", group, _when(at_next_start=at_next_start))

    async def walls(self) -> list[Values]:
        """Return every wall, with what has been held behind it."""
        (walls,) = await self._manager("ListWalls", "", [], "aa{sv}")
        return list(plain(walls))

    async def clear_wall(self, wall: str, subject: str) -> int:
        """Forget what a subject has held behind a wall; returns how many entries that was."""
        (removed,) = await self._manager("ClearWall", "ssa{sv}", [wall, subject, {}], "u")
        return int(removed)

    async def _of_group(
        self, group: str, member: str, vm: str, options: dict[str, Variant]
    ) -> None:
        try:
            await self._call(_group_path(group), _GROUP, member, "sa{sv}", [vm, options], "")
        except Failure as failure:
            raise _named(failure, group) from failure

    async def _of_vm(self, vm: str, member: str, group: str, options: dict[str, Variant]) -> None:
        await self._call(await self._path_of(vm), VM, member, "sa{sv}", [group, options], "")


def _when(*, at_next_start: bool) -> dict[str, Variant]:
    return {"when": Variant("s", "next-start")} if at_next_start else {}


def _group_path(name: str) -> str:
    return f"{_FOLDER}/{escape_path(name)}"


def _named(failure: Failure, group: str) -> Failure:
    """A group that is not there is an object that is not there, to the bus."""
    if failure.name != UnknownObject.name:
        return failure
    return Failure(
        NoSuchGroup.name, f"no group is named {group!r}; see: svirtctl group list", Exit.NOT_FOUND
    )
