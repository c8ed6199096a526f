# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the attacks tier."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.arena import Arena
from tests.attacks.fuzzer import figures
from tests.fixtures import _shared as shared_daemons
from tests.fixtures import interruptible, leftovers, nothing_left, sandbox, zygote
from tests.sandbox import Sandbox, accounts
from tests.sandbox.accounts import ANN, BEN, NOBODY, Account
from tests.support import Daemon, svirt_units, until, wait_for
from tests.zygote import Zygote

__all__ = ["interruptible", "nothing_left", "sandbox", "zygote"]


@pytest.fixture
def ann() -> Account:
    """An ordinary user who may launch and acquire."""
    return ANN


@pytest.fixture
def ben() -> Account:
    """Another one."""
    return BEN


@pytest.fixture
def nobody() -> Account:
    """Somebody whom polkit lets do nothing without a dialog."""
    return NOBODY


class Running:
    """The daemon that runs: the same for tests that leave nothing in it."""

    def __init__(self, sandbox: Sandbox, zygote: Zygote) -> None:
        self._sandbox = sandbox
        self._zygote = zygote
        self._place = Path()
        self.daemon: Daemon | None = None

    def start(self, without: str) -> tuple[Daemon, Path]:
        """Return a daemon that lacks this defence, and its folder."""
        if self.daemon is not None and without:
            self.stop()
        if self.daemon is None:
            # pytest's folders are root's alone; a VM's user passes through this one.
            self._place = Path(tempfile.mkdtemp(prefix="d", dir=self._sandbox.state))
            self._place.chmod(0o755)
            self.daemon = Daemon(self._place, zygote=self._zygote, without=without)
            shared_daemons.append(self.daemon)
            self.daemon.start()
        return self.daemon, self._place

    def stop(self) -> int:
        """End it, and return its exit code; one that lacks a defence is killed."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return 0
        shared_daemons.remove(daemon)
        code = 0
        if daemon.without:
            daemon.kill()
            _end_units()
        else:
            code = daemon.stop()
        # However deep a stranger has dug: the library's own gives up.
        subprocess.run(["rm", "-rf", self._place], check=True)
        return code


@pytest.fixture(scope="session")
def running(sandbox: Sandbox, zygote: Zygote) -> Iterator[Running]:
    """The daemon that tests leave to each other."""
    running = Running(sandbox, zygote)
    yield running
    assert running.stop() == 0


@pytest.fixture
def arena(request: pytest.FixtureRequest, sandbox: Sandbox, running: Running) -> Iterator[Arena]:
    """The daemon, with nothing of anybody's in it; with a parameter, one that lacks a defence."""
    without: str = getattr(request, "param", None) or ""
    daemon, place = running.start(without)

    def home(account: Account) -> Path:
        folder = accounts.home(sandbox.state, account)
        if not folder.exists():  # nobody has none
            folder.mkdir()
        folder.chmod(0o755)  # others find what lies in the open there
        return folder

    arena = Arena(lambda: daemon.pid, home, place, without)
    fds, errors = arena.fds(), arena.errors()
    done = False
    try:
        yield arena
        if not without:
            assert arena.errors() == errors
            wait_for("the daemon's descriptors are closed", lambda: arena.fds() <= fds + 2)
        done = True
    finally:
        arena.leave()
        # What those who have left by now had under way ends by itself, a moment later.
        until(lambda: bool(without) or not done or not _left(daemon, arena))
        left = _left(daemon, arena)
        if without or left or arena.moved or not done:
            code = running.stop()
            assert without or not done or code == 0
        assert without or not left, left


def _left(daemon: Daemon, arena: Arena) -> list[str]:
    return [
        row
        for row in leftovers(daemon).split("; ")
        if row and not (arena.moved and row.startswith("quarantine: "))
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each file, first what is mounted against the daemon as it is: one daemon does for all."""
    files = list(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: (files.index(item.path), bool(_without(item))))


def _without(item: pytest.Item) -> str:
    """Return the defence that the daemon of a test lacks, "" if it lacks none."""
    called = getattr(item, "callspec", None)
    return (called.params.get("arena") if called is not None else None) or ""


def _end_units() -> None:
    units = svirt_units()
    if units:
        subprocess.run(["systemctl", "kill", "--signal=KILL", *units], check=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the fuzzer came to."""
    for line in figures:
        terminalreporter.write_line(line)
