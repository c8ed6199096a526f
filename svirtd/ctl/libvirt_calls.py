# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract about libvirt's VMs from the caller's side; what the hook imports is little."""

from collections.abc import Sequence
from typing import Final

from svirtd.core.domains import Hold
from svirtd.core.model import Access, Labeller
from svirtd.ctl.calls import MANAGER, ROOT, VM
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.sharing import Sharing
from svirtd.ctl.values import Values, plain
from svirtd.host.bus import Variant

# What a VM of libvirt's can be in without running.
RESERVED: Final = "reserved"


class LibvirtCalls(Sharing):
    """Calls about VMs that libvirt labels. Every method raises Failure."""

    async def of_uuid(self, uuid: str) -> Values:
        """Return every property of libvirt's VM with this UUID, nothing if there is none."""
        try:
            (path,) = await self._manager("GetVMByUUID", "s", [uuid], "o")
            found = await self._get_all(str(path), VM)
        except Failure as failure:
            if failure.code is Exit.NOT_FOUND:
                return {}
            raise
        # One of another tool's that has this UUID, too, is not what is asked for.
        return found if found["LabelledBy"] == Labeller.LIBVIRT.value else {}

    async def named(self, name: str) -> Values:
        """Return every property of a VM."""
        return await self._get_all(await self._path_of(name), VM)

    async def check_in(
        self, name: str, uuid: str, holds: Sequence[Hold] = (), categories: str = ""
    ) -> Values:
        """Enter what a domain holds, nothing to reserve its set; returns the VM's properties."""
        body = [name, _resources(holds), _options(uuid, categories)]
        (path,) = await self._manager("Acquire", "saa{sv}a{sv}", body, "o")
        return await self._get_all(str(path), VM)

    async def planned(self, name: str, uuid: str, holds: Sequence[Hold]) -> list[Values]:
        """Return what check_in would do with each resource."""
        body = [name, _resources(holds), _options(uuid, "")]
        (answer,) = await self._manager("Plan", "saa{sv}a{sv}", body, "aa{sv}")
        return list(plain(answer))[:-1]

    async def follow(self, name: str, pid: int) -> None:
        """Have a VM be running as this process."""
        await self._call(await self._path_of(name), VM, "Follow", "ua{sv}", [pid, {}], "")

    async def ending(self, name: str) -> None:
        """Say that libvirt gives the earlier labels back now."""
        await self._call(await self._path_of(name), VM, "Ending", "a{sv}", [{}], "")

    async def release(self, name: str) -> None:
        """End what a VM holds."""
        await self._manager("Release", "sa{sv}", [name, {}], "")

    async def forget(self, name: str) -> None:
        """Free name and categories of a VM."""
        await self._manager("Forget", "sa{sv}", [name, {}], "")

    async def attach(self, name: str, hold: Hold) -> None:
        """Enter what libvirt has given to a VM that runs."""
        (resource,) = _resources((hold,))
        path = await self._path_of(name)
        await self._call(path, VM, "Attach", "a{sv}a{sv}", [resource, {}], "s")

    async def detach(self, name: str, id_: str) -> None:
        """End what libvirt has taken from a VM that runs."""
        await self._call(await self._path_of(name), VM, "Detach", "sa{sv}", [id_, {}], "")

    async def owners(self, what: str) -> list[Values]:
        """Return who holds a path, categories or a context."""
        (owners,) = await self._manager("FindOwners", "s", [what], "aa{sv}")
        return list(plain(owners))

    async def settings(self) -> tuple[list[str], bool]:
        """Return which domains are to be adopted by themselves, and whether others may start."""
        manager = await self._get_all(ROOT, MANAGER)
        return list(manager["LibvirtAdopt"]), bool(manager["LibvirtRequireAdopted"])


def _options(uuid: str, categories: str) -> dict[str, Variant]:
    found = {
        "labelled-by": Variant("s", Labeller.LIBVIRT.value),
        "uuid": Variant("s", uuid),
        "persistent": Variant("b", True),
    }
    return found | ({"categories": Variant("s", categories)} if categories else {})


def _resources(holds: Sequence[Hold]) -> list[dict[str, Variant]]:
    return [
        {"path": Variant("s", one.path), "access": Variant("s", one.access.value)}
        | ({"group": Variant("s", one.group)} if one.access is Access.GROUP else {})
        for one in holds
    ]
