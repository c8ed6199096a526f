# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM as a file, /etc/svirtd/vms.d/NAME.toml: its command or QEMU's options, disks, goal. Pure.

A disk that was mistyped must not silently be one that others may write: see core/keys.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from svirtd.core.keys import Reader, boolean, one_of, read_keys, whole
from svirtd.core.model import Access, Backing, Format
from svirtd.core.names import check_resource_id
from svirtd.errors import ConfigError, InvalidArgs

FOLDER: Final = "/etc/svirtd/vms.d"
_ASSIGNED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SIZE: Final = re.compile(r"([1-9][0-9]{0,9})([MG])")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,63}")
_CPUS_MAX: Final = 4096
# Below what units/svirt-vm@.service gives a VM to end, its forced end included.
_SHUTDOWN_MAX_S: Final = 180


@dataclass(frozen=True, slots=True)
class FileDisk:
    """A resource of the file. What is empty is not asked for: the goal's or svirtd's default."""

    path: str
    access: Access | None = None
    id: str = ""
    group: str = ""
    level: str = ""
    format: Format | None = None
    backing: Backing | None = None
    overlay: str = ""
    recursive: bool = False
    at_qemu: str = ""


@dataclass(frozen=True, slots=True)
class Qemu:
    """What is said to QEMU, in the place of a command."""

    program: str = ""
    machine: str = ""
    accel: str = "kvm:tcg"
    cpu: str = ""
    memory: str = "1G"
    cpus: int = 1
    network: str = "none"
    shutdown_s: int = 60
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VMFile:
    """A VM as its file has it. `persistent` is None where it depends on the unit."""

    command: tuple[str, ...] = ()
    qemu: Qemu | None = None
    goal: str | None = None
    groups: tuple[str, ...] = ()
    level: str | None = None
    uuid: str | None = None
    user: str | None = None
    directory: str | None = None
    persistent: bool | None = None
    environment: tuple[str, ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    disks: tuple[FileDisk, ...] = field(default=())


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a string of printable characters")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise ValueError("an absolute path")
    if ".." in value.split("/"):
        raise ValueError("an absolute path without '..'")
    return value


def _argument(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a list of strings")
    return value


def _arguments(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of strings")  # noqa: TRY004 -- readers speak with ValueError
    return tuple(_argument(one) for one in value)


def _command(value: Any) -> tuple[str, ...]:
    words = _arguments(value)
    if not words or not words[0].startswith("/"):
        raise ValueError("a list of strings, the first of them the absolute path of a program")
    return words


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of names")  # noqa: TRY004
    return tuple(_text(one) for one in value)


def _id(value: Any) -> str:
    try:
        return check_resource_id(_text(value))
    except InvalidArgs as error:
        raise ValueError(error.text) from None


def _word(value: Any) -> str:
    # Each becomes a part of an option of QEMU's: no comma that would begin another.
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError("a word as QEMU has it, such as q35, without commas")
    return value


def _size(value: Any) -> str:
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        raise ValueError('a size such as "512M" or "4G"')
    return value


def _environment(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict):
        raise ValueError("a section of names with strings")  # noqa: TRY004
    for name, text in value.items():
        if not _ASSIGNED.fullmatch(name) or not isinstance(text, str) or "\0" in text:
            raise ValueError(f"a section of names with strings, and {name!r} is none")
    return tuple(f"{name}={text}" for name, text in value.items())


def _properties(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError('a section such as MemoryMax = "2G"')  # noqa: TRY004
    for name, said in value.items():
        plain = isinstance(said, str) and said.isprintable()
        if not plain and (isinstance(said, bool) or not isinstance(said, int)):
            raise ValueError(f'a section such as MemoryMax = "2G", and {name!r} is no such setting')
    return tuple((name, str(said)) for name, said in value.items())


# Key → field and how it is read. A reader's ValueError says what was expected.
KEYS: Final[Mapping[str, tuple[str, Reader]]] = {
    "command": ("command", _command),
    "goal": ("goal", _text),
    "groups": ("groups", _names),
    "level": ("level", _text),
    "uuid": ("uuid", _text),
    "user": ("user", _text),
    "directory": ("directory", _path),
    "persistent": ("persistent", boolean),
    "environment": ("environment", _environment),
    "properties": ("properties", _properties),
}
QEMU_KEYS: Final[Mapping[str, tuple[str, Reader]]] = {
    "program": ("program", _path),
    "machine": ("machine", _word),
    "accel": ("accel", _word),
    "cpu": ("cpu", _word),
    "memory": ("memory", _size),
    "cpus": ("cpus", whole(1, _CPUS_MAX)),
    "network": ("network", one_of(("none", "user"))),
    "shutdown-timeout": ("shutdown_s", whole(0, _SHUTDOWN_MAX_S)),
    "arguments": ("arguments", _arguments),
}
DISK_KEYS: Final[Mapping[str, tuple[str, Reader]]] = {
    "path": ("path", _path),
    "access": ("access", one_of(Access)),
    "id": ("id", _id),
    "group": ("group", _text),
    "level": ("level", _text),
    "format": ("format", one_of(Format)),
    "backing": ("backing", one_of(Backing)),
    "overlay": ("overlay", _path),
    "recursive": ("recursive", boolean),
    "qemu": ("at_qemu", one_of(("disk", "cdrom", "none"))),
}
_SECTIONS: Final = ("qemu", "disk")


def read(path: str, tables: Mapping[str, Any]) -> VMFile:
    """Return the VM of a parsed file. Raises ConfigError."""
    values = read_keys(f"{path}: ", tables, KEYS, _SECTIONS)
    qemu = tables.get("qemu")
    if qemu is not None:
        if not isinstance(qemu, dict):
            raise ConfigError(f"{path}: qemu: expected a section, [qemu], with keys")
        values["qemu"] = Qemu(**read_keys(f"{path}: [qemu] ", qemu, QEMU_KEYS))
    disks = tables.get("disk", [])
    if not isinstance(disks, list) or not all(isinstance(one, dict) for one in disks):
        raise ConfigError(f"{path}: disk: expected sections, [[disk]], one for each")
    values["disks"] = tuple(_disk(path, n, one) for n, one in enumerate(disks, start=1))
    if ("command" in values) == (qemu is not None):
        raise ConfigError(
            f"{path}: expected either a command, or a section [qemu]; "
            + ("both are there" if "command" in values else "neither is there")
        )
    found = VMFile(**values)
    return found if found.qemu is None else _for_qemu(path, found)


def _disk(path: str, number: int, table: Mapping[str, Any]) -> FileDisk:
    where = f"{path}: [[disk]] {number} "
    values = read_keys(where, table, DISK_KEYS)
    if "path" not in values:
        raise ConfigError(f"{where}path: is not there; expected an absolute path")
    return FileDisk(**values)


def _for_qemu(path: str, found: VMFile) -> VMFile:
    """Give each disk an id, by which QEMU's options name it."""
    taken = {one.id for one in found.disks}
    disks = []
    for number, one in enumerate(found.disks, start=1):
        where = f"{path}: [[disk]] {number}"
        if "," in one.path or "," in one.overlay:
            raise ConfigError(
                f"{where} path: {one.path!r} cannot be used; expected one without a comma, which "
                "would end it in QEMU's options: give a command, or rename the file"
            )
        id_ = one.id or f"disk{number}"
        if not one.id and id_ in taken:
            raise ConfigError(f"{where} id: is not there, and {id_!r} is another's; expected one")
        disks.append(replace(one, id=id_))
    if len({one.id for one in disks}) != len(disks):
        raise ConfigError(f"{path}: [[disk]] id: two have the same; expected each its own")
    return replace(found, disks=tuple(disks))


def command_of(
    name: str, found: VMFile, architecture: str, default: Access, *, overlays: bool
) -> tuple[str, ...]:
    """Return the command of a VM, with svirtd's words in it.

    `default` is the access that its goal gives; `overlays`: what is only read is used through an
    overlay that takes the writes. Raises ConfigError.
    """
    qemu = found.qemu
    if qemu is None:
        return found.command
    machine = qemu.machine or {"x86_64": "q35", "aarch64": "virt"}.get(architecture, "")
    if not machine:
        raise ConfigError(f"[qemu] machine: is not there; expected QEMU's for {architecture}")
    words = [
        qemu.program or f"/usr/bin/qemu-system-{architecture}",
        *("-name", name, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{machine},accel={qemu.accel}"),
        *(("-cpu", qemu.cpu) if qemu.cpu else ()),
        *("-m", qemu.memory, "-smp", str(qemu.cpus)),
        *("-nic", "user,model=virtio-net-pci" if qemu.network == "user" else "none"),
        # What svirtctl channel reaches.
        *("-qmp", "unix:{runtime}/qmp,server=on,wait=off"),
        *("-serial", "unix:{runtime}/console,server=on,wait=off"),
    ]
    for one in found.disks:
        # A directory is no drive: what shares it stands among the arguments.
        if one.at_qemu != "none" and not one.recursive:
            words += ["-drive", _drive(one, one.access or default, overlays=overlays)]
    return (*words, *qemu.arguments)


def _drive(one: FileDisk, access: Access, *, overlays: bool) -> str:
    through = overlays and not access.writes
    form = Format.QCOW2 if through else one.format or Format.RAW
    drive = f"id={one.id},file={{resource.{one.id}}},format={form},if="
    if one.at_qemu == "cdrom":
        return f"{drive}ide,media=cdrom"
    return f"{drive}virtio" + ("" if access.writes or through else ",readonly=on")
