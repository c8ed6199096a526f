# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl backup and restore against the real daemon: what a copy has, and what it does not."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from svirtd.host.bus import Variant
from tests import svirtctl
from tests.books import damage
from tests.support import REPO, Client, Daemon, image, label, wait_for

SLEEP = ["/bin/sh", "-c", "exec sleep 1000", "sh"]


def ctl(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = svirtctl.run(*arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def restore(daemon: Daemon, copy: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return ctl("restore", copy, "--config", daemon.config, code=code)


def test_a_backup_is_restored(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """What was there is there again; what runs since is entered; no set is drawn again."""
    copy = tmp_path / "book.copy"
    kept, later = image(tmp_path / "kept.img"), image(tmp_path / "later.img")
    client.acquire("kept", kept)
    client.acquire("gone", persistent=Variant("b", True))
    before = client.properties("kept")
    done = json.loads(ctl("backup", copy, "--json").stdout)
    assert done == {"file": str(copy), "bytes": copy.stat().st_size}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    client.call("Forget", "sa{sv}", "gone", {})
    client.launch("later", [*SLEEP, str(later)], later)
    running = client.properties("later")
    drawn = {running["Categories"]}
    for number in range(20):
        client.acquire(f"vm{number}")
        drawn.add(client.properties(f"vm{number}")["Categories"])
        client.release(f"vm{number}")
    # Not under the daemon.
    refused = restore(own_daemon, copy, code=1)
    assert f"in use by another svirtd, process {own_daemon.pid}" in refused.stderr
    assert own_daemon.stop() == 0
    told = restore(own_daemon, copy).stdout
    (earlier,) = own_daemon.book.parent.glob("book.sqlite.replaced-*")
    assert str(earlier) in told
    assert stat.S_IMODE(own_daemon.book.stat().st_mode) == 0o600
    own_daemon.start()
    assert client.vms() == {"kept": "labelled", "gone": "reserved", "later": "running"}
    assert client.properties("kept") == before
    after = client.properties("later")
    assert {k: after[k] for k in ("Id", "MainPID", "Categories", "ProcessContext")} == {
        k: running[k] for k in ("Id", "MainPID", "Categories", "ProcessContext")
    }
    assert [one["path"] for one in after["Resources"]] == [str(later)]
    assert label(later) == running["ImageContext"]
    for number in range(20):
        client.acquire(f"vm{number}")
        assert client.properties(f"vm{number}")["Categories"] not in drawn
        client.release(f"vm{number}")
    client.release("kept")
    client.release("later")
    client.call("Forget", "sa{sv}", "gone", {})
    assert label(kept) is label(later) is None


def test_a_vm_that_was_launched_anew_is_not_stopped(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """The restored book has a VM of this name, and another one runs under it by now."""
    copy = tmp_path / "book.copy"
    first, second = image(tmp_path / "first.img"), image(tmp_path / "second.img")
    client.launch("vm", [*SLEEP, str(first)], first)
    ctl("backup", copy)
    client.release("vm")
    client.launch("vm", [*SLEEP, str(second)], second)
    running = client.properties("vm")
    own_daemon.stop()
    restore(own_daemon, copy)
    own_daemon.start()
    after = client.properties("vm")
    assert (after["Id"], after["MainPID"]) == (running["Id"], running["MainPID"])
    assert [one["path"] for one in after["Resources"]] == [str(second)]
    assert os.path.exists(f"/proc/{running['MainPID']}")
    client.release("vm")
    assert label(first) is label(second) is None


def test_a_persistent_vm_that_was_launched_since(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    copy, disk = tmp_path / "book.copy", image(tmp_path / "a.img")
    client.acquire("vm", persistent=Variant("b", True))
    ctl("backup", copy)
    client.launch("vm", [*SLEEP, str(disk)], disk, persistent=Variant("b", True))
    running = client.properties("vm")
    own_daemon.stop()
    restore(own_daemon, copy)
    own_daemon.start()
    after = client.properties("vm")
    for key in ("Id", "MainPID", "Categories", "State", "Unit", "Persistent"):
        assert after[key] == running[key]
    client.release("vm")
    assert client.vms() == {"vm": "reserved"}
    client.call("Forget", "sa{sv}", "vm", {})


def test_backup_overwrites_nothing_unasked(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    copy = tmp_path / "book.copy"
    copy.write_text("mine")
    refused = ctl("backup", copy, "--json", code=1)
    assert json.loads(refused.stderr)["error"] == "org.freedesktop.DBus.Error.FileExists"
    assert "--force replaces it" in refused.stderr
    assert copy.read_text() == "mine"
    ctl("backup", copy, "--force")
    assert copy.read_bytes().startswith(b"SQLite format 3")
    assert ctl("backup", tmp_path / "none" / "x", code=1).stderr.count("No such file") == 1
    assert sorted(os.listdir(tmp_path)) == ["book.copy"]
    assert [n for n in os.listdir(daemon.book.parent) if "copy" in n] == []


@pytest.mark.parametrize(
    ("hurt", "text"),
    [
        (damage.header, "file is not a database"),
        (damage.half, "is not a sound copy of a book"),
        (damage.nothing_left, "it is empty"),
        (
            damage.statement(
                "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
                " VALUES ('svirtd', '9999-later', '2030-01-01')"
            ),
            "written by a newer svirtd",
        ),
        (damage.statement("UPDATE pool SET private = 'c0.c99'"), "copy"),
    ],
)
def test_what_is_not_restored(
    own_daemon: Daemon, client: Client, tmp_path: Path, hurt: damage.Hurt, text: str
) -> None:
    copy = tmp_path / "book.copy"
    client.acquire("vm", persistent=Variant("b", True))
    ctl("backup", copy)
    hurt(copy)
    own_daemon.stop()
    before = own_daemon.book.read_bytes()
    assert text in restore(own_daemon, copy, code=1).stderr
    assert own_daemon.book.read_bytes() == before
    assert not list(own_daemon.book.parent.glob("*copy*"))
    assert not list(own_daemon.book.parent.glob("*replaced*"))
    own_daemon.start()
    assert client.vms() == {"vm": "reserved"}
    client.call("Forget", "sa{sv}", "vm", {})


def test_a_copy_put_there_by_hand(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    copy = tmp_path / "book.copy"
    ctl("backup", copy)
    drawn = set()
    for number in range(20):
        client.acquire(f"vm{number}")
        drawn.add(client.properties(f"vm{number}")["Categories"])
        client.release(f"vm{number}")
    own_daemon.stop()
    shutil.copyfile(copy, own_daemon.book)
    own_daemon.start()
    for number in range(20):
        client.acquire(f"vm{number}")
        assert client.properties(f"vm{number}")["Categories"] not in drawn
        client.release(f"vm{number}")


def test_backup_over_the_bus(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    refused = client.error("Backup", "a{sv}", {"x": Variant("s", "y")})
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    reply = client.message("Backup", "a{sv}", {})
    (fd,) = reply.unix_fds
    with socket.socket(fileno=fd) as stream:
        assert stream.family == socket.AF_UNIX
        data = b"".join(iter(lambda: stream.recv(1 << 16), b""))
    copy = tmp_path / "copy"
    copy.write_bytes(data)
    subprocess.run(
        [sys.executable, "-m", "svirtd", "--check-copy", str(copy)], check=True, cwd=REPO
    )
    # Sent and closed: another one may follow at once.
    wait_for("no descriptor is left", lambda: not [f for f in daemon.fds() if "copy-" in f])
