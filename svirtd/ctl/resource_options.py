# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options that name a resource by what it is for: spellings of a path with its access."""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from svirtd.core.model import Access
from svirtd.ctl import arguments, devices
from svirtd.ctl.arguments import Disk

_F = TypeVar("_F", bound=Callable[..., Any])


def _file(access: Access) -> Callable[[str], Disk]:
    return lambda text: Disk(arguments.absolute(text), access)


def _tree(text: str) -> Disk:
    return Disk(arguments.absolute(text), Access.EXCLUSIVE, recursive=True)


def _node(find: Callable[[str], str]) -> Callable[[str], Disk]:
    return lambda text: Disk(find(text), Access.EXCLUSIVE)


_READ: Final = "Any VM may read it. Repeatable."
_OWN: Final = "For this VM alone. Repeatable."
# Name, what stands behind it, how it is read, help.
_OPTIONS: Final[tuple[tuple[str, str, Callable[[str], Disk], str], ...]] = (
    (
        "tree",
        f"DIR[:{'|'.join(Access)}[,KEY=VALUE]]",
        arguments.parse_tree,
        "Directory with all that is in it, as for virtiofs; Ctrl-C takes it back. Repeatable.",
    ),
    ("kernel", "FILE", _file(Access.PUBLIC), f"Kernel to boot. {_READ}"),
    ("initrd", "FILE", _file(Access.PUBLIC), f"Initial RAM disk. {_READ}"),
    ("firmware", "FILE", _file(Access.PUBLIC), f"Firmware image. {_READ}"),
    ("fw-cfg", "FILE", _file(Access.PUBLIC), f"File for fw_cfg, ACPI or the like. {_READ}"),
    ("nvram", "FILE", _file(Access.EXCLUSIVE), f"Variables of the firmware. {_OWN}"),
    ("chardev", "PATH", _file(Access.EXCLUSIVE), f"File, fifo or device of a port. {_OWN}"),
    ("socket", "PATH", _file(Access.EXCLUSIVE), f"Unix socket to connect to. {_OWN}"),
    ("tpm", "DIR", _tree, f"State of an emulated TPM, a folder with all in it. {_OWN}"),
    ("hugepages", "DIR", _tree, f"Folder for memory, on hugetlbfs or tmpfs. {_OWN}"),
    (
        "usb",
        "BUS:DEV|VENDOR:PRODUCT",
        _node(devices.usb),
        f"USB device, by its place or its kind. {_OWN}",
    ),
    ("pci", "ADDRESS", _node(devices.pci), f"PCI device, with its VFIO group. {_OWN}"),
    ("mdev", "UUID", _node(devices.mdev), f"Mediated device, with its VFIO group. {_OWN}"),
    ("scsi", "H:C:T:L", _node(devices.scsi), f"SCSI device, by its generic node. {_OWN}"),
)


def resource_options(function: _F) -> _F:
    """Add them, and have what they name behind what --disk does, as `disks`."""
    names = [f"resource_{name.replace('-', '_')}" for name, *_ in _OPTIONS]

    @functools.wraps(function)
    def merged(*args: Any, **options: Any) -> Any:
        more = [one for name in names for one in options.pop(name)]
        return function(*args, **{**options, "disks": (*options["disks"], *more)})

    found: Any = merged
    for variable, (name, metavar, read, text) in zip(names, _OPTIONS, strict=True):
        found = click.option(
            f"--{name}",
            variable,
            metavar=metavar,
            multiple=True,
            callback=functools.partial(_convert, read),
            help=text,
        )(found)
    return found  # type: ignore[no-any-return]


def _convert(
    read: Callable[[str], Disk], _ctx: click.Context, param: click.Parameter, value: Any
) -> tuple[Disk, ...]:
    try:
        return tuple(read(one) for one in value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None
