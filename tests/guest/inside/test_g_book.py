# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book is damaged, lost and restored under running QEMUs, on a kernel that enforces."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd.host.journal import MessageId
from tests.books import damage
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import ORIGINAL, SIZE, Qemu, disk
from tests.support import NAME, Client, label, set_label, unwrap, wait_for

BOOK: Final = Path("/var/lib/svirtd/book.sqlite")
# Where the policy has a type for images.
IMAGES: Final = Path("/var/lib/libvirt/images")
PLAIN: Final = "system_u:object_r:virt_image_t:s0"


@pytest.fixture
def placed() -> Iterator[Path]:
    """A disk below the folder in which the policy expects images."""
    folder = IMAGES / "book"
    folder.mkdir()
    path = folder / "a.img"
    path.write_bytes(b"disk" * (SIZE // 4))
    set_label(path, ORIGINAL)
    yield path
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """What a test has moved aside is gone after it."""
    yield
    for path in BOOK.parent.glob("book.sqlite.*-20*"):
        path.unlink()


def aside() -> list[Path]:
    """The earlier books, without the logs that went with them."""
    found = BOOK.parent.glob("book.sqlite.damaged-*")
    return sorted(path for path in found if not path.name.endswith(("-wal", "-shm")))


def restarted() -> None:
    """Wait until the service is up again and has its name."""
    wait_for("the service", lambda: systemctl("show", "-P", "ActiveState", "svirtd") == "active")
    wait_for("its name", lambda: NAME in subprocess.check_output(["busctl", "list"], text=True))


def resources(client: Client) -> dict[str, dict[str, Any]]:
    return {one["path"]: one for one in client.properties("a")["Resources"]}


def test_a_damaged_book_under_a_qemu(
    client: Client, journal: Callable[[str], str], placed: Path
) -> None:
    elsewhere = disk("a")
    vm = Qemu(client, "a", placed, elsewhere)
    before = client.properties("a")
    systemctl("stop", "svirtd.service")
    damage.header(BOOK)
    systemctl("start", "svirtd.service")
    (kept,) = aside()
    assert str(kept) in journal(MessageId.BOOK_REPLACED.value)
    assert os.stat(kept).st_mode & 0o777 == 0o600
    after = client.properties("a")
    for key in ("Id", "MainPID", "ProcessContext", "Categories", "RuntimeDirectory", "Unit"):
        assert after[key] == before[key]
    assert set(resources(client)) == {str(placed), str(elsewhere)}
    assert not any("original" in one for one in resources(client).values())
    # It works on, and through the daemon.
    assert vm.reads() == vm.writes() == ""
    ours = str(label(elsewhere))
    client.listen()
    vm.end()
    # The policy knows what an image there is; it has nothing to say of a file below /srv.
    assert label(placed) == PLAIN
    assert label(elsewhere) == ours
    wait_for("it was told", lambda: len(client.seen("DriftFound")) >= 2)
    told = [unwrap(body[0]) for body in client.seen("DriftFound")]
    assert ("guessed", str(placed)) in {(one["kind"], one["path"]) for one in told}
    assert ("stale", str(elsewhere)) in {(one["kind"], one["path"]) for one in told}
    assert client.manager()["PairsQuarantined"] == 1
    set_label(elsewhere, ORIGINAL)
    client.call("Verify", "ba{sv}", False, {})
    assert client.manager()["PairsQuarantined"] == 0


def test_what_the_check_finds_restarts_the_service(
    client: Client, journal: Callable[[str], str], placed: Path
) -> None:
    vm = Qemu(client, "a", placed)
    systemctl("stop", "svirtd.service")
    damage.bits_of("hold_object")(BOOK)
    systemctl("start", "--no-block", "svirtd.service")
    wait_for("it is moved aside", aside, 60)
    restarted()
    assert "is damaged" in journal(MessageId.BOOK_CHECKED.value)
    assert set(resources(client)) == {str(placed)}
    assert vm.reads() == vm.writes() == ""
    vm.end()
    assert label(placed) == PLAIN
    assert len(aside()) == 1


def test_backup_and_restore(client: Client, placed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "book.copy"
    subprocess.run(["svirtctl", "backup", copy], check=True)
    vm = Qemu(client, "a", placed)
    refused = subprocess.run(
        ["svirtctl", "restore", copy], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "in use by another svirtd" in refused.stderr
    systemctl("stop", "svirtd.service")
    subprocess.run(["svirtctl", "restore", copy], check=True)
    assert str(label(BOOK)).split(":")[2] == "svirtd_var_lib_t"
    systemctl("start", "svirtd.service")
    assert set(resources(client)) == {str(placed)}
    assert vm.reads() == vm.writes() == ""
    vm.end()
    assert label(placed) == PLAIN
