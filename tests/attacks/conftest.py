# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the attacks tier."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.arena import Arena
from tests.attacks.fuzzer import figures
from tests.fixtures import interruptible, leftovers, nothing_left, sandbox, zygote
from tests.sandbox import Sandbox, accounts
from tests.sandbox.accounts import ANN, BEN, NOBODY, Account
from tests.support import Daemon, svirt_units, wait_for
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


@pytest.fixture
def arena(request: pytest.FixtureRequest, sandbox: Sandbox, zygote: Zygote) -> Iterator[Arena]:
    """A daemon for this test alone; with a parameter, one that lacks this defence."""
    without: str = getattr(request, "param", None) or ""
    # pytest's folders are root's alone; a VM's user passes through this one.
    place = Path(tempfile.mkdtemp(prefix="d", dir=sandbox.state))
    place.chmod(0o755)
    daemon = Daemon(place, zygote=zygote, without=without)
    daemon.start()

    def home(account: Account) -> Path:
        folder = accounts.home(sandbox.state, account)
        if not folder.exists():  # nobody has none
            folder.mkdir()
        folder.chmod(0o755)  # others find what lies in the open there
        return folder

    arena = Arena(lambda: daemon.pid, home, place, without)
    fds = arena.fds()
    try:
        yield arena
        if not without:
            assert arena.errors() == ""
            wait_for("the daemon's descriptors are closed", lambda: arena.fds() <= fds + 2)
    finally:
        arena.leave()
        code = 0
        if without:
            daemon.kill()
            _end_units()
        else:
            code = daemon.stop()
    left = leftovers(daemon)
    # However deep a stranger has dug: the library's own gives up.
    subprocess.run(["rm", "-rf", place], check=True)
    assert without or (code == 0 and not left), (code, left)


def _end_units() -> None:
    units = svirt_units()
    if units:
        subprocess.run(["systemctl", "kill", "--signal=KILL", *units], check=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the fuzzer came to."""
    for line in figures:
        terminalreporter.write_line(line)
