# SPDX-License-Identifier: LGPL-2.1-or-later
"""One exception for each D-Bus error that svirtd answers with.

The text of an error is for people: it says which rule refused, what was found and what to do
next. Programs read the name. A standard D-Bus name is used where one fits.
"""

from typing import ClassVar

_STANDARD = "org.freedesktop.DBus.Error."
_OWN = "org.svirt1.Error."


class SvirtError(Exception):
    """A refusal or failure that a caller may see. `name` is the D-Bus error name."""

    name: ClassVar[str] = _OWN + "Failed"

    @property
    def text(self) -> str:
        """The message for people, without the name."""
        return str(self)


class AccessDenied(SvirtError):
    """The caller may not do this."""

    name = _STANDARD + "AccessDenied"


class InvalidArgs(SvirtError):
    """An argument has a bad value; the text names it."""

    name = _STANDARD + "InvalidArgs"


class UnknownObject(SvirtError):
    """No object at this path."""

    name = _STANDARD + "UnknownObject"


class UnknownInterface(SvirtError):
    """The object has no such interface."""

    name = _STANDARD + "UnknownInterface"


class UnknownMethod(SvirtError):
    """The interface has no such method, or not with this signature."""

    name = _STANDARD + "UnknownMethod"


class UnknownProperty(SvirtError):
    """The interface has no such property."""

    name = _STANDARD + "UnknownProperty"


class PropertyReadOnly(SvirtError):
    """Every property of svirtd is read-only."""

    name = _STANDARD + "PropertyReadOnly"


class NotSupported(SvirtError):
    """The contract knows this, this version does not do it yet."""

    name = _STANDARD + "NotSupported"


class LimitsExceeded(SvirtError):
    """A configured limit was met, or one of the daemon's own process; the text names it."""

    name = _STANDARD + "LimitsExceeded"


class InteractiveAuthorizationRequired(SvirtError):
    """The caller would have to authenticate and did not allow a dialog."""

    name = _STANDARD + "InteractiveAuthorizationRequired"


class Failed(SvirtError):
    """The operation failed for a reason that has no name of its own."""

    name = _OWN + "Failed"


class NoAnswer(Failed):
    """systemd did not answer in time: what was asked for may have happened, or happen yet."""


class BookDamaged(Failed):
    """The book is there and is not what svirtd wrote; the daemon ends and starts with another."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"the book {path} is damaged: {what}")
        self.what = what


class NoSuchVM(SvirtError):
    """No VM of this name, process or path is in the book."""

    name = _OWN + "NoSuchVM"


class VMExists(SvirtError):
    """A VM of this name is in the book and in use."""

    name = _OWN + "VMExists"


class NoSuchGroup(SvirtError):
    """No group of this name is in the book."""

    name = _OWN + "NoSuchGroup"


class GroupExists(SvirtError):
    """A group of this name is in the book."""

    name = _OWN + "GroupExists"


class ResourceBusy(SvirtError):
    """Another VM holds the resource; the text names the holder."""

    name = _OWN + "ResourceBusy"


class ResourceRefused(SvirtError):
    """A rule forbids labelling this object; the text says which rule."""

    name = _OWN + "ResourceRefused"


class PoolExhausted(SvirtError):
    """Every private category set is in use or in quarantine."""

    name = _OWN + "PoolExhausted"


class WallConflict(SvirtError):
    """A Chinese wall separates the two sides that the text names."""

    name = _OWN + "WallConflict"


class LabelRefused(SvirtError):
    """The kernel or the file system refused a label."""

    name = _OWN + "LabelRefused"


class NotEnforcing(SvirtError):
    """The kernel, or its policy, does not keep VMs apart as the configuration requires."""

    name = _OWN + "NotEnforcing"


class UnitFailed(SvirtError):
    """systemd could not start the unit; the text carries the unit's result."""

    name = _OWN + "UnitFailed"


class UnitStuck(UnitFailed):
    """As UnitFailed, but a process of the unit may be left: nothing of it may be given away."""


class Cancelled(SvirtError):
    """Somebody cancelled the job that did it."""

    name = _OWN + "Cancelled"


class Drift(SvirtError):
    """The book and the machine disagree in a way that a person must settle."""

    name = _OWN + "Drift"


class ConfigError(Exception):
    """The configuration cannot be used: names file, key and what was expected. Not a bus error."""


class StartError(Exception):
    """The daemon cannot start here; the text says why and what to do. Not a bus error."""


def bus_errors() -> dict[str, type[SvirtError]]:
    """Return every error that can go over the bus, by its D-Bus name."""
    return {cls.name: cls for cls in SvirtError.__subclasses__()}
