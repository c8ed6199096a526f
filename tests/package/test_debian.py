# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package: built from the tree, installed on Debian 12 and 13, and taken out again."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import svirtd
from tests.guest import build

MODULES: Final = [["200", "svirtd"], ["200", "svirtd_class"]]


@pytest.fixture(scope="module")
def deb() -> Path:
    return build.package()


def field(deb: Path, name: str) -> str:
    return build.run(["dpkg-deb", "--field", str(deb), name]).strip()


def test_what_it_says_of_itself(deb: Path) -> None:
    assert field(deb, "Version") == svirtd.__version__
    assert field(deb, "Architecture") == "all"
    needs = {one.split()[0].rstrip(",") for one in field(deb, "Depends").split(", ")}
    assert needs >= {"python3-audit", "python3-selinux", "python3-systemd"}
    assert needs >= {"policycoreutils", "systemd", "dbus"}


def test_only_root_can_change_what_it_brings(deb: Path) -> None:
    listed = build.run(["dpkg-deb", "--contents", str(deb)]).splitlines()
    assert listed
    for line in listed:
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode[5] == mode[8] == "-", line
        assert "s" not in mode, line


@pytest.fixture(scope="module", params=build.releases())
def tree(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A Debian without svirtd, with a policy in its store."""
    with build.copy_of(build.tree_of(request.param)) as work:
        yield work


def modules(tree: Path) -> list[str]:
    listed = build.chroot(tree, "semodule", "--list-modules=full").splitlines()
    return [line for line in listed if "svirtd" in line]


def context_of(tree: Path, path: str) -> str:
    return build.chroot(tree, "matchpathcon", "-n", path).strip()


def test_installed_used_and_removed(tree: Path, deb: Path) -> None:
    assert modules(tree) == []
    build.install(tree, deb)

    # The modules are in the policy, at a package's priority, compiled for whichever Debian.
    assert [line.split()[:2] for line in modules(tree)] == MODULES
    assert context_of(tree, "/usr/bin/svirtd") == "system_u:object_r:svirtd_exec_t:s0"
    assert context_of(tree, "/run/svirtd/vm/0123456789abcdef/qmp") == "<<none>>"
    assert build.chroot(tree, "systemctl", "is-enabled", "svirtd.service").strip() == "enabled"
    assert not list(tree.glob("etc/systemd/system/*.wants/svirtd-libvirt.service"))
    hook = "/etc/libvirt/hooks/qemu.d/50-svirtd"
    assert context_of(tree, hook) == "system_u:object_r:bin_t:s0"
    # Whom the polkit rule means; it is empty, and stays when the package goes.
    assert build.chroot(tree, "getent", "group", "svirt").strip().endswith(":")
    assert build.chroot(tree, "svirtctl", "--version").split()[-1] == svirtd.__version__
    # Everything it imports is there; without SELinux it does not serve.
    refused = subprocess.run(
        ["chroot", str(tree), "/usr/bin/svirtd"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 3, refused.stderr
    assert "SELinux is disabled on this host" in refused.stderr
    assert list(tree.glob("usr/lib/svirtd/svirtd/__pycache__/daemon.*.pyc"))

    # What an administrator has changed survives, and so does the book, until it is purged.
    settings = tree / "etc/svirtd/svirtd.toml"
    settings.write_text('[selinux]\nrequire = "permissive"\n', "utf-8")
    book = tree / "var/lib/svirtd/book.sqlite"
    book.parent.mkdir()
    book.touch()
    build.chroot(tree, "apt-get", "-q", "remove", "-y", "svirtd")
    assert modules(tree) == []
    assert "svirtd" not in context_of(tree, "/usr/bin/svirtd")
    assert settings.exists()
    assert book.exists()
    assert not (tree / "usr/lib/svirtd").exists()

    build.install(tree, deb)
    assert len(modules(tree)) == len(MODULES)
    assert "permissive" in settings.read_text("utf-8")
    build.chroot(tree, "apt-get", "-q", "purge", "-y", "svirtd")
    assert modules(tree) == []
    assert not settings.exists()
    assert not book.parent.exists()
