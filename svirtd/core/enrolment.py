# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of the administrator's that run under a VM's label: their names and their drop-in. Pure.

What the drop-in says is all that a unit file takes: the label, and that svirtd is asked before the
start and told after the end. Where svirtd is not there, or refuses, the service does not start.
"""

import re
from typing import Final

from svirtd.core.names import UNIT_PREFIX, shown
from svirtd.errors import InvalidArgs

DROP_IN: Final = "50-svirtd.conf"
# systemd's own limit on a unit's name; a folder with ".d" behind it is still a file name.
_NAME_MAX: Final = 251
_WORD: Final = r"[A-Za-z0-9:_.\\-]+"
_SERVICE: Final = re.compile(rf"{_WORD}(?:@{_WORD})?\.service")
_TEMPLATE: Final = re.compile(rf"{_WORD}@\.service")
# What svirtd itself needs, and what would have to be there before it.
_NEVER: Final = frozenset(
    f"{name}.service" for name in ("svirtd", "svirtd-libvirt", "dbus", "dbus-broker", "polkit")
)
# Of systemd's own services only those that run a VM.
_SYSTEMD: Final = "systemd-"
_SYSTEMD_VMS: Final = "systemd-vmspawn@"


def check_unit(name: str) -> str:
    """Return `name` if such a unit can be enrolled. Raises InvalidArgs that says why not."""
    if len(name) > _NAME_MAX or not name.isascii():
        raise InvalidArgs(f"unit {shown(name)} is not the name of a service")
    if _TEMPLATE.fullmatch(name):
        instance = name.replace("@.", "@NAME.")
        raise InvalidArgs(
            f"unit {shown(name)} is a template; its instances are enrolled, each with a VM of its "
            f"own: {instance}"
        )
    if not _SERVICE.fullmatch(name):
        raise InvalidArgs(
            f"unit {shown(name)} is not the name of a service; expected NAME.service or "
            "NAME@INSTANCE.service, as systemctl lists it"
        )
    of_systemd = name.startswith(_SYSTEMD) and not name.startswith(_SYSTEMD_VMS)
    if name in _NEVER or of_systemd:
        raise InvalidArgs(f"unit {name} is part of what svirtd needs, or of systemd; it is no VM")
    if name.startswith(UNIT_PREFIX):
        raise InvalidArgs(f"unit {name} is svirtd's own; it has a VM already, or starts one")
    return name


def drop_in(context: str, runtime_dir: str) -> str:
    """Return what a unit's drop-in says: its VM's process context and runtime folder.

    Both ends are by "+" outside of what the unit is kept in, its label included. Not Requires=:
    that would end the VM whenever svirtd is restarted. A start fails without svirtd all the same.
    """
    return (
        "# Written by svirtctl enroll, taken away by svirtctl unenroll; see svirtctl(1).\n"
        "[Unit]\n"
        "Wants=svirtd.service\n"
        "After=svirtd.service\n"
        "\n"
        "[Service]\n"
        f"SELinuxContext={_plain(context)}\n"
        f'Environment="SVIRT_RUNTIME_DIR={_quoted(runtime_dir)}"\n'
        "ExecStartPre=+svirtctl enrolled start %n\n"
        "ExecStopPost=+svirtctl enrolled end %n\n"
    )


def _plain(context: str) -> str:
    # A context has no blank, quote or specifier in it; one that has is not written into a unit.
    if not re.fullmatch(r"[A-Za-z0-9_.:,-]+", context):
        raise ValueError(f"{context!r} cannot stand in a unit file")
    return context


def _quoted(text: str) -> str:
    escaped = "".join(
        one if one.isprintable() else "".join(f"\\x{byte:02x}" for byte in one.encode())
        for one in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return escaped.replace("%", "%%")
