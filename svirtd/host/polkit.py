# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit over D-Bus: may whoever has this bus name do this? The only door to it."""

import contextlib
import enum
import itertools
from collections.abc import Mapping
from typing import Any, Final

from svirtd.errors import Failed
from svirtd.host.bus import (
    BusError,
    BusLost,
    Connection,
    Message,
    MessageFlag,
    MessageType,
    Variant,
)

_NAME: Final = "org.freedesktop.PolicyKit1"
_PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
_AUTHORITY: Final = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_DIALOG: Final = 1
# Errors of the bus, and of systemd starting a service for it, that mean: there is no polkit here.
# Not NameHasNoOwner: by that polkit tells that the subject has left.
_ABSENT: Final = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.Spawn.ServiceNotFound",
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.systemd1.UnitMasked",
)


class Verdict(enum.Enum):
    """What polkit says."""

    ALLOWED = enum.auto()
    DENIED = enum.auto()
    CHALLENGE = enum.auto()
    """Somebody must authenticate: no dialog was allowed, or there is nobody to show one."""
    DISMISSED = enum.auto()
    """Somebody closed the dialog."""
    UNANSWERED = enum.auto()
    """The dialog, or polkit itself, gave no answer in time."""
    ABSENT = enum.auto()
    """There is no polkit on this bus."""


class Polkit:
    """The authority on this bus. It is asked each time and nothing is kept: rules change."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._numbers = itertools.count(1)

    async def check(
        self,
        subject: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        timeout_s: float,
    ) -> Verdict:
        """Ask whether the owner of the unique name `subject` may do `action`.

        The subject is the bus name and never a process: the bus knows whose a name is, and a name
        is not given twice. `interactive` lets polkit ask somebody for a password; the dialog shows
        `details`. It is taken away when `timeout_s` is over and when the caller of this is
        cancelled. Raises Failed for whatever is no answer: nothing may be done then.
        """
        cancellation = f"svirtd-{next(self._numbers)}"
        try:
            reply = await self._bus.call(
                _NAME,
                _PATH,
                _AUTHORITY,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                [
                    ["system-bus-name", {"name": Variant("s", subject)}],
                    action,
                    dict(details),
                    _ALLOW_DIALOG if interactive else 0,
                    cancellation,
                ],
                timeout_s=timeout_s,
            )
        except BusError as error:
            if error.name in _ABSENT:
                return Verdict.ABSENT
            raise Failed(f"polkit does not say whether this is allowed ({error})") from error
        except TimeoutError:
            self._cancel(cancellation)
            return Verdict.UNANSWERED
        except BaseException:
            self._cancel(cancellation)
            raise
        return _verdict(reply)

    def _cancel(self, cancellation: str) -> None:
        """Have polkit take the dialog away. What it answers helps nobody."""
        with contextlib.suppress(BusLost):  # polkit sees us leave
            self._bus.send(
                Message(
                    MessageType.METHOD_CALL,
                    destination=_NAME,
                    path=_PATH,
                    interface=_AUTHORITY,
                    member="CancelCheckAuthorization",
                    signature="s",
                    body=[cancellation],
                    flags=MessageFlag.NO_REPLY_EXPECTED | MessageFlag.NO_AUTOSTART,
                )
            )


def _verdict(reply: Message) -> Verdict:
    if reply.signature != "(bba{ss})":
        raise Failed(f"polkit answers with {reply.signature!r}, expected '(bba{{ss}})'")
    found: tuple[Any, Any, Any] = tuple(reply.body[0])
    authorized, challenge, details = found
    if authorized:
        return Verdict.ALLOWED
    if details.get("polkit.dismissed"):
        return Verdict.DISMISSED
    return Verdict.CHALLENGE if challenge else Verdict.DENIED
