# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections of the sandbox's users, and a real authentication agent for polkit's dialogs.

All on one loop in the tester's process: the bus takes the credentials of a connection from its
first moment, so a process of root's can have one for each user.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from svirtd.host.bus import Connection, Message, Variant, error_reply, method_return
from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S

_POLKIT = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_AUTHORITY = f"{_POLKIT}.Authority"
_AGENT_PATH = "/org/svirt1/test/agent"


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have this process be somebody else for the kernel; root's, to come back to, is kept."""
    groups = os.getgroups()
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, 0)
    os.setresuid(account.uid, account.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


async def connect_as(account: Account) -> Connection:
    """A connection whose credentials are this account's. Only one of these at a time."""
    with acting_as(account):
        return await Connection.open()


@dataclass(frozen=True, slots=True)
class Dialog:
    """What the agent was asked to show."""

    call: Message
    action: str
    message: str
    details: dict[str, str]
    cookie: str
    identities: list[Any]


class Agent:
    """Shows polkit's dialogs for everybody who is on the bus from this process."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self.dialogs: asyncio.Queue[Dialog] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        bus.handle_methods(self._called)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator["Agent"]:
        """Register one for the time of the block."""
        bus = await Connection.open()
        agent = cls(bus)
        try:
            await agent.register()
            yield agent
        finally:
            bus.close()

    async def register(self) -> None:
        """Tell polkit; again where it was restarted."""
        subject = ["unix-process", {"pid": Variant("u", os.getpid()), "start-time": _start_time()}]
        body = [subject, "C", _AGENT_PATH]
        await self._authority("RegisterAuthenticationAgent", "(sa{sv})ss", body)

    async def shown(self) -> Dialog:
        """The next dialog."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.dialogs.get()

    async def taken_away(self) -> str:
        """The cookie of the next dialog that polkit takes away."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.cancelled.get()

    async def allow(self, dialog: Dialog) -> None:
        """An administrator has authenticated."""
        body = [0, dialog.cookie, dialog.identities[0]]
        await self._authority("AuthenticationAgentResponse2", "us(sa{sv})", body)
        self._bus.send(method_return(dialog.call, "", [], []))

    def deny(self, dialog: Dialog) -> None:
        """Nobody has authenticated: the password was wrong."""
        self._bus.send(method_return(dialog.call, "", [], []))

    def dismiss(self, dialog: Dialog) -> None:
        """Somebody has closed the dialog."""
        self._bus.send(error_reply(dialog.call, f"{_POLKIT}.Error.Cancelled", "closed"))

    async def _authority(self, member: str, signature: str, body: list[Any]) -> None:
        await self._bus.call(
            _POLKIT, _PATH, _AUTHORITY, member, signature, body, timeout_s=DEADLINE_S
        )

    def _called(self, msg: Message) -> None:
        match msg.member:
            case "BeginAuthentication":
                action, message, _icon, details, cookie, identities = msg.body
                dialog = Dialog(msg, action, message, details, cookie, identities)
                self.dialogs.put_nowait(dialog)
            case "CancelAuthentication":
                self._bus.send(method_return(msg, "", [], []))
                self.cancelled.put_nowait(msg.body[0])


def _start_time() -> Variant:
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return Variant("t", int(fields[19]))
