# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs that systemd starts under a type, without svirtd and with nothing else that keeps them in.

What is stopped in here, the type has stopped.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from svirtd.host.kernel import Kernel
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import Captive, Machine, Qemu, captive, qemu
from tests.support import set_label, wait_for

_RUN: Final = Path("/run/sealed")
_START_S: Final = 60.0
# What a program sees of being stopped.
_REFUSED: Final = {"EACCES", "EPERM"}

# An expression, and what the audit log has of it: permissions, target and class. Without the latter
# nothing is logged: the policy says so, or the kernel refuses before SELinux is asked.
Attempt = tuple[str, tuple[str, str, str] | None]


class Captured(Captive):
    """A captive in a unit of its own, as root, with nothing but its label."""

    def __init__(
        self, name: str, domain: str, level: str, *, writes: str = "svirt_image_t"
    ) -> None:
        _start(self, name, domain, level, writes, captive(), "control")

    def end(self) -> None:
        """Stop it and remove what it had."""
        _end(self)


class Monitored(Qemu):
    """A QEMU in a unit of its own, with nothing but its label."""

    def __init__(
        self,
        name: str,
        domain: str,
        level: str,
        *disks: Path,
        read_only: Sequence[Path] = (),
        writes: str = "svirt_image_t",
    ) -> None:
        command = qemu(*disks, machine="pc", read_only=read_only)
        _start(self, name, domain, level, writes, command, "qmp")
        self.greet()

    def end(self) -> None:
        """Stop it and remove what it had."""
        _end(self)


def stopped(audit: Audit, vm: Captive, attempts: Sequence[Attempt]) -> None:
    """Have it try everything; each must fail, and be in the audit log as said."""
    logged = [seen for _, seen in attempts if seen is not None]
    with audit.each_denied(vm.context, logged):
        got = {attack: vm.ask(attack) for attack, _ in attempts}
    for attack, answer in got.items():
        print(f"{vm.name}: {attack}: {answer}")
    assert {
        attack for attack, answer in got.items() if answer.get("error") not in _REFUSED
    } == set()


def not_written(path: Path, there: str) -> list[Attempt]:
    """Return what one tries with a file that it may read and is never to change."""
    return [
        (f"write('{path}')", ("write", there, "file")),
        (f"append('{path}')", ("append", there, "file")),
        (f"reopen('{path}')", ("write", there, "file")),
        (f"os.truncate('{path}', 0)", ("write", there, "file")),
        (f"map_shared('{path}')", ("map", there, "file")),
        (f"os.chmod('{path}', 0o666)", ("setattr", there, "file")),
        (
            f"relabel('{path}', 'system_u:object_r:svirtd_scratch_t:s0')",
            ("relabelfrom", there, "file"),
        ),
    ]


def connect_at(level_context: str, path: str) -> socket.socket:
    """Connect to a VM's socket from one of the VM's level."""
    with Kernel().sockets_at(level_context):
        stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(_START_S)
    try:
        stream.connect(path)
    except OSError:
        stream.close()
        raise
    return stream


def own_context_at(level: str) -> str:
    """Return this process's context at another level."""
    own = Path("/proc/self/attr/current").read_text("utf-8").rstrip("\0\n")
    return ":".join([*own.split(":")[:3], level])


def _start(
    vm: Machine,
    name: str,
    domain: str,
    level: str,
    writes: str,
    command: Sequence[str],
    socket_name: str,
) -> None:
    folder = _RUN / name
    folder.mkdir(parents=True)
    vm.name, vm.runtime = name, str(folder)
    vm.context = f"system_u:system_r:{domain}:{level}"
    vm.image_context = f"system_u:object_r:{writes}:{level}"
    set_label(folder, vm.image_context)
    argv = [part.replace("{runtime}", vm.runtime) for part in command]
    properties = (f"SELinuxContext={vm.context}", "NoNewPrivileges=yes", "CapabilityBoundingSet=")
    subprocess.run(
        [
            *("systemd-run", "-q", f"--unit=sealed-{name}", "--service-type=exec"),
            *(f"--property={one}" for one in properties),
            *argv,
        ],
        check=True,
    )
    vm.pid = int(systemctl("show", "--property=MainPID", "--value", f"sealed-{name}"))

    def reached() -> socket.socket | None:
        assert systemctl("show", "-P", "ActiveState", f"sealed-{name}") == "active", name
        try:
            return connect_at(own_context_at(level), f"{folder}/{socket_name}")
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    vm._stream = wait_for(f"the socket of {name}", reached, _START_S)
    vm._lines = vm._stream.makefile("rw")
    assert vm.label() == vm.context


def _end(vm: Machine) -> None:
    vm.close()
    systemctl("stop", f"sealed-{vm.name}")
    shutil.rmtree(vm.runtime)
    os.rmdir(_RUN) if not os.listdir(_RUN) else None
