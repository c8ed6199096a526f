# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong in svirtctl, as one exception with an exit code and a sentence."""

import enum
from typing import Final

from svirtd.errors import (
    AccessDenied,
    GroupExists,
    InteractiveAuthorizationRequired,
    NoSuchGroup,
    NoSuchVM,
    ResourceBusy,
    UnknownObject,
    VMExists,
)

_STANDARD: Final = "org.freedesktop.DBus.Error."
NO_SERVER: Final = _STANDARD + "NoServer"
NO_REPLY: Final = _STANDARD + "NoReply"
DISCONNECTED: Final = _STANDARD + "Disconnected"
INCONSISTENT: Final = _STANDARD + "InconsistentMessage"
IO_ERROR: Final = _STANDARD + "IOError"
INVALID_FILE: Final = _STANDARD + "InvalidFileContent"


class Exit(enum.IntEnum):
    """Exit codes; the manual page and --help list them."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    PERMISSION = 4
    BUSY = 5
    UNREACHABLE = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_CODES: Final = {
    NoSuchVM.name: Exit.NOT_FOUND,
    NoSuchGroup.name: Exit.NOT_FOUND,
    UnknownObject.name: Exit.NOT_FOUND,
    AccessDenied.name: Exit.PERMISSION,
    InteractiveAuthorizationRequired.name: Exit.PERMISSION,
    ResourceBusy.name: Exit.BUSY,
    VMExists.name: Exit.BUSY,
    GroupExists.name: Exit.BUSY,
    **{
        _STANDARD + member: Exit.UNREACHABLE
        for member in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "TimedOut", "Timeout")
    },
    NO_SERVER: Exit.UNREACHABLE,
    DISCONNECTED: Exit.UNREACHABLE,
}
# The bus or systemd could not start the daemon for us.
_ACTIVATION: Final = (_STANDARD + "Spawn.", "org.freedesktop.systemd1.")
_NOT_RUNNING: Final = "svirtd is not running; start it with: systemctl start svirtd"


class Failure(Exception):
    """An end with an error: `name` for programs, `text` for people, `code` for the shell."""

    def __init__(self, name: str, text: str, code: Exit) -> None:
        super().__init__(text)
        self.name = name
        self.text = text
        self.code = code


def exit_code(name: str) -> Exit:
    """Return the exit code that goes with a D-Bus error name."""
    if name.startswith(_ACTIVATION):
        return Exit.UNREACHABLE
    return _CODES.get(name, Exit.REFUSED)


def from_bus(name: str, text: str) -> Failure:
    """Turn a D-Bus error into a failure that says what to do.

    svirtd's own texts do so already; those of the bus are written for programmers.
    """
    code = exit_code(name)
    if name.startswith(_ACTIVATION):
        text = f"svirtd could not be started ({text}); see: systemctl status svirtd"
    elif name == NO_REPLY:
        text = "svirtd ended before it answered; see: systemctl status svirtd"
    elif code is Exit.UNREACHABLE:
        text = _NOT_RUNNING
    elif name == AccessDenied.name and text.startswith("Rejected send message"):
        text = (
            "the bus does not let this user call svirtd; run svirtctl as root, or have the "
            "administrator allow it in the bus policy of org.svirt1"
        )
    return Failure(name, text or name, code)


def timed_out(member: str, timeout_s: float) -> Failure:
    """Return the failure for a call that the daemon did not answer in time."""
    text = (
        f"svirtd did not answer {member} within {timeout_s:.0f} s and may still be at it; "
        "see: svirtctl list, systemctl status svirtd"
    )
    return Failure(NO_REPLY, text, Exit.UNREACHABLE)


def no_bus(reason: str) -> Failure:
    """Return the failure for a bus that cannot be reached."""
    text = (
        f"{reason}; is the system bus running? (systemctl start dbus; another bus is named with "
        "--bus or DBUS_SYSTEM_BUS_ADDRESS)"
    )
    return Failure(NO_SERVER, text, Exit.UNREACHABLE)


def bus_lost(reason: str) -> Failure:
    """Return the failure for a bus that went away while it was used."""
    text = f"lost the bus ({reason}); see: systemctl status dbus svirtd"
    return Failure(DISCONNECTED, text, Exit.UNREACHABLE)
