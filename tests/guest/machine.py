# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boots the guest, passes on what it says, and judges by its last words.

The guest is run by the QEMU of its own tree, whose version the guest was tried with, through the
tree's own loader.
"""

import functools
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.guest.build import CACHE, REPO, Guest

# With two processors emulated, and the tests' own VMs emulated in there once more.
_MEMORY_MIB: Final = 2048
_PROCESSORS: Final = 2
_PROBE_S: Final = 20.0
LAST: Final = "SVIRT-GUEST-RC "
# What its tests keep, of what they have made: a screenshot.
_KEPT: Final = "kept.tar"
# What the guest gets of the tree: not the package, which it has as it was installed.
_PASSED: Final = ("tests", "pyproject.toml")
_KERNEL: Final = (
    "root=/dev/nvme0n1 rw console=ttyS0 security=selinux selinux=1 enforcing=1 audit=1 "
    # A panic ends QEMU instead of hanging it.
    "panic=-1 oops=panic mitigations=off"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended: the exit code of what ran inside, None if the guest never said it."""

    code: int | None
    folder: Path
    """Of console, journal and output."""

    def explain(self) -> str:
        """What to look at when it went wrong."""
        console = (self.folder / "console").read_text("utf-8", "replace").splitlines()[-20:]
        what = (
            "the guest did not boot, hung or panicked before it came to an end; its console:\n  "
            + "\n  ".join(console)
            if self.code is None
            else f"what ran in the guest failed with {self.code}"
        )
        return f"{what}\nconsole, journal and output are in {self.folder}"


def boot(
    guest: Guest,
    wanted: str,
    *,
    limit_s: float,
    shown: IO[str],
    arguments: str = "",
    part: str = "",
) -> Verdict:
    """Boot, run inside/`wanted` with `arguments` in its environment, and wait for the end.

    `part` tells runs apart that would otherwise be the same, and go on at the same time.
    """
    folder = CACHE / "-".join(filter(None, ("run", wanted, guest.suite, part)))
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output"
    prepare(folder, arguments)
    command = qemu_command(
        guest,
        folder,
        # Nothing of a run is kept in the image.
        root=f"file={guest.image},format=raw,snapshot=on,cache=unsafe",
        arguments=f"svirt.run={wanted}",
        memory_mib=_MEMORY_MIB,
    )
    with (
        subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment(guest.tree)) as process,
        open(output, encoding="utf-8", errors="replace") as said,
    ):
        try:
            code = follow(process, said, shown, limit_s)
        finally:
            process.kill()
    if code is not None:
        for path in unpack(folder):
            shown.write(f"guest: kept {path}\n")
    return Verdict(code, folder)


def prepare(folder: Path, arguments: str) -> None:
    """Pack what the guest gets, and empty what it will say."""
    _pack(folder / "source.tar", arguments)
    for name in ("output", "journal", "console", _KEPT):
        (folder / name).write_bytes(b"")
    shutil.rmtree(folder / "kept", ignore_errors=True)


def unpack(folder: Path) -> list[Path]:
    """Take what the guest's tests have kept out of its archive; returns where it lies."""
    archive = folder / _KEPT
    if archive.stat().st_size == 0:
        return []
    kept = folder / "kept"
    kept.mkdir()
    with tarfile.open(archive) as packed:
        files = {Path(one.name).name: one for one in packed if one.isfile()}
        for name, member in files.items():
            # The last part of its name: a guest chooses no place on the host.
            source = packed.extractfile(member)
            assert source is not None
            (kept / name).write_bytes(source.read())
    return [kept / name for name in files]


def qemu_command(
    guest: Guest, folder: Path, *, root: str, arguments: str, memory_mib: int
) -> list[str]:
    """Return the command that boots with `root` as its disk and keeps what is said in `folder`."""
    return [
        *_qemu(guest),
        *_accelerator(guest),
        *("-smp", str(_PROCESSORS), "-m", str(memory_mib)),
        *("-serial", f"file:{folder}/console"),
        *("-append", f"{_KERNEL} {arguments}"),
        *("-drive", f"{root},if=none,id=root"),
        # The cloud kernel has NVMe built in, so that no initramfs is needed; one only, two race.
        *("-device", "nvme,drive=root,serial=root"),
        *("-drive", f"file={folder}/source.tar,if=none,id=source,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=source"),
        *("-device", "virtio-serial-pci", "-device", "virtio-rng-pci"),
        *("-chardev", f"file,id=out,path={folder}/output"),
        *("-device", "virtserialport,chardev=out,nr=1"),
        *("-chardev", f"file,id=log,path={folder}/journal"),
        *("-device", "virtserialport,chardev=log,nr=2"),
        *("-chardev", f"file,id=kept,path={folder}/{_KEPT}"),
        *("-device", "virtserialport,chardev=kept,nr=3"),
    ]


def follow(
    process: subprocess.Popen[bytes], said: IO[str], shown: IO[str], limit_s: float
) -> int | None:
    """Pass on each whole line until QEMU ends or the time is over.

    Returns what the last line says, None if it says nothing: a panic, a hang, a boot that failed.
    """
    end = time.monotonic() + limit_s
    last, part, ended = "", "", False
    while True:
        part += said.readline()
        if part.endswith("\n"):
            last, part = part.rstrip(), ""
            if not last.startswith(LAST):
                shown.write(f"{last}\n")
                shown.flush()
        elif ended:
            code = last.removeprefix(LAST) if last.startswith(LAST) and not part else ""
            return int(code) if code.isdigit() else None
        elif process.poll() is not None:
            ended = True  # one more look: it may have written between the two
        elif time.monotonic() > end:
            shown.write(f"the guest did not end within {limit_s:.0f} s\n")
            return None
        else:
            time.sleep(0.1)


def _pack(target: Path, arguments: str) -> None:
    described = target.with_name("arguments")
    described.write_text(arguments, "utf-8")
    with tarfile.open(target, "w") as archive:
        for name in _PASSED:
            archive.add(REPO / name, name, filter=_not_made)
        archive.add(described, "arguments")
    # A disk has whole sectors.
    with open(target, "ab") as file:
        file.truncate(-(-file.tell() // 512) * 512)


def _not_made(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in info.name else info


def environment(tree: Path) -> dict[str, str]:
    """What the QEMU of a tree needs in its environment."""
    return {"QEMU_MODULE_DIR": f"{tree}/usr/lib/x86_64-linux-gnu/qemu", "PATH": "/usr/bin"}


def _qemu(guest: Guest) -> list[str]:
    tree = guest.tree
    libraries = f"{tree}/usr/lib/x86_64-linux-gnu"
    return [
        f"{tree}/usr/lib64/ld-linux-x86-64.so.2",
        *("--library-path", f"{libraries}:{libraries}/pulseaudio"),
        f"{tree}/usr/bin/qemu-system-x86_64",
        *("-L", f"{tree}/usr/share/qemu", "-L", f"{tree}/usr/share/seabios"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-kernel", str(guest.kernel)),
    ]


@functools.cache
def _accelerator(guest: Guest) -> Sequence[str]:
    """KVM where it runs this very kernel, software emulation elsewhere.

    That /dev/kvm is there says little: some hosts' cannot run a stock kernel.
    """
    kvm = ["-accel", "kvm", "-cpu", "host"]
    if Path("/dev/kvm").exists() and _boots(guest, kvm):
        return kvm
    sys.stderr.write("guest: KVM does not run the guest's kernel here; software emulation\n")
    # Not "max": programs pick the newest instructions, which take the longest to emulate.
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]


def _boots(guest: Guest, accelerator: Sequence[str]) -> bool:
    """Say whether the kernel gets as far as missing its root file system."""
    command = [*_qemu(guest), *accelerator, "-m", "512", "-serial", "stdio"]
    try:
        done = subprocess.run(
            [*command, "-append", "console=ttyS0 panic=-1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(guest.tree),
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return b"Unable to mount root fs" in done.stdout
