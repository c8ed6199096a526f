# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory tree: what the kernel lets a VM do in its own, and in nobody else's."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.guest.inside.audit import Audit
from tests.guest.inside.vms import ORIGINAL, QEMU, Captive, tree
from tests.support import Client, label, wait_for

ROOT: Final = Path("/srv/tree")


@pytest.fixture
def trees() -> Iterator[tuple[Path, Path]]:
    """Two trees, with all that may be in one."""
    found = ROOT / "a", ROOT / "b"
    for root in found:
        (root / "inner").mkdir(parents=True)
        for number in range(300):
            (root / "inner" / f"{number:03}").write_text("in a tree")
        (root / "link").symlink_to("/etc/shadow")
        os.mkfifo(root / "fifo")
        subprocess.run(["chcon", "-R", "-h", ORIGINAL, root], check=True)
    yield found
    shutil.rmtree(ROOT)


def labels(root: Path) -> set[str]:
    """What is carried in a tree."""
    return {
        os.getxattr(one, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()
        for one in (root, *root.rglob("*"))
    }


def opened_by(pid: int) -> set[str]:
    """What a process has open at about this time."""
    found = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(one))
    return found


def test_a_vm_uses_its_own_tree_and_no_other(
    client: Client, audit: Audit, trees: tuple[Path, Path]
) -> None:
    own, others = trees
    client.call("Acquire", "saa{sv}a{sv}", "other", [tree(others)], {})
    vm = Captive.with_tree(client, "taken", own)
    assert labels(own) == {vm.image_context}
    assert labels(others) == {client.properties("other")["ImageContext"]}
    assert vm.do(f"len(os.listdir({str(own / 'inner')!r}))") == 300
    assert vm.do(f"read({str(own / 'inner' / '007')!r})") == 9
    assert vm.do(f"Path({str(own / 'inner' / 'new')!r}).write_text('new')") == 3
    assert label(own / "inner" / "new") == vm.image_context
    with audit.denied("read", vm.context, str(label(others)), "dir"):
        assert vm.fails(f"os.listdir({str(others)!r})") == "EACCES"
    shadow = label("/etc/shadow")
    vm.end()
    client.release("other")
    assert labels(own) == labels(others) == {ORIGINAL}
    assert label("/etc/shadow") == shadow


def test_qemu_shares_a_tree_with_its_guest(client: Client, trees: tuple[Path, Path]) -> None:
    """9p, as far as QEMU goes: it opens the folder under its own label, or it does not start."""
    own, _ = trees
    share = ["-fsdev", f"local,id=share,security_model=none,path={own}"]
    share += ["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]
    argv = [QEMU, "-machine", "pc", "-nodefaults", "-display", "none", "-m", "32", *share]
    client.call("Launch", "sasaa{sv}a{sv}", "share", argv, [tree(own)], {})
    pid = client.properties("share")["MainPID"]
    wait_for("QEMU has it open", lambda: str(own) in opened_by(pid), 60)
    client.release("share")
    assert labels(own) == {ORIGINAL}
