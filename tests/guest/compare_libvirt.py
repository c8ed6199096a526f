# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd beside libvirt, in the guest and in one run: how long a VM takes, what labels are left.

`./bench --libvirt` runs it. The same machine each time: QEMU with so many disks, from the request
to its monitor's first answer, and from the wish to end it until its labels are back. The two take
turns, so that whatever else the host does falls on both.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import libvirt

from tests.guest.inside.vms import Qemu
from tests.support import XATTR, Client, set_label, wait_for

FOLDER: Final = Path("/var/lib/libvirt/images")
ORIGINAL: Final = "system_u:object_r:virt_image_t:s0"
_WAIT_S: Final = 90.0

_DOMAIN: Final = """<domain type="qemu"><name>compared</name><memory unit="MiB">32</memory>
<vcpu>1</vcpu><os><type arch="x86_64" machine="pc">hvm</type></os><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}<memballoon model="none"/></devices>
</domain>"""
_DISK: Final = """<disk type="file" device="disk"><driver name="qemu" type="raw"/>
<source file="{path}"/><target dev="vd{letter}" bus="virtio"/>{more}</disk>"""


class Tool(Protocol):
    """One that runs VMs."""

    name: str
    service: str

    def start(self, disks: Sequence[Path], read_only: Sequence[Path] = ()) -> None:
        """Start the VM and return when its QEMU answers."""

    def stop(self) -> None:
        """End the VM and return when its labels are back, as far as they come back."""

    def pid(self) -> int:
        """Its QEMU."""

    def again(self) -> None:
        """Connect to a daemon that has been started again."""


class Svirtd:
    """Over D-Bus, as any tool would."""

    name, service = "svirtd", "svirtd.service"

    def __init__(self) -> None:
        self._client = Client()
        self._vm: Qemu | None = None

    def start(self, disks: Sequence[Path], read_only: Sequence[Path] = ()) -> None:
        self._vm = Qemu(
            self._client, "compared", *disks, machine="pc", devices=True, read_only=read_only
        )

    def stop(self) -> None:
        if self._vm is not None:
            self._vm.close()
        if "compared" in self._client.vms():
            self._client.release("compared")

    def pid(self) -> int:
        assert self._vm is not None
        return self._vm.pid

    def again(self) -> None:
        if self._vm is not None:
            self._vm.close()
            self._vm = None
        self._client.close()
        systemctl("start", self.service)
        self._client = Client()


class Libvirt:
    """By its Python binding."""

    name, service = "libvirt", "libvirtd.service"

    def __init__(self) -> None:
        self._connection = libvirt.open("qemu:///system")

    def start(self, disks: Sequence[Path], read_only: Sequence[Path] = ()) -> None:
        described = "".join(
            _DISK.format(path=path, letter=chr(97 + n), more="<readonly/>" * (path in read_only))
            for n, path in enumerate([*disks, *read_only])
        )
        self._connection.createXML(_DOMAIN.format(disks=described))

    def stop(self) -> None:
        for domain in self._connection.listAllDomains():
            domain.destroy()

    def pid(self) -> int:
        return int(Path("/run/libvirt/qemu/compared.pid").read_text("utf-8"))

    def again(self) -> None:
        # The connection is to a daemon that is gone; it cannot be closed.
        systemctl("start", self.service)
        self._connection = libvirt.open("qemu:///system")


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its output."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def images(number: int, prefix: str = "disk") -> list[Path]:
    """Make this many fresh images."""
    made = []
    for count in range(number):
        path = FOLDER / f"{prefix}{count}.img"
        path.unlink(missing_ok=True)
        with open(path, "wb") as file:
            file.truncate(1 << 20)
        set_label(path, ORIGINAL)
        made.append(path)
    return made


def timed(work: Callable[[], object]) -> float:
    """Return how long it took, in seconds."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def left(paths: Sequence[Path], originals: Sequence[bytes]) -> str:
    """Say what labels are left on the disks."""
    changed = [
        os.getxattr(path, XATTR).rstrip(b"\0").decode()
        for path, original in zip(paths, originals, strict=True)
        if os.getxattr(path, XATTR) != original
    ]
    return "the original ones" if not changed else f"{len(changed)} of {len(paths)}: {changed[0]}"


def killed(tool: Tool) -> str:
    """The daemon is killed under a running VM, the VM ends meanwhile, the daemon comes back."""
    paths = images(2)
    before = [os.getxattr(path, XATTR) for path in paths]
    tool.start(paths)
    vm = tool.pid()
    daemon = int(systemctl("show", "-P", "MainPID", tool.service))
    # Both at once: neither may see the other's end.
    os.kill(daemon, signal.SIGSTOP)
    os.kill(vm, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    wait_for("the daemon is gone", lambda: not Path(f"/proc/{daemon}").exists(), _WAIT_S)
    tool.again()
    end = time.monotonic() + 20
    while left(paths, before) != "the original ones" and time.monotonic() < end:
        time.sleep(0.2)
    found = left(paths, before)
    tool.stop()
    return found


def stopped(tool: Tool, number: int) -> str:
    """Started and stopped in peace; one more disk is only read."""
    paths, extra = images(number), images(1, "read")
    before = [os.getxattr(path, XATTR) for path in (*paths, *extra)]
    tool.start(paths, extra)
    tool.stop()
    return left([*paths, *extra], before)


def measure(tools: Sequence[Tool], number: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return each tool's median seconds of start and stop with so many disks."""
    times: dict[str, list[tuple[float, float]]] = {tool.name: [] for tool in tools}
    paths = images(number)
    for count in range(rounds):
        for tool in tools if count % 2 else reversed(tools):
            start = timed(lambda tool=tool: tool.start(paths))  # type: ignore[misc]
            times[tool.name].append((start, timed(tool.stop)))
            print(f"{tool.name}, {number} disks, {count + 1} of {rounds}", file=sys.stderr)
    return {
        name: (statistics.median(s for s, _ in seen), statistics.median(e for _, e in seen))
        for name, seen in times.items()
    }


def version(package: str) -> str:
    """Return a package's version."""
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Measure, print a table, return 0."""
    parser = argparse.ArgumentParser(prog="compare_libvirt", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="starts and stops of each (20)")
    rounds: int = parser.parse_args().rounds
    subprocess.run(["setsebool", "virt_use_execmem", "on"], check=True)
    systemctl("start", "libvirtd.service")
    tools: list[Any] = [Svirtd(), Libvirt()]
    rows: list[tuple[str, ...]] = []
    for number in (1, 16):
        seen = measure(tools, number, rounds)
        for part, what in enumerate(("start", "stop")):
            figures = [f"{seen[tool.name][part] * 1000:.0f} ms" for tool in tools]
            rows.append((f"{what}, {number} disk{'s' * (number > 1)}, p50 of {rounds}", *figures))
    for number in (1, 16):
        what = f"labels left after stop, {number} disk{'s' * (number > 1)} and one read-only"
        rows.append((what, *(stopped(tool, number) for tool in tools)))
    what = "labels left after kill -9 of daemon and VM, daemon started again"
    rows.append((what, *(killed(tool) for tool in tools)))

    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.uname().release}, QEMU {version('qemu-system-x86')}")
    print(f"| | svirtd {version('svirtd')} | libvirt {version('libvirt-daemon')} |")
    print("| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"{len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
