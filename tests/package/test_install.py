# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install`: every part in its place, and a program that runs from there."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

import svirtd
from tests.guest import build

_PINNED: Final = re.compile(r"^([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", re.M)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation below a folder, whose programs know that they are there."""
    folder = tmp_path_factory.mktemp("root")
    build.make("install", f"prefix={folder}/usr", f"sysconfdir={folder}/etc")
    return folder


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_every_part_is_there(root: Path) -> None:
    found = files(root)
    assert {one for one in found if not one.startswith("usr/lib/svirtd/")} == {
        "etc/libvirt/hooks/qemu.d/50-svirtd",
        "etc/svirtd/svirtd.toml",
        "usr/bin/svirtctl",
        "usr/bin/svirtd",
        "usr/lib/systemd/system/svirt-vm@.service",
        "usr/lib/systemd/system/svirtd-libvirt.service",
        "usr/lib/systemd/system/svirtd.service",
        "usr/lib/sysusers.d/svirtd.conf",
        "usr/share/dbus-1/interfaces/org.svirt1.Manager.xml",
        "usr/share/dbus-1/interfaces/org.svirt1.Group.xml",
        "usr/share/dbus-1/interfaces/org.svirt1.Job.xml",
        "usr/share/dbus-1/interfaces/org.svirt1.VM.xml",
        "usr/share/dbus-1/system-services/org.svirt1.service",
        "usr/share/dbus-1/system.d/org.svirt1.conf",
        "usr/share/doc/svirtd/examples/busctl.sh",
        "usr/share/doc/svirtd/examples/isolated-vm.py",
        "usr/share/man/man1/svirtctl.1",
        "usr/share/man/man5/org.svirt1.5",
        "usr/share/man/man5/svirtd.toml.5",
        "usr/share/man/man5/svirtd.vms.d.5",
        "usr/share/man/man8/svirtd.8",
        "usr/share/polkit-1/actions/org.svirt1.policy",
        "usr/share/polkit-1/rules.d/org.svirt1.rules",
        "usr/share/selinux/devel/include/contrib/svirtd.if",
        "usr/share/selinux/packages/mls/svirtd.pp",
        "usr/share/selinux/packages/svirtd.pp",
        "usr/share/selinux/packages/svirtd_class.cil",
    }
    assert "usr/lib/svirtd/svirtd/contract/org.svirt1.Manager.xml" in found
    own = {str(path.relative_to(build.REPO)) for path in build.REPO.glob("svirtd/**/*.py")}
    assert {f"usr/lib/svirtd/{one}" for one in own} <= found
    # A site's goals and VMs have a place, and none is there.
    for folder in ("goals.d", "vms.d"):
        assert list((root / "etc/svirtd" / folder).iterdir()) == []


def test_what_is_shipped_beside_it_is_plain_python(root: Path) -> None:
    assert [one for one in files(root) if one.endswith((".so", ".pyc", ".stamp"))] == []
    # The PyPI package of that name says that SELinux is off; and pip has no business in a daemon.
    modules = {path.name for path in (root / "usr/lib/svirtd").iterdir()}
    assert not modules & {"selinux", "selinux.py", "systemd", "pip", "bin"}


@pytest.mark.parametrize("program", ["svirtd", "svirtctl"])
def test_program_runs_from_where_it_is(root: Path, program: str) -> None:
    done = subprocess.run(
        [root / "usr/bin" / program, "--version"],
        capture_output=True,
        text=True,
        check=True,
        # Neither may have a say in what a root program loads.
        cwd="/tmp",
        env={"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "PATH": "/usr/bin"},
    )
    assert svirtd.__version__ in done.stdout


def test_libvirts_hook_runs_from_where_it_is(root: Path) -> None:
    """It refuses what it cannot read, and has nothing to do with the rest."""
    hook = root / "etc/libvirt/hooks/qemu.d/50-svirtd"
    for operation, code in ((["prepare", "begin"], 0), (["start", "begin"], 1)):
        done = subprocess.run(
            [hook, "web", *operation, "-"],
            input="nothing",
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin"},
        )
        assert done.returncode == code, done.stderr
    assert done.stderr.startswith("svirtd: the description of domain 'web' cannot be used")


def test_the_daemon_finds_the_systems_bindings(root: Path) -> None:
    """It gets as far as the kernel, which does not enforce here."""
    done = subprocess.run(
        [root / "usr/bin/svirtd"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", "JOURNAL_STREAM": "1:1"},
    )
    assert (done.returncode, "SELinux is disabled on this host" in done.stderr) == (3, True)


def test_what_is_shipped_is_what_the_project_asks_for() -> None:
    text = (build.REPO / "packaging/requirements.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pinned = dict(_PINNED.findall(text))
    assert len(pinned) == len(lines)
    with open(build.REPO / "pyproject.toml", "rb") as file:
        wanted = [Requirement(one) for one in tomllib.load(file)["project"]["dependencies"]]
    assert wanted
    for one in wanted:
        assert one.specifier.contains(pinned[one.name]), one


def test_svirtctl_has_the_daemon_beside_it(root: Path, tmp_path: Path) -> None:
    """It looks at copies of the book and puts them in place with the daemon's own program."""
    config = tmp_path / "svirtd.toml"
    config.write_text(f'[registry]\npath = "{tmp_path}/book/book.sqlite"\n', "utf-8")
    done = subprocess.run(
        [root / "usr/bin/svirtctl", "restore", tmp_path / "none", "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"svirtctl: {tmp_path}/none is not a file\n"
