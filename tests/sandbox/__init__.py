# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine for one command: systemd as PID 1, a system bus, journald and machined, all real.

`python3 -m tests.sandbox run -- COMMAND…` builds it from namespaces (mount, pid, ipc, uts, cgroup):
it works whatever the host's PID 1 is, touches nothing of the host's, and takes every process and
mount away when the command ends. Its users are the host's and those of tests/sandbox/accounts.py;
network and the rest of the file system are the host's.
Standard library only: it runs before a virtual environment exists.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.errors import SandboxError

__all__ = ["Sandbox", "SandboxError", "inside", "run"]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a process in the sandbox can know about it."""

    state: Path
    """A folder of the sandbox's own with a short name, removed at its end."""
    bus_address: str
    """Of the system bus; also in DBUS_SYSTEM_BUS_ADDRESS."""
    journal: Path
    """The journal's folder, for `journalctl --directory`."""
    controllers: frozenset[str]
    """The cgroup2 controllers that units can use here: not every machine has `memory`."""


def inside() -> Sandbox:
    """Describe the sandbox that the caller runs in. Raises SandboxError outside of one."""
    try:
        return Sandbox(
            state=Path(os.environ["SVIRT_SANDBOX"]),
            bus_address=os.environ["DBUS_SYSTEM_BUS_ADDRESS"],
            journal=Path(os.environ["SVIRT_SANDBOX_JOURNAL"]),
            controllers=frozenset(os.environ["SVIRT_SANDBOX_CONTROLLERS"].split()),
        )
    except KeyError as error:
        raise SandboxError(
            f"not in the sandbox ({error.args[0]} is not set); "
            "run this as root through: python3 -m tests.sandbox run -- COMMAND"
        ) from None


def run(command: Sequence[str], *, bus_files: Path | None = None) -> int:
    """Run `command` in a fresh sandbox, in a process of its own, and return its exit code.

    `bus_files`: see `python3 -m tests.sandbox run --help`. The caller must be root.
    """
    option = [] if bus_files is None else ["--bus-files", str(bus_files.resolve())]
    argv = [sys.executable, "-m", "tests.sandbox", "run", *option, "--", *command]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(argv, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
