# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtd promises, as a world of values: written from the design and the manual pages.

These are the values; what becomes of them is in model_world.py. A path is "FOLDER/NAME"; both
folders show the same files, and the one named VIEW can be made read-only.
"""

from dataclasses import dataclass, field
from typing import Final

Pair = frozenset[int]
# What entries of a tree carried, by inode number; what is not among them has what its root had.
Earlier = tuple[tuple[int, str | None], ...]
# [labels] groups as it is by default.
GROUP_POOL: Final = frozenset(range(768, 1024))

VIEW: Final = "view"
PROCESS: Final = "system_u:system_r:svirt_t:s0"
IMAGE: Final = "system_u:object_r:svirt_image_t:s0"
CONTENT: Final = "system_u:object_r:virt_content_t:s0"
# [labels] relabel-from as it is by default; a file without a label is unlabeled_t.
TAKEN: Final = frozenset(
    {"virt_image_t", "virt_content_t", "virt_var_lib_t", "user_home_t", "user_tmp_t"}
)

BUSY: Final = "org.svirt1.Error.ResourceBusy"
REFUSED: Final = "org.svirt1.Error.ResourceRefused"
NO_LABEL: Final = "org.svirt1.Error.LabelRefused"
EXISTS: Final = "org.svirt1.Error.VMExists"
NO_VM: Final = "org.svirt1.Error.NoSuchVM"
NO_GROUP: Final = "org.svirt1.Error.NoSuchGroup"
EXHAUSTED: Final = "org.svirt1.Error.PoolExhausted"
DRIFT: Final = "org.svirt1.Error.Drift"
GONE: Final = "org.freedesktop.DBus.Error.UnknownObject"
FAILED: Final = "org.svirt1.Error.Failed"
TWICE: Final = "org.freedesktop.DBus.Error.InvalidArgs"


def text(pair: Pair) -> str:
    """Return a pair as a label ends with it."""
    return ",".join(f"c{category}" for category in sorted(pair))


def categories(label: str | None) -> Pair:
    """Return the categories of a label."""
    parts = (label or "").split(":", 4)
    found: set[int] = set()
    for part in parts[4].split(",") if len(parts) == 5 else ():
        first, _, last = part.partition(".")
        found |= set(range(int(first[1:]), int((last or first)[1:]) + 1))
    return frozenset(found)


@dataclass(slots=True)
class File:
    """One inode: what it carries, where it is found, whether it can be written; `over`: the file
    that an image in it lies over.

    `theirs`: a third party put the label there that it carries.
    """

    ino: int
    label: str | None
    names: set[str]
    immutable: bool = False
    theirs: bool = True
    over: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    """One resource of a request; `fd`: passed as a descriptor; `group`: whose members share it;
    `tree`: a folder with all that is in it; `chain`: an image with what it lies over; `until`: when
    it is over, if it is leased, and `at_end` what then becomes of a VM that runs."""

    path: str
    access: str
    fd: bool = False
    group: str = ""
    tree: bool = False
    chain: bool = False
    until: int = 0
    at_end: str = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """A file for a VM that is up: under this id, in place of that one, which is handed back or,
    with `keeps`, stays under it and is only read. `alike`: the access is not said."""

    want: Want
    id: str = ""
    replaces: str = ""
    keeps: bool = False
    alike: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """One VM's use of one file, by the path that it was asked for. `part_of`: the id of that for
    whose sake the VM has it; `number`: above those of what the VM had before. `inside`: of a tree,
    what its entries had, by inode number."""

    ino: int
    path: str
    access: str
    label: str
    original: str | None
    group: str = ""
    id: str = ""
    number: int = 0
    part_of: str = ""
    tree: bool = False
    inside: Earlier = ()
    until: int = 0
    at_end: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM. `caller`: with whom it ends; `unit`: whether svirtd started it; `groups`: in this run;
    `lasting`: at each start; `libvirt`: whether libvirt labels it, and `pid`: as what it runs;
    `enrolled`: whether it is the administrator's unit's."""

    name: str
    id: str
    pair: Pair
    state: str
    persistent: bool
    caller: int | None = None
    unit: bool = False
    holds: tuple[Hold, ...] = ()
    groups: frozenset[str] = frozenset()
    lasting: frozenset[str] = frozenset()
    libvirt: bool = False
    pid: int = 0
    enrolled: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Suspect:
    """A file that may still carry a pair, or a group's category: what keeps it in quarantine."""

    pair: tuple[int, ...]
    path: str
    ino: int
    label: str
    original: str | None
    inside: Earlier = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A difference that is reported, and left alone."""

    kind: str
    vm: str
    path: str
