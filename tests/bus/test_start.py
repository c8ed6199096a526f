# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where svirtd must not start: it says why in one sentence, and never owns its name."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from svirtd.host.bus import BUS, Message
from tests.sandbox import Sandbox
from tests.support import DEADLINE_S, NAME, REPO, Client, Daemon

CANNOT_RUN = 3
# Another try may do: systemd makes one.
CANNOT_GO_ON = 1
BAD_CONFIG = 2


class Starter:
    """Starts svirtd where it must end by itself, and sees whether it ever owned its name."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.daemon = Daemon(folder / "d", executed=True)
        self.owners: list[Message] = []
        client.runner.run(
            client.connection.subscribe(BUS, BUS, "NameOwnerChanged", self.owners.append, arg0=NAME)
        )

    def config(self, text: str) -> None:
        self.daemon.config.write_text(text)

    def drop_in(self, name: str, text: str) -> Path:
        folder = Path(f"{self.daemon.config}.d")
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    def refused(self, code: int, *arguments: str, **environment: str) -> str:
        """Start it; it must end with this code. Returns what it said, a single line.

        It is executed where its environment is another one, and else forked.
        """
        argv = arguments or ("--config", str(self.daemon.config))
        if environment:
            done = subprocess.run(
                [sys.executable, "-m", "svirtd", *argv],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=DEADLINE_S,
                cwd=REPO,
                env=os.environ | environment,
                check=False,
            )
        else:
            assert Daemon.forks is not None
            done = Daemon.forks.run(argv, env=os.environ, cwd=REPO, timeout=DEADLINE_S)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr, done.stderr
        line, end, rest = done.stderr.partition("\n")
        assert (end, rest) == ("\n", ""), done.stderr
        self.client.idle()
        assert self.owners == []
        return line


@pytest.fixture
def starter(sandbox: Sandbox, client: Client, tmp_path: Path) -> Starter:
    return Starter(client, tmp_path)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("[selinx]\n", "[selinx]: unknown section; expected one of [drift], [goals], [labels], "),
        ("[launch]\nprivate = 'c0'\n", "[launch] private: unknown key; expected one of answer-"),
        ("[selinux]\nrequire = 'maybe'\n", "[selinux] require: 'maybe' cannot be used; expected"),
        ("[labels]\nprivate = 'c0.c800'\n", "[labels] private, groups, reserved, private-size: "),
        ("[selinux\n", "is not TOML: "),
    ],
    ids=["section", "key", "value", "together", "syntax"],
)
def test_configuration(starter: Starter, text: str, rest: str) -> None:
    """The exit code and the way of the message; what is refused is told in the unit tests."""
    starter.config(text)
    assert starter.refused(BAD_CONFIG).startswith(f"svirtd: {starter.daemon.config}: {rest}")
    assert not starter.daemon.book.exists()


def test_configuration_that_cannot_be_read(starter: Starter, tmp_path: Path) -> None:
    said = starter.refused(BAD_CONFIG, "--config", "/nowhere/svirtd.toml")
    assert said == "svirtd: /nowhere/svirtd.toml: cannot be read (No such file or directory)"
    said = starter.refused(BAD_CONFIG, "--config", str(tmp_path))
    assert said == f"svirtd: {tmp_path}: cannot be read (Is a directory)"
    starter.daemon.config.write_bytes(b"[selinux]\nrequire = '\xff'\n")
    assert "is not TOML" in starter.refused(BAD_CONFIG)


def test_drop_ins(starter: Starter) -> None:
    starter.config("[selinux]\nrequire = 'enforcing'\n")
    starter.drop_in("10-first.toml", "[selinux]\nrequire = 'none'\n")
    last = starter.drop_in("90-last.toml", "[selinux]\nrequire = 'permissive'\n")
    starter.drop_in("99-not-read.conf", "[nonsense]\n")
    # The last one counts: this kernel is neither enforcing nor permissive.
    assert 'require = "permissive"' in starter.refused(CANNOT_RUN)
    last.write_text("[selinux]\nrequire = 'no'\n")
    assert starter.refused(BAD_CONFIG).startswith(f"svirtd: {last}: [selinux] require: 'no'")
    last.write_text("[labels]\nprivate = 'c0.c800'\n")
    assert "overlap" in starter.refused(BAD_CONFIG)


def test_a_kernel_that_does_not_enforce(starter: Starter) -> None:
    for text, wanted in (("", "enforcing"), ("[selinux]\nrequire = 'permissive'\n", "permissive")):
        starter.config(f'[registry]\npath = "{starter.daemon.book}"\n{text}')
        said = starter.refused(CANNOT_RUN)
        assert f'SELinux is disabled on this host and [selinux] require = "{wanted}"' in said
        assert 'set require = "none" to have labels written without protection' in said
        assert not starter.daemon.book.exists()


STUB = '''
"""shim selinux module"""
def is_selinux_enabled():
    return 0
def is_selinux_mls_enabled():
    return 0
'''


def test_the_stub_from_pypi(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "site" / "selinux").mkdir(parents=True)
    (tmp_path / "site" / "selinux" / "__init__.py").write_text(STUB)
    said = starter.refused(CANNOT_RUN, PYTHONPATH=str(tmp_path / "site"))
    assert f"the module 'selinux' at {tmp_path}/site/selinux/__init__.py is the stub" in said
    assert "pip uninstall selinux" in said
    assert "python3-selinux" in said
    (tmp_path / "site" / "selinux" / "__init__.py").write_text("raise ImportError('broken')\n")
    said = starter.refused(CANNOT_RUN, PYTHONPATH=str(tmp_path / "site"))
    assert "the SELinux binding is missing (broken)" in said
    assert not starter.daemon.book.exists()


def test_another_user_than_root(starter: Starter, tmp_path: Path) -> None:
    # Privileges are dropped once the code is read: a stranger may not be able to.
    code = (
        "import os, sys; from svirtd.daemon import main; os.setgroups([]);"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "sys.exit(main(['--config', '/dev/null']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(REPO)},
        check=False,
    )
    assert done.returncode == CANNOT_RUN, done.stderr
    assert done.stderr == "svirtd: svirtd must run as root: only root can set labels\n"
    starter.client.idle()
    assert starter.owners == []


def test_no_bus(starter: Starter) -> None:
    said = starter.refused(CANNOT_GO_ON, DBUS_SYSTEM_BUS_ADDRESS="unix:path=/nowhere/bus")
    assert "cannot connect to the bus" in said


def test_a_second_daemon_on_the_same_book(starter: Starter) -> None:
    starter.daemon.start()
    try:
        starter.client.idle()
        starter.owners.clear()
        said = starter.refused(CANNOT_RUN)
        assert f"the book {starter.daemon.book} is in use by another svirtd" in said
        assert f"process {starter.daemon.pid};" in said
        assert starter.client.vms() == {}
    finally:
        assert starter.daemon.stop() == 0


def test_a_second_daemon_on_the_same_bus(starter: Starter, tmp_path: Path) -> None:
    starter.daemon.start()
    other = Daemon(tmp_path / "other", executed=True)
    try:
        starter.client.idle()
        starter.owners.clear()
        said = starter.refused(CANNOT_RUN, "--config", str(other.config))
        assert "another process owns org.svirt1 on this bus" in said
        assert starter.client.vms() == {}
    finally:
        assert starter.daemon.stop() == 0


def test_a_book_that_is_a_folder(starter: Starter) -> None:
    book = starter.daemon.book
    book.parent.mkdir()
    book.mkdir()
    said = starter.refused(CANNOT_RUN)
    assert f"the book {book} cannot be used: unable to open database file" in said
    assert book.is_dir()


def test_a_folder_that_is_none(starter: Starter) -> None:
    starter.daemon.book.parent.write_text("")
    said = starter.refused(CANNOT_RUN)
    assert f"the book's folder {starter.daemon.book.parent} cannot be used" in said


def test_a_book_of_a_newer_svirtd(starter: Starter) -> None:
    starter.daemon.start()
    assert starter.daemon.stop() == 0
    starter.client.idle()
    starter.owners.clear()
    with sqlite3.connect(starter.daemon.book) as book:
        book.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
            " VALUES ('svirtd', '9999-later', '2099-01-01')"
        )
    book.close()
    said = starter.refused(CANNOT_RUN)
    assert "the book was written by a newer svirtd (it has 9999-later)" in said


def test_other_categories_under_live_vms(starter: Starter) -> None:
    client, daemon = starter.client, starter.daemon
    old = daemon.config.read_text()
    daemon.start()
    client.acquire("vm")
    assert daemon.stop() == 0
    client.idle()
    starter.owners.clear()
    starter.config(old + '[labels]\nprivate = "c0.c500"\n')
    said = starter.refused(CANNOT_RUN)
    assert "private was 'c0.c767' and is 'c0.c500'" in said
    assert "forget every VM and delete every group first" in said
    starter.config(old)
    daemon.start()
    assert client.vms() == {"vm": "reserved"}
    client.release("vm")
    assert daemon.stop() == 0
    starter.config(old + '[labels]\nprivate = "c0.c500"\n')
    daemon.start()
    assert client.manager()["PairsTotal"] == 501 * 500 // 2
    assert daemon.stop() == 0


@pytest.mark.parametrize("argument", ["--nonsense", "extra"])
def test_usage(starter: Starter, argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "svirtd", argument], capture_output=True, cwd=REPO, check=False
    )
    assert done.returncode == BAD_CONFIG
    assert b"usage: svirtd" in done.stderr
