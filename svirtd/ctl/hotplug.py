# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract about single resources of VMs from the caller's side: a part of the client."""

from collections.abc import Sequence

from svirtd.ctl.arguments import Disk, absolute
from svirtd.ctl.calls import VM, Calls
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.values import resources
from svirtd.errors import InvalidArgs
from svirtd.host.bus import Variant


class Hotplug(Calls):
    """Calls about what a VM holds. Every method raises Failure, as the client's own do."""

    async def attach(
        self, name: str, disk: Disk, overrides: Sequence[str], replaces: str | None, *, keep: bool
    ) -> str:
        """Attach a disk to a VM, in place of another one; returns its id."""
        path = await self._path_of(name)
        options = {}
        if overrides:
            options["override"] = Variant("as", list(overrides))
        if replaces is not None:
            options["replaces"] = Variant("s", await self._id_of(path, name, replaces))
        if keep:
            options["keep"] = Variant("s", "readonly")
        (resource,) = resources([disk])
        reply = await self._call(path, VM, "Attach", "a{sv}a{sv}", [resource, options], "s")
        return str(reply.body[0])

    async def detach(self, name: str, what: str) -> str:
        """Detach what has this id or lies at this path; returns its id."""
        path = await self._path_of(name)
        id_ = await self._id_of(path, name, what)
        await self._call(path, VM, "Detach", "sa{sv}", [id_, {}], "")
        return id_

    async def _id_of(self, vm_path: str, name: str, what: str) -> str:
        held = (await self._get_all(vm_path, VM)).get("Resources", ())
        if any(one.get("id") == what for one in held) or "/" not in what:
            return what
        path = absolute(what)
        for one in held:
            if one.get("path") == path:
                return str(one.get("id", ""))
        raise Failure(
            InvalidArgs.name,
            f"VM {name!r} holds nothing at {path}; see svirtctl show {name}",
            Exit.REFUSED,
        )
