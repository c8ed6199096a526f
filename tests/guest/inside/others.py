# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other people's VMs and containers in the guest: libvirt's, with sets of its own, and podman's."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import categories, process_label
from tests.support import wait_for

CONTAINER: Final = "system_u:system_r:container_t"
_ROOT: Final = Path("/srv/container")
_PROGRAM: Final = "/usr/bin/sleep"
_FILES: Final = "system_u:object_r:container_file_t:s0"
# A runtime that is started in an emulated machine; several of them beside each other.
_START_S: Final = 120.0
_DROP_IN: Final = Path("/run/systemd/system/libvirtd.service.d/range.conf")
_DOMAIN: Final = """<domain type="qemu"><name>{name}</name><memory unit="MiB">32</memory>
<vcpu>1</vcpu><os><type arch="x86_64" machine="pc">hvm</type></os><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model="none"/></devices></domain>"""


class Container:
    """A container of podman's, which gives it a set of its own unless `level` says which."""

    def __init__(self, name: str, level: str | None = None) -> None:
        self.name = name
        chosen = [] if level is None else ["--security-opt", f"label=level:{level}"]
        options = ["--network=none", "--cgroups=disabled", "--log-driver=none", *chosen]
        program = [str(_root()), _PROGRAM, "1000"]
        told = Path(f"/run/container-{name}.pid")
        _podman(
            *("run", "--detach", f"--name={name}", f"--pidfile={told}", *options),
            *("--rootfs", *program),
        )
        self.pid = int(told.read_text("utf-8"))
        self.context = process_label(self.pid)
        assert self.context.startswith(f"{CONTAINER}:"), self.context
        self.categories = categories(self.context)

    def end(self) -> None:
        """Take it away, and wait until its process is gone."""
        _podman("rm", "--force", "--time=0", self.name)
        wait_for("its process is gone", lambda: not Path(f"/proc/{self.pid}").exists())


class Domain:
    """A VM of libvirt's that libvirt draws a set for."""

    def __init__(self, name: str) -> None:
        self.name = name
        described = Path(f"/root/{name}.xml")
        described.write_text(_DOMAIN.format(name=name), "utf-8")
        virsh("create", str(described))
        self.pid = int(Path(f"/run/libvirt/qemu/{name}.pid").read_text("utf-8"))
        self.context = process_label(self.pid)
        self.categories = categories(self.context)

    def end(self) -> None:
        """Pull its plug, and wait until its process is gone."""
        virsh("destroy", self.name)
        wait_for("its process is gone", lambda: not Path(f"/proc/{self.pid}").exists())


@contextmanager
def libvirt_draws_from(range_: str) -> Iterator[None]:
    """Have libvirt draw its sets from these categories: it takes those of its own process."""
    _DROP_IN.parent.mkdir(parents=True)
    level = f"s0-s0:{range_}"
    _DROP_IN.write_text(f"[Service]\nSELinuxContext=system_u:system_r:virtd_t:{level}\n", "utf-8")
    try:
        systemctl("daemon-reload")
        systemctl("restart", "libvirtd.service")
        pid = int(systemctl("show", "--property=MainPID", "--value", "libvirtd.service"))
        assert process_label(pid) == f"system_u:system_r:virtd_t:{level}"
        yield
    finally:
        shutil.rmtree(_DROP_IN.parent)
        systemctl("daemon-reload")
        systemctl("restart", "libvirtd.service")


def end(some: Sequence[Container | Domain]) -> None:
    """Take all of them away."""
    for one in some:
        one.end()


def _root() -> Path:
    """A root directory with one program in it."""
    if not _ROOT.exists():
        for name in ("proc", "sys", "dev", "etc", "run", "tmp"):
            (_ROOT / name).mkdir(parents=True)
        listed = subprocess.run(["ldd", _PROGRAM], capture_output=True, text=True, check=True)
        words = listed.stdout.split()
        for name in (_PROGRAM, *(word for word in words if word.startswith("/"))):
            target = Path(f"{_ROOT}{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
        subprocess.run(["chcon", "--recursive", _FILES, _ROOT], check=True)
    return _ROOT


def _podman(*arguments: str) -> str:
    return _run("podman", *arguments)


def virsh(*arguments: str) -> str:
    """Run virsh and return its output."""
    return _run("virsh", "--connect", "qemu:///system", "--quiet", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()
