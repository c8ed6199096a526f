# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the sandbox's processes find in the file system.

Everything is put where a package would put it, on private tmpfs mounts: the manager, the bus and
journald then run with the unit files, command lines and search paths that they have on any host.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.sandbox import accounts, kernel
from tests.sandbox.errors import SandboxError

BUS_SOCKET = "/run/dbus/system_bus_socket"
TARGET = "sandbox.target"
CONSOLE_LOG = "console.log"
BOOT_ID = "boot_id"
NO_GENERATORS = "/run/no-generators"

SYSTEMD = "/usr/lib/systemd/systemd"
_UNITS = Path("/usr/lib/systemd/system")
_BUS_POLICIES = Path("/usr/share/dbus-1/system.d")
_BUS_SERVICES = Path("/usr/share/dbus-1/system-services")
_POLKIT_ACTIONS = Path("/usr/share/polkit-1/actions")
_POLKIT_RULES = Path("/usr/share/polkit-1/rules.d")
_EMPTY = (
    "/etc/systemd",
    "/etc/dbus-1",
    "/etc/polkit-1/rules.d",
    # Where units find programs before all others: svirtctl, for those that have it called.
    "/usr/local/sbin",
    "/var/log/journal",
)
# The project's own: a host on which it was never installed does not have them.
_OWN = ("/etc/svirtd", "/var/lib/svirtd")

# path -> the Debian package that brings it
_NEEDED = {
    SYSTEMD: "systemd",
    "/usr/lib/systemd/systemd-journald": "systemd",
    "/usr/bin/systemd-run": "systemd",
    "/usr/lib/systemd/systemd-machined": "systemd-container",
    "/usr/bin/dbus-daemon": "dbus-daemon",
    "/usr/lib/systemd/system/dbus.service": "dbus",
    "/usr/lib/polkit-1/polkitd": "polkitd",
    "/etc/machine-id": "systemd",
}

_UNIT_NAMES = (
    *(f"{name}.target" for name in ("basic", "sysinit", "sockets", "timers", "paths", "slices")),
    *(f"{name}.target" for name in ("shutdown", "umount", "final")),
    "machine.slice",
    "dbus.service",
    "dbus.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-machined.service",
    "polkit.service",
)
_UNIT_LINKS = {
    "dbus-org.freedesktop.machine1.service": "systemd-machined.service",
    "sockets.target.wants/dbus.socket": "../dbus.socket",
}
_BUS_NAMES = tuple(f"org.freedesktop.{name}" for name in ("systemd1", "machine1", "PolicyKit1"))

_TARGET_UNIT = """\
[Unit]
Description=The sandbox is up
Requires=basic.target systemd-journald.service dbus.service systemd-machined.service
After=basic.target systemd-journald.service dbus.service systemd-machined.service
"""

# Audit= (empty) leaves the kernel's audit switch, which is the whole machine's, alone.
_JOURNALD_CONF = """\
[Journal]
Storage=volatile
RateLimitIntervalSec=0
RuntimeMaxUse=64M
ReadKMsg=no
Audit=
ForwardToSyslog=no
ForwardToWall=no
"""

# Tests end and start the bus, polkit and units of their own oftener than systemd has it by itself,
# five times in ten seconds, on a machine that is quick.
_SYSTEM_CONF = """\
[Manager]
DefaultStartLimitIntervalSec=0
"""


MANAGER_ARGV = (
    SYSTEMD,
    "--system",
    f"--unit={TARGET}",
    "--show-status=no",
    "--log-target=journal-or-kmsg",
)


def manager_env(notify: Path) -> dict[str, str]:
    """The manager's environment; it reports to the datagram socket `notify` when it is up."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "container": "svirt-sandbox",
        "NOTIFY_SOCKET": str(notify),
        "SYSTEMD_GENERATOR_PATH": NO_GENERATORS,
        "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": NO_GENERATORS,
    }


def check_needed() -> None:
    """Raise SandboxError naming each program that is missing, with its Debian package."""
    missing = [f"{p} (package {pkg})" for p, pkg in _NEEDED.items() if not Path(p).exists()]
    if missing:
        raise SandboxError(f"not installed: {', '.join(missing)}")


def install(state: Path, bus_files: Path) -> None:
    """Give the calling process namespaces of its own and replace what must not be shared.

    Its cgroup becomes the root of the cgroup tree that it sees.

    `state` is the sandbox's own folder; `bus_files` holds the project's bus policy (*.conf), bus
    activation (*.service), polkit actions (*.policy) and polkit rules (*.rules). Raises OSError.
    """
    kernel.unshare(
        kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    )
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    _kernel_views(state)
    _tmpfs(Path("/run"))
    for path in map(Path, _OWN):
        if not path.is_dir():
            _cover(path.parent)
            path.mkdir()
        _tmpfs(path)
    for path in map(Path, _EMPTY):
        if path.is_dir():
            _tmpfs(path)
    _replace(_UNITS, _read(_UNITS, _UNIT_NAMES) | {TARGET: _TARGET_UNIT.encode()})
    for name, target in _UNIT_LINKS.items():
        link = _UNITS / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    for folder, suffix, own in (
        (_BUS_POLICIES, ".conf", [f"{name}.conf" for name in _BUS_NAMES]),
        (_BUS_SERVICES, ".service", [f"{name}.service" for name in _BUS_NAMES]),
        (_POLKIT_ACTIONS, ".policy", _names(_POLKIT_ACTIONS, ".policy")),
        # polkit's own, which says who is an administrator; no other package's.
        (_POLKIT_RULES, ".rules", ["50-default.rules"]),
    ):
        _replace(folder, _read(folder, own) | _read(bus_files, _names(bus_files, suffix)))
    accounts.install(state)
    Path("/etc/systemd/journald.conf").write_text(_JOURNALD_CONF)
    Path("/etc/systemd/system.conf").write_text(_SYSTEM_CONF)
    Path(NO_GENERATORS).mkdir()


def _kernel_views(state: Path) -> None:
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    # A boot of its own: `journalctl -b` shows this run only, and folders that systemd leaves in
    # /tmp (they carry the boot's id) can be told from the host's.
    kernel.bind(str(state / BOOT_ID), "/proc/sys/kernel/random/boot_id")
    # PID 1 raises limits of the whole machine where it can write here.
    kernel.mount("/proc/sys", "/proc/sys", flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.mount("none", "/proc/sys", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
    kernel.detach("/sys/fs/cgroup")
    kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    # PID 1 writes to the kernel's log until journald is up; here that is a file.
    kernel.bind(str(state / CONSOLE_LOG), "/dev/kmsg")
    kernel.bind("/dev/null", "/dev/console")


def _tmpfs(target: Path) -> None:
    kernel.mount("tmpfs", str(target), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")


def _cover(folder: Path) -> None:
    """Let what is written to `folder` from now on end with the sandbox."""
    layer = Path("/run/layers") / folder.name
    for part in ("upper", "work"):
        (layer / part).mkdir(parents=True)
    shutil.copymode(folder, layer / "upper")
    options = f"lowerdir={folder},upperdir={layer}/upper,workdir={layer}/work"
    kernel.mount("overlay", str(folder), "overlay", options=options)


def _names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == suffix)


def _read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    _tmpfs(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
