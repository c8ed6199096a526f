# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the guest: a Debian tree, the package installed in it, a labelled image of it.

Each part is kept below .cache/guest under a name that contains a hash of all that it was made from,
and made anew when that changes. SELinux is nowhere needed on the host: modules are loaded into the
tree's policy store and its files labelled with the tree's own tools.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parents[2]
CACHE: Final = REPO / ".cache" / "guest"
_INSIDE: Final = Path(__file__).parent / "inside"
# The tests' own module for each policy.
_CALLERS: Final = {"default": "guest_callers.te", "mls": "guest_levels.cil"}
_UNITS: Final = ("guest-run.service", "guest-cuts.target")
_IMAGE_BYTES: Final = 4 << 30
_SOCKET_BYTES: Final = 8 << 20
_APT_TIMEOUT_S: Final = 900
_STEP_TIMEOUT_S: Final = 300

# A policy module is made for the release that it is compiled on, and for later ones.
RELEASES: Final = ("bookworm", "trixie")
# A system that boots, SELinux, what the package depends on; the kernel and QEMU, for its VMs
# and for the host to run it with; what tests need.
_GUEST: Final = (
    *("systemd-sysv", "dbus", "udev", "kmod", "init-system-helpers"),
    *("selinux-basics", "selinux-policy-default", "selinux-utils", "policycoreutils"),
    *("python3", "python3-audit", "python3-selinux", "python3-systemd"),
    *("linux-image-cloud-amd64", "qemu-system-x86", "qemu-utils", "auditd", "setools"),
    *("systemd-container", "polkitd", "python3-pytest", "python3-gi", "gir1.2-glib-2.0"),
    *("libglib2.0-bin", "procps", "attr", "libvirt-daemon-system", "libvirt-clients"),
    "python3-libvirt",
)
# Only the newest is asked about what runs beside svirtd: containers, which have the policy's own
# types there, what an administrator makes VMs with, on a screen that a test can read, and a server
# of files; and about the policy with levels, which lies beside the default one: a tree of its own
# would take a minute.
_ON: Final = {
    "trixie": (
        *("podman", "crun", "virt-manager", "virtinst", "xvfb"),
        *("at-spi2-core", "gir1.2-atspi-2.0", "selinux-policy-mls", "nfs-kernel-server"),
    )
}
_LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
# Work for a machine that lives longer than a minute.
_MASKED: Final = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "systemd-firstboot.service", "libvirt-guests.service"),
    *("selinux-autorelabel.service", "selinux-autorelabel-mark.service", "ldconfig.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service"),
    *("getty@tty1.service", "serial-getty@ttyS0.service", "e2scrub_reap.service"),
    *("logrotate.timer", "netavark-dhcp-proxy.service", "netavark-dhcp-proxy.socket"),
    *("rpcbind.service", "rpcbind.socket", "nfs-blkmap.service", "rpc-statd-notify.service"),
    "nfs-client.target",
    *("systemd-udev-load-credentials.service", "systemd-random-seed.service"),
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-sysusers.service"),
    *("systemd-update-done.service", "modprobe@drm.service", "modprobe@efi_pstore.service"),
    *("modprobe@configfs.service", "sys-kernel-config.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "systemd-initctl.socket", "systemd-ask-password-wall.path"),
    "systemd-ask-password-console.path",
)
# Run at each boot and whenever systemd reads its units again. The guest's units are files, but for
# those that a server of NFS waits for.
_GENERATORS: Final = "usr/lib/systemd/system-generators"
_GENERATES: Final = ("nfs-server-generator", "rpc-pipefs-generator")
# What QEMU gives its VMs for a BIOS: its end is where a processor begins, and this one stops there
# (cli; hlt; jmp back to hlt). Emulated in an emulated machine, SeaBIOS takes as long as all else
# that a QEMU does until a test has seen of it what it wants.
_FIRMWARE: Final = {"bios.bin": 128 << 10, "bios-256k.bin": 256 << 10}
_STOPS: Final = bytes.fromhex("faf4ebfd").ljust(16, b"\0")
# What is made for the default policy, with categories alone (MCS).
_DEFAULT: Final = "default"
# Where the guest has the policy that lets VMs do everything.
HOLED: Final = Path("/srv/holed.policy")
# Started by whoever connects or asks for it, and by no boot: few have tests of them.
_WHEN_ASKED: Final = ("libvirtd", "virtlogd", "nfs-server")
# What the guests of other policies do without.
_OF_DEFAULT: Final = tuple(
    f"{name}{kind}"
    for name in _WHEN_ASKED
    for kind in (".service", ".socket", "-ro.socket", "-admin.socket")
)


class BuildError(Exception):
    """A part could not be built; the text says which command failed, and how."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What it takes to boot: the image, the kernel, and the tree whose QEMU runs it."""

    suite: str
    """With the name of its policy if that is another than the default."""
    image: Path
    kernel: Path
    tree: Path


def releases() -> tuple[str, ...]:
    """Return the Debian releases that a package built on this host is for, the newest last."""
    ours = platform.freedesktop_os_release()["VERSION_CODENAME"]
    if ours not in RELEASES:
        raise BuildError(f"this host is Debian {ours}; the tests are made for {RELEASES}")
    return RELEASES[RELEASES.index(ours) :]


def package() -> Path:
    """Build the Debian package of this checkout, if it is not there already."""
    with _alone():
        return _package()


def _package() -> Path:
    _make("deb")
    (found,) = (REPO / "build").glob("svirtd_*_all.deb")
    return found


def make(*arguments: str) -> None:
    """Run make in this checkout."""
    with _alone():
        _make(*arguments)


def _make(*arguments: str) -> None:
    pip = REPO / ".venv" / "bin" / "python"
    run(["make", "-s", "-C", REPO, f"PIP={pip} -m pip", *arguments])


def guest(suite: str = "trixie") -> Guest:
    """Build the guest of a Debian suite with the package in it, or what of it is missing.

    `SUITE-mls` is one that has the policy with levels instead of the default one.
    """
    with _alone():
        return _guest(suite)


def _guest(suite: str) -> Guest:
    newest = _tree_of("trixie")
    release, _, policy = suite.partition("-")
    policy = policy or _DEFAULT
    tree = newest if release == "trixie" else _tree_of(release)
    deb = _package()
    made_of = [tree.name.encode(), deb.read_bytes(), Path(__file__).read_bytes()]
    made_of += [(_INSIDE / name).read_bytes() for name in ("boot", _CALLERS[policy], *_UNITS)]
    image = _kept("image", made_of, f"-{suite}.ext4")
    if not image.exists():
        with copy_of(tree) as work:
            _choose(work, policy)
            install(work, deb)
            _load_callers(work, policy)
            if suite == "trixie":
                _compile_holed(work)
            _configure(work, policy)
            _label(work, policy)
            part = image.with_suffix(".part")
            part.unlink(missing_ok=True)
            # No journal: every run starts from this image and throws its own changes away.
            size = f"{_IMAGE_BYTES >> 10}k"
            run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", work, part, size])
            part.rename(image)
    (kernel,) = tree.glob("boot/vmlinuz-*")
    return Guest(suite, image, kernel, newest)


def tree_of(suite: str) -> Path:
    """Return a folder with a Debian system of the guest's packages, from this host's mirror."""
    with _alone():
        return _tree_of(suite)


def _tree_of(suite: str) -> Path:
    wanted = (*_GUEST, *_ON.get(suite, ()))
    tree = _kept("tree", [suite.encode(), *(name.encode() for name in wanted)], f"-{suite}")
    if not tree.exists():
        part = tree.with_name(f"{tree.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        options += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
        run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
                *("--components=main", *options, f"--include={','.join(wanted)}"),
                *(suite, part, _mirror()),
            ],
            timeout_s=_APT_TIMEOUT_S,
        )
        part.rename(tree)
    return tree


def _mirror() -> str:
    """Where this host's own packages come from: every suite is there."""
    found = run(
        [
            *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
            *("Component: main", "Created-By: Packages", "Label: Debian"),
        ]
    ).split()
    if not found:
        raise BuildError("apt on this host knows no Debian mirror (apt-get indextargets)")
    return found[0]


def install(tree: Path, deb: Path) -> None:
    """Install the package as an administrator would; what it needs is in the tree already."""
    shutil.copy(deb, tree / "root" / deb.name)
    # What of its documentation the tests read: the tree leaves all of that out.
    (tree / "etc/dpkg/dpkg.cfg.d/of-svirtd").write_text(
        "path-include=/usr/share/doc/svirtd*\npath-include=/usr/share/man/man5*\n",
        "utf-8",
    )
    # Nothing may be started in here.
    deny = tree / "usr" / "sbin" / "policy-rc.d"
    deny.write_text("#!/bin/sh\nexit 101\n", "utf-8")
    deny.chmod(0o755)
    apt = ["apt-get", "-q", "install", "-y", "--no-install-recommends"]
    chroot(tree, *apt, f"/root/{deb.name}")
    deny.unlink()
    (tree / "root" / deb.name).unlink()


def _choose(tree: Path, policy: str) -> None:
    """Have this policy enforced, before the package comes and loads its modules into it."""
    config = tree / "etc/selinux/config"
    lines = config.read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("SELINUX=", "SELINUXTYPE="))]
    chosen = ["SELINUX=enforcing", f"SELINUXTYPE={policy}"]
    config.write_text("\n".join([*chosen, *kept, ""]), "utf-8")


def _load_callers(tree: Path, policy: str) -> None:
    """Load the tests' own policy module, which takes far longer in the guest."""
    source = _INSIDE / _CALLERS[policy]
    with tempfile.TemporaryDirectory() as folder:
        module = source
        if source.suffix == ".te":
            for part in (source, *REPO.glob("policy/svirtd.*")):
                shutil.copy(part, folder)
            module = Path(folder) / source.with_suffix(".pp").name
            makefile = "/usr/share/selinux/devel/Makefile"
            run(["make", "-s", "-C", folder, "-f", makefile, module.name])
        shutil.copy(module, tree / "root" / module.name)
    chroot(tree, "semodule", "-n", "-s", policy, "-i", f"/root/{module.name}")
    (tree / "root" / module.name).unlink()


def _compile_holed(tree: Path) -> None:
    """Compile the policy that a test exchanges for the loaded one, and leave the store as it was.

    In the guest that takes half a minute, and as long again until it is gone.
    """
    rule = tree / "root/hole.cil"
    rule.write_text("(typepermissive svirt_t)\n", "utf-8")
    kept = {tree / name: tree / "root" / name for name in ("var/lib/selinux", "etc/selinux")}
    for there, copy in kept.items():
        copy.parent.mkdir(parents=True)
        run(["cp", "-a", there, copy])
    chroot(tree, "semodule", "-n", "-s", _DEFAULT, "-i", "/root/hole.cil")
    (compiled,) = (tree / f"etc/selinux/{_DEFAULT}/policy").iterdir()
    compiled.rename(tree / HOLED.relative_to("/"))
    for there, copy in kept.items():
        shutil.rmtree(there)
        copy.rename(there)
        shutil.rmtree(tree / "root" / copy.relative_to(tree / "root").parts[0])
    rule.unlink()


def chroot(tree: Path, *command: str) -> str:
    """Run a command of the tree in the tree and return its output."""
    # With a /proc, which older tools label through; the mount is the command's own.
    inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    return run(["unshare", "--mount", "sh", "-c", inside, str(tree), *command])


def _configure(tree: Path, policy: str) -> None:
    files = {
        "etc/hostname": "guest\n",
        "etc/hosts": "127.0.0.1 localhost guest\n",
        "etc/fstab": "",
        # Else auditd loses what it has no room for while others have the processors, and with it
        # denials that tests look for.
        "etc/sysctl.d/guest.conf": f"net.core.rmem_default = {_SOCKET_BYTES}\n",
        "etc/machine-id": f"{hashlib.md5(tree.name.encode(), usedforsecurity=False).hexdigest()}\n",
    }
    if policy == _DEFAULT:
        files["etc/libvirt/qemu.conf"] = (
            'security_driver = "selinux"\nnamespaces = []\n'
            # Else libvirt asks a QEMU at its start for each of eighty features of its processor,
            # and QEMU reads what it is asked byte by byte: half of what a start costs.
            'capability_filters = ["cpu-unavailable-features"]\n'
        )
    else:
        # As an administrator of every level.
        drop_in = "etc/systemd/system/guest-run.service.d/levels.conf"
        (tree / drop_in).parent.mkdir(parents=True)
        files[drop_in] = (
            "[Service]\nSELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s15:c0.c1023\n"
        )
    for name, text in files.items():
        (tree / name).write_text(text, "utf-8")
    for name in ("etc/resolv.conf", ".autorelabel"):
        (tree / name).unlink(missing_ok=True)
    program = tree / "usr/local/lib/guest-run/boot"
    program.parent.mkdir()
    shutil.copy(_INSIDE / "boot", program)
    for name in _UNITS:
        shutil.copy(_INSIDE / name, tree / "etc/systemd/system")
    for name in _WHEN_ASKED:
        (tree / f"etc/systemd/system/multi-user.target.wants/{name}.service").unlink(
            missing_ok=True
        )
    for name, size in _FIRMWARE.items():
        (tree / "usr/share/seabios" / name).write_bytes(_STOPS.rjust(size, b"\0"))
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for one in (tree / _GENERATORS).iterdir():
        if one.name not in _GENERATES:
            (generators / one.name).symlink_to("/dev/null")
    chroot(tree, "systemctl", "-q", "enable", "guest-run.service")
    masked = _MASKED if policy == _DEFAULT else (*_MASKED, *_OF_DEFAULT)
    chroot(tree, "systemctl", "-q", "mask", *masked)


def _label(tree: Path, policy: str) -> None:
    contexts = f"/etc/selinux/{policy}/contexts/files/file_contexts"
    # Twice: without extended attributes in /proc/mounts the first pass leaves some folders out.
    for folder in ("/", "/usr/local", "/etc"):
        chroot(tree, "/usr/sbin/setfiles", "-m", "-F", "-e", "/proc", contexts, folder)


@contextmanager
def copy_of(tree: Path) -> Iterator[Path]:
    """A copy of a tree that may be changed, gone at the end of the block."""
    work = CACHE / f"work-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", tree, work])
    try:
        yield work
    finally:
        shutil.rmtree(work)


@contextmanager
def _alone() -> Iterator[None]:
    """Build one thing at a time: others of this checkout wait, and find what was built."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kept(kind: str, made_of: Iterable[bytes], suffix: str) -> Path:
    """Return the place of a part, and remove what an older state of the sources had made."""
    digest = hashlib.sha256()
    for part in made_of:
        digest.update(len(part).to_bytes(8, "little") + part)
    place = CACHE / f"{kind}-{digest.hexdigest()[:16]}{suffix}"
    for old in CACHE.glob(f"{kind}-*{suffix}"):
        if old != place:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return place


def run(command: Sequence[str | Path], *, timeout_s: float = _STEP_TIMEOUT_S) -> str:
    """Run a command and return its output. Raises BuildError with what it said."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(
            f"{' '.join(map(str, command))} failed ({done.returncode}):\n"
            f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done.stdout
