# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract about enrolled units from the caller's side, and what they take of systemd."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from svirtd.core.names import escape_path, unit_name
from svirtd.ctl.arguments import Disk
from svirtd.ctl.calls import PROPERTIES, Calls, failures
from svirtd.ctl.failures import NO_REPLY, Exit, Failure, bus_lost
from svirtd.ctl.values import Options, Values, plain, resources
from svirtd.host.bus import Message, Variant

_SYSTEMD: Final = "org.freedesktop.systemd1"
_SYSTEMD_PATH: Final = "/org/freedesktop/systemd1"
_SYSTEMD_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_SYSTEMD_SERVICE: Final = "org.freedesktop.systemd1.Service"
_SYSTEMD_UNIT: Final = "org.freedesktop.systemd1.Unit"
_SYSTEMD_TIMEOUT_S: Final = 60.0
# Labels of large trees, digests of large disks.
_LONG_TIMEOUT_S: Final = 150.0


class Enrolling(Calls):
    """Calls about enrolled units. Every method raises Failure, as the client's own do."""

    async def enroll(self, unit: str, name: str, disks: Sequence[Disk], options: Options) -> str:
        """Enrol a unit as a VM; returns the VM's object path."""
        body = [unit, name, resources(disks), options.variants()]
        (path,) = await self._manager("Enroll", "ssaa{sv}a{sv}", body, "o")
        return str(path)

    async def unenroll(self, unit: str, *, keep: bool) -> None:
        """End that, and have the VM forgotten unless it is to be kept."""
        options = {"keep": Variant("b", True)} if keep else {}
        await self._manager("Unenroll", "sa{sv}", [unit, options], "")

    async def enrolled(self) -> list[Values]:
        """Return the enrolled units, with the drop-in that each should have."""
        (found,) = await self._manager("ListEnrolled", "", [], "aa{sv}")
        return list(plain(found))

    async def start_enrolled(self, unit: str) -> None:
        """Have labelled what a unit is to have, which is about to start."""
        await self._manager("StartEnrolled", "sa{sv}", [unit, {}], "", _LONG_TIMEOUT_S)

    async def end_enrolled(self, unit: str) -> None:
        """Have the labels of a unit that has ended given back."""
        await self._manager("EndEnrolled", "sa{sv}", [unit, {}], "", _LONG_TIMEOUT_S)

    async def refuse_unknown_unit(self, unit: str) -> None:
        """Raise Failure for a unit that systemd finds no file of."""
        reply = await self._systemd("LoadUnit", "s", [unit])
        asked = [_SYSTEMD_UNIT, "LoadState"]
        found = await self._systemd("Get", "ss", asked, path=reply.body[0], interface=PROPERTIES)
        if plain(found.body[0]) != "loaded":
            raise Failure(
                f"{_SYSTEMD}.NoSuchUnit",
                f"systemd has no unit {unit!r} that it can load; write its file first, then "
                "systemctl daemon-reload",
                Exit.NOT_FOUND,
            )

    async def reload_units(self) -> None:
        """Have systemd read unit files again."""
        await self._systemd("Reload", "", [])

    async def own_unit(self) -> str:
        """Return the unit that this process belongs to, empty if systemd knows none."""
        try:
            reply = await self._systemd("GetUnitByPID", "u", [os.getpid()])
            asked = [_SYSTEMD_UNIT, "Id"]
            found = await self._systemd(
                "Get", "ss", asked, path=reply.body[0], interface=PROPERTIES
            )
        except Failure:
            return ""
        return str(plain(found.body[0]))

    async def is_enabled(self, unit: str) -> bool:
        """Say whether a unit is started at boot, by a link of its own."""
        try:
            reply = await self._systemd("GetUnitFileState", "s", [unit])
        except Failure:
            return False
        return str(reply.body[0]) in ("enabled", "enabled-runtime")

    async def hear_of_end(self, name: str) -> "asyncio.Future[Values]":
        """Return what will have the result of the unit of a VM that is to be launched.

        systemd tells everybody as long as svirtd listens; once it has ended, nobody can be asked.
        """
        ending: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        path = f"{_SYSTEMD_PATH}/unit/{escape_path(unit_name(name))}"
        said: Values = {}

        def changed(msg: Message) -> None:
            if msg.path != path or msg.signature != "sa{sv}as":
                return
            said.update(plain(msg.body[1]))
            # Of a command that runs the code is 0.
            if said.get("ExecMainCode") and "Result" in said and not ending.done():
                ending.set_result(said)

        with failures(bus_lost("it does not answer")):
            await self._bus.subscribe(
                _SYSTEMD, PROPERTIES, "PropertiesChanged", changed, arg0=_SYSTEMD_SERVICE
            )
        return ending

    async def _systemd(
        self,
        member: str,
        signature: str,
        body: Sequence[Any],
        path: str = _SYSTEMD_PATH,
        interface: str = _SYSTEMD_MANAGER,
    ) -> Message:
        late = f"systemd did not answer {member} within {_SYSTEMD_TIMEOUT_S:.0f} s"
        with failures(Failure(NO_REPLY, late, Exit.UNREACHABLE)):
            return await self._bus.call(
                *(_SYSTEMD, path, interface, member, signature, body),
                timeout_s=_SYSTEMD_TIMEOUT_S,
            )
