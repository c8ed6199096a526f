# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: one TOML file and its drop-ins become one frozen value.

`FILE` is read first, then `FILE.d/*.toml` in the order of their names; a later key wins. Every
error names the file, the key and what was expected, and stops the daemon: a setting that was
mistyped must not silently become the default.
"""

import glob
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from svirtd.core import goal_files
from svirtd.core.goals import Goals
from svirtd.core.keys import Reader, boolean, one_of, read_keys, whole
from svirtd.core.mcs import Context, parse_categories, parse_context
from svirtd.core.pool import Shape, make_shape
from svirtd.core.walls import Wall, check_wall_name, read_wall_keys
from svirtd.errors import ConfigError

DEFAULT_PATH: Final = "/etc/svirtd/svirtd.toml"

# What an administrator's disk images carry in the reference policy and in Fedora's. Never a type
# of the host (etc_t, bin_t, shadow_t, a device type), and not svirt_image_t: a file that carries
# it belongs to some VM, ours or libvirt's.
_RELABEL_FROM: Final = (
    "virt_image_t",
    "virt_content_t",
    "virt_var_lib_t",
    "user_home_t",
    "user_tmp_t",
    "unlabeled_t",
    "hugetlbfs_t",
)

# Devices that are made for somebody to use: what a USB port has, a VFIO group, a SCSI device, a
# macvtap. Never one that is the host's own (memory, disks, terminals).
_RELABEL_DEVICES_FROM: Final = (
    "usb_device_t",
    "vfio_device_t",
    "scsi_generic_device_t",
    "tun_tap_device_t",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings; a request past one gets LimitsExceeded with its name."""

    vms: int = 500_000
    resources: int = 256
    vms_per_user: int = 64
    resources_per_user: int = 1024
    groups_per_user: int = 8
    jobs_per_user: int = 2
    pending_calls: int = 1024
    pending_calls_per_sender: int = 256
    pending_calls_per_user: int = 256
    calls_at_once_per_user: int = 4
    command_bytes: int = 131_072
    listed_vms: int = 10_000
    dialogs_per_user: int = 3
    pending_bytes: int = 67_108_864
    pending_bytes_per_user: int = 8_388_608
    pending_fds_per_user: int = 512
    tree_files: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon is told from outside. A context that is None comes from the policy."""

    require: str = "enforcing"
    registry_path: str = "/var/lib/svirtd/book.sqlite"
    group_commit: bool = True
    runtime_directory: str = "/run/svirtd"
    private: str = "c0.c767"
    groups: str = "c768.c1023"
    reserved: str = ""
    private_size: int = 2
    process_context: Context | None = None
    image_context: Context | None = None
    content_context: Context | None = None
    relabel_from: frozenset[str] = frozenset(_RELABEL_FROM)
    relabel_devices_from: frozenset[str] = frozenset(_RELABEL_DEVICES_FROM)
    goals_directory: str = "/etc/svirtd/goals.d"
    slice: str = "machine.slice"
    start_timeout_s: int = 30
    stop_timeout_s: int = 100
    answer_timeout_s: int = 25
    drift_repair: bool = True
    drift_interval_s: int = 600
    dialog_timeout_s: int = 120
    libvirt_adopt: tuple[str, ...] = ()
    libvirt_require_adopted: bool = False
    limits: Limits = Limits()
    walls: tuple[Wall, ...] = ()

    @property
    def shape(self) -> Shape:
        """The private pool that the label settings describe; checked when they were read."""
        return make_shape(
            parse_categories(self.private),
            self.group_categories,
            parse_categories(self.reserved),
            self.private_size,
        )

    @property
    def group_categories(self) -> frozenset[int]:
        """The categories that groups may own, reserved ones taken out."""
        return parse_categories(self.groups) - parse_categories(self.reserved)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")  # noqa: TRY004 -- readers speak with ValueError
    return value


def _absolute(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/") or "\0" in text:
        raise ValueError("an absolute path")
    return os.path.normpath(text)


def _categories(value: Any) -> str:
    parse_categories(_text(value))
    return str(value)


def _context(value: Any) -> Context:
    return parse_context(_text(value))


def _slice(value: Any) -> str:
    text = _text(value)
    if not text.endswith(".slice") or "/" in text or len(text) > 255:
        raise ValueError('the name of a slice, such as "machine.slice"')
    return text


def _types(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of type names")
    for name in value:
        if not name.isascii() or not name.replace("_", "").isalnum():
            raise ValueError(f"type names, not {name!r}")
    return frozenset(value)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError('a list of names of domains, such as ["web-*"]')
    return tuple(value)


# Section and key → where it goes and how it is read. A reader's ValueError says what was expected.
_KEYS: Final[Mapping[tuple[str, str], tuple[str, Reader]]] = {
    ("selinux", "require"): ("require", one_of(("enforcing", "permissive", "none"))),
    ("registry", "path"): ("registry_path", _absolute),
    ("registry", "group-commit"): ("group_commit", boolean),
    ("runtime", "directory"): ("runtime_directory", _absolute),
    ("labels", "private"): ("private", _categories),
    ("labels", "groups"): ("groups", _categories),
    ("labels", "reserved"): ("reserved", _categories),
    ("labels", "private-size"): ("private_size", whole(1, 5)),
    ("labels", "process-context"): ("process_context", _context),
    ("labels", "image-context"): ("image_context", _context),
    ("labels", "content-context"): ("content_context", _context),
    ("labels", "relabel-from"): ("relabel_from", _types),
    ("labels", "relabel-devices-from"): ("relabel_devices_from", _types),
    ("goals", "directory"): ("goals_directory", _absolute),
    ("launch", "slice"): ("slice", _slice),
    ("launch", "start-timeout"): ("start_timeout_s", whole(1, 3600)),
    ("launch", "stop-timeout"): ("stop_timeout_s", whole(1, 3600)),
    ("launch", "answer-timeout"): ("answer_timeout_s", whole(1, 3600)),
    ("drift", "repair"): ("drift_repair", boolean),
    ("drift", "interval"): ("drift_interval_s", whole(10, 86_400)),
    ("polkit", "dialog-timeout"): ("dialog_timeout_s", whole(1, 3600)),
    ("libvirt", "adopt"): ("libvirt_adopt", _patterns),
    ("libvirt", "require-adopted"): ("libvirt_require_adopted", boolean),
    ("limits", "vms"): ("vms", whole(1, 10_000_000)),
    ("limits", "vms-per-user"): ("vms_per_user", whole(0, 10_000_000)),
    ("limits", "resources-per-user"): ("resources_per_user", whole(0, 10_000_000)),
    ("limits", "groups-per-user"): ("groups_per_user", whole(0, 1024)),
    ("limits", "jobs-per-user"): ("jobs_per_user", whole(0, 10_000)),
    ("limits", "resources"): ("resources", whole(1, 100_000)),
    ("limits", "pending-calls"): ("pending_calls", whole(1, 1_000_000)),
    ("limits", "pending-calls-per-sender"): (
        "pending_calls_per_sender",
        whole(1, 1_000_000),
    ),
    ("limits", "pending-calls-per-user"): ("pending_calls_per_user", whole(1, 1_000_000)),
    ("limits", "pending-bytes"): ("pending_bytes", whole(1, 1_000_000_000)),
    ("limits", "pending-bytes-per-user"): (
        "pending_bytes_per_user",
        whole(1, 1_000_000_000),
    ),
    ("limits", "pending-fds-per-user"): ("pending_fds_per_user", whole(1, 1_000_000)),
    ("limits", "calls-at-once-per-user"): ("calls_at_once_per_user", whole(1, 10_000)),
    ("limits", "command-bytes"): ("command_bytes", whole(1, 2_000_000)),
    ("limits", "listed-vms"): ("listed_vms", whole(1, 1_000_000)),
    ("limits", "tree-files"): ("tree_files", whole(1, 100_000_000)),
    ("limits", "dialogs-per-user"): ("dialogs_per_user", whole(0, 1000)),
}


def load(path: str | None) -> Config:
    """Read the file at `path` and its drop-ins; the default file may be absent, a named one not.

    Raises ConfigError.
    """
    main = path if path is not None else DEFAULT_PATH
    found = _Found()
    if path is not None or os.path.exists(main):
        _read_file(main, found)
    for drop_in in sorted(glob.glob(glob.escape(main) + ".d/*.toml")):
        _read_file(drop_in, found)
    config = replace(
        Config(), **found.values, limits=Limits(**found.limits), walls=_walls(main, found.walls)
    )
    try:
        _ = config.shape
    except ValueError as error:
        raise ConfigError(
            f"{main}: [labels] private, groups, reserved, private-size: {error}"
        ) from error
    return config


@dataclass(frozen=True, slots=True)
class _Found:
    """What the files have said so far, by field; of walls, by name and field."""

    values: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    walls: dict[str, dict[str, Any]] = field(default_factory=dict)


def _walls(path: str, found: Mapping[str, Mapping[str, Any]]) -> tuple[Wall, ...]:
    for name, keys in found.items():
        if "classes" not in keys:
            raise ConfigError(
                f"{path}: [wall.{name}] classes: is not there, in this file or a drop-in; expected "
                "the classes of groups that the wall keeps apart"
            )
    return tuple(Wall(name, **keys) for name, keys in sorted(found.items()))


def _read_walls(path: str, walls: object, found: dict[str, dict[str, Any]]) -> None:
    if not isinstance(walls, dict):
        raise ConfigError(f"{path}: wall: expected sections with a name, [wall.NAME]")
    for name, table in walls.items():
        try:
            check_wall_name(name)
        except ValueError as error:
            raise ConfigError(f"{path}: [wall.{name}] {error}") from error
        found.setdefault(name, {}).update(read_wall_keys(f"{path}: [wall.{name}] ", table))


def load_goals(config: Config) -> Goals:
    """Return the built-in goals and those of the files in the goals' directory, in the order of
    their names; it may be absent. Raises ConfigError.
    """
    paths = sorted(glob.glob(f"{glob.escape(config.goals_directory)}/*.toml"))
    return goal_files.read_all([(path, _tables(path)) for path in paths])


def _tables(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _read_file(path: str, found: _Found) -> None:
    tables = _tables(path)
    _read_walls(path, tables.pop("wall", {}), found.walls)
    for section, table in tables.items():
        known = {key: how for (where, key), how in _KEYS.items() if where == section}
        if not known:
            sections = ", ".join(sorted({"[wall.NAME]", *(f"[{where}]" for where, _ in _KEYS)}))
            raise ConfigError(f"{path}: [{section}]: unknown section; expected one of {sections}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section}: expected a section, [{section}], with keys")
        read = read_keys(f"{path}: [{section}] ", table, known)
        (found.limits if section == "limits" else found.values).update(read)


def reload_changes(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return what a running daemon uses from now on, and the fields that need a restart."""
    live = replace(
        old,
        relabel_from=new.relabel_from,
        relabel_devices_from=new.relabel_devices_from,
        goals_directory=new.goals_directory,
        start_timeout_s=new.start_timeout_s,
        stop_timeout_s=new.stop_timeout_s,
        answer_timeout_s=new.answer_timeout_s,
        slice=new.slice,
        drift_repair=new.drift_repair,
        drift_interval_s=new.drift_interval_s,
        dialog_timeout_s=new.dialog_timeout_s,
        libvirt_adopt=new.libvirt_adopt,
        libvirt_require_adopted=new.libvirt_require_adopted,
        limits=new.limits,
        walls=new.walls,
    )
    waiting = [
        name for name in Config.__dataclass_fields__ if getattr(live, name) != getattr(new, name)
    ]
    return live, waiting
