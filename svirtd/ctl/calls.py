# SPDX-License-Identifier: LGPL-2.1-or-later
"""How svirtctl calls svirtd: with a deadline, and again with a dialog where one helps."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Self

from svirtd.ctl.failures import (
    INCONSISTENT,
    Exit,
    Failure,
    bus_lost,
    from_bus,
    no_bus,
    timed_out,
)
from svirtd.ctl.values import Values, plain
from svirtd.errors import InteractiveAuthorizationRequired
from svirtd.host.bus import BusError, BusLost, Connection, Message

NAME: Final = "org.svirt1"
ROOT: Final = "/org/svirt1"
MANAGER: Final = "org.svirt1.Manager"
VM: Final = "org.svirt1.VM"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"

_TIMEOUT_S: Final = 30.0
# The most that the daemon can be set to give somebody for an answer.
_DIALOG_S: Final = 3600.0

Dialog = Callable[[], AbstractContextManager[None]]


class Calls:
    """A connection and what is called on it. Where somebody must allow it, he is asked."""

    def __init__(self, bus: Connection, dialog: Dialog | None) -> None:
        self._bus = bus
        self._dialog = dialog

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, address: str | None, dialog: Dialog | None) -> AsyncIterator[Self]:
        """Connect to a bus, the system's if `address` is None, and leave it at the end.

        Where somebody must allow a call, he is asked for a password within `dialog`; with None,
        nobody is asked.
        """
        try:
            bus = await Connection.open(address)
        except BusLost as error:
            raise no_bus(str(error)) from error
        try:
            yield cls(bus, dialog)
        finally:
            bus.close()

    async def _path_of(self, name: str) -> str:
        (path,) = await self._manager("GetVM", "s", [name], "o")
        return str(path)

    async def _get_all(self, path: str, interface: str) -> Values:
        reply = await self._call(path, PROPERTIES, "GetAll", "s", [interface], "a{sv}")
        return dict(plain(reply.body[0]))

    async def _manager(
        self,
        member: str,
        signature: str,
        body: Sequence[Any],
        answer: str,
        timeout_s: float = _TIMEOUT_S,
    ) -> list[Any]:
        reply = await self._call(ROOT, MANAGER, member, signature, body, answer, timeout_s)
        return list(reply.body)

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[Any],
        answer: str,
        timeout_s: float = _TIMEOUT_S,
    ) -> Message:
        try:
            return await self._once(path, interface, member, signature, body, answer, timeout_s)
        except Failure as failure:
            if failure.name != InteractiveAuthorizationRequired.name or self._dialog is None:
                raise
        # Nothing has been done yet. Only now is there somebody to wait for.
        timeout_s += _DIALOG_S
        with self._dialog():
            return await self._once(
                path, interface, member, signature, body, answer, timeout_s, interactive=True
            )

    async def _once(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[Any],
        answer: str,
        timeout_s: float,
        *,
        interactive: bool = False,
    ) -> Message:
        with failures(timed_out(member, timeout_s)):
            reply = await self._bus.call(
                NAME,
                path,
                interface,
                member,
                signature,
                body,
                timeout_s=timeout_s,
                interactive=interactive,
            )
        if reply.signature == answer:
            return reply
        for fd in reply.unix_fds:
            os.close(fd)
        raise Failure(
            INCONSISTENT,
            f"svirtd answered {member} with {reply.signature!r}, expected {answer!r}; svirtctl and "
            "svirtd are of different versions: restart svirtd after an upgrade",
            Exit.REFUSED,
        )


@contextlib.contextmanager
def failures(late: Failure) -> Iterator[None]:
    """Turn what the connection raises into a Failure; `late` is that for a missed deadline."""
    try:
        yield
    except BusError as error:
        raise from_bus(error.name, error.text) from error
    except BusLost as error:
        raise bus_lost(str(error)) from error
    except TimeoutError as error:
        raise late from error
