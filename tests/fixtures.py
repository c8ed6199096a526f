# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the tiers that run the daemon, and the check that a test leaves nothing behind.

A tier takes them into its conftest.py by name.
"""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import svirtctl
from tests.sandbox import Sandbox, SandboxError, inside
from tests.support import Client, Daemon, label, svirt_units, until, wait_for
from tests.zygote import Forked, Zygote

# The daemons of modules, which outlive a test.
_shared: list[Daemon] = []


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so would everything started here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """The sandbox that the tests run in; without it they fail, they are never skipped."""
    try:
        return inside()
    except SandboxError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def zygote(sandbox: Sandbox) -> Iterator[Zygote]:
    """Forks daemons, for tests that start many: `Daemon(folder, zygote=zygote)`."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def forked_daemons(zygote: Zygote) -> Iterator[None]:
    """Daemons that nobody says more of are forked: of a tier that tests what they do, not a start.

    How one is executed that is `Daemon(folder, executed=True)`.
    """
    Daemon.forks = zygote
    yield
    Daemon.forks = None


@pytest.fixture(scope="session")
def forked_svirtctl(sandbox: Sandbox) -> Iterator[None]:
    """What tests.svirtctl.run() takes."""
    svirtctl.Forks.zygote = Zygote("svirtctl")
    yield
    svirtctl.Forks.zygote.close()
    svirtctl.Forks.zygote = None


@pytest.fixture(scope="module")
def shared_daemon(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module that do not stop it."""
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    try:
        with outliving(daemon):
            yield daemon
    finally:
        code = daemon.stop() if daemon.process is not None else 0
    assert code == 0, daemon.output()


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; fails the test if it left a descriptor, VM, unit, row or folder."""
    if shared_daemon.process is None:
        shared_daemon.start()
    before = shared_daemon.fds()
    yield shared_daemon
    problems = leftovers(shared_daemon)

    def grown() -> set[str]:
        # Only files matter here: the pool of threads and the book's log open lazily.
        new = set(shared_daemon.fds()) - set(before)
        return {fd for fd in new if fd.startswith("/") and "/book" not in fd}

    # The watch has a file open for the moment that it looks at it, and looks by itself.
    until(lambda: not grown())
    assert not grown(), "descriptors left open in the daemon"
    assert not problems, problems


@pytest.fixture
def own_daemon(
    sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Daemon]:
    """A daemon that the test may stop, kill and start again; started already.

    The bus name is one daemon's at a time: the module's makes way.
    """
    shared: Daemon = request.getfixturevalue("shared_daemon")
    if shared.process is not None:
        shared.stop()
    daemon = Daemon(tmp_path / "d")
    daemon.start()
    yield daemon
    if daemon.process is None:
        daemon.start()
    problems = leftovers(daemon)
    code = daemon.stop()
    assert code == 0, daemon.output()
    assert not problems, problems


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Client]:
    """A client of the bus."""
    client = Client()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a task, descriptor, child, unit or label of its own."""
    before = set(os.listdir("/proc/self/fd"))
    children = _children()
    yield
    left = {pid for pid in _children() - children if not _is_orphan(pid)}
    assert not left, f"child processes left behind: {left}"
    # systemd collects a unit a moment after its end.
    wait_for("every unit of a VM is gone", lambda: not svirt_units())
    labelled = [str(path) for path in tmp_path.rglob("*") if _is_labelled(path)]
    assert not labelled, f"labels left behind: {labelled}"
    grown = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in set(os.listdir("/proc/self/fd")) - before - _held_of_shared()
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not grown, f"descriptors left open: {grown}"
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@contextmanager
def outliving(daemon: Daemon) -> Iterator[None]:
    """No test is told that it has left this daemon."""
    _shared.append(daemon)
    try:
        yield
    finally:
        _shared.remove(daemon)


def leftovers(daemon: Daemon) -> str:
    """Say what of VMs is left in the daemon's book and folders."""
    found = []
    with sqlite3.connect(f"file:{daemon.book}?mode=ro", uri=True) as book:
        for table in ("vm", "hold", "operation", "quarantine"):
            rows = book.execute(f"SELECT * FROM {table}").fetchall()
            found += [f"{table}: {row}" for row in rows]
    book.close()
    folders = daemon.runtime / "vm"
    if folders.exists():
        found += [f"runtime folder: {entry}" for entry in os.listdir(folders)]
    return "; ".join(found)


def _held_of_shared() -> set[str]:
    """The descriptors by which the daemons that outlive a test are held."""
    processes = [daemon.process for daemon in _shared]
    return {str(one.fd) for one in processes if isinstance(one, Forked)}


def _children() -> set[str]:
    kept = {str(daemon.pid) for daemon in _shared if daemon.process is not None}
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split()) - kept


def _is_orphan(pid: str) -> bool:
    """Whether a child is one that a daemon had forked which was killed while the next one started.

    The tester adopts processes meanwhile. It must end, as its daemon has, and nobody else waits.
    """
    if Path(f"/proc/{pid}/comm").read_text("utf-8") not in ("svirtd-opener\n", "svirtd-trees\n"):
        return False
    wait_for("it has ended, too", lambda: os.waitpid(int(pid), os.WNOHANG)[0])
    return True


def _is_labelled(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and label(path) is not None
