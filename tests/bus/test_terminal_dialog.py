# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl of an ordinary user on a terminal: polkit's own agent asks there, and nowhere else."""

import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from svirtd.ctl.failures import Exit
from tests.sandbox.accounts import BEN
from tests.support import DEADLINE_S, Client, Daemon
from tests.terminal import Terminal

# The source tree is read before root's rights are dropped: another user may not be able to.
_AS_BEN = f"""
import os, sys, svirtd.ctl.main
dict(svirtd.ctl.commands.COMMANDS)
os.setgroups({list(BEN.groups)}); os.setgid({BEN.gid}); os.setuid({BEN.uid})
sys.exit(svirtd.ctl.main.run(sys.argv[1:]))
"""


def svirtctl(*arguments: str) -> Terminal:
    """svirtctl as Ben on a terminal of its own."""
    return Terminal([sys.executable, "-c", _AS_BEN, *arguments])


@pytest.fixture
def vm(daemon: Daemon, client: Client) -> Iterator[str]:
    """A VM of root's."""
    client.acquire("roots")
    yield "roots"
    client.release("roots")


def test_asked_on_the_terminal(client: Client, vm: str) -> None:
    terminal = svirtctl("release", vm)
    try:
        terminal.until("Password: ")
        shown = "'ben' (uid 60002) to end the virtual machine 'roots' of 'root' (uid 0)"
        assert shown in terminal.text()
        terminal.type("\x03")
        terminal.until("svirtctl: interrupted")
        # What is typed now is seen again.
        assert termios.tcgetattr(terminal.fd)[3] & termios.ECHO
        assert terminal.ended() == Exit.INTERRUPTED
    finally:
        terminal.close()
    assert client.vms() == {vm: "reserved"}


def test_nobody_is_asked_where_that_is_not_wanted(client: Client, vm: str) -> None:
    terminal = svirtctl("--no-ask-password", "release", vm)
    try:
        assert terminal.ended() == Exit.PERMISSION
        assert "unless an administrator authenticates" in terminal.text()
        assert "Password" not in terminal.text()
    finally:
        terminal.close()
    assert client.vms() == {vm: "reserved"}


def test_without_a_terminal_polkit_is_left_to_find_somebody(client: Client, vm: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AS_BEN, "release", vm],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == Exit.PERMISSION
    assert "there is no authentication agent to ask one" in done.stderr
    assert client.vms() == {vm: "reserved"}


def test_no_agent_for_what_one_may(daemon: Daemon) -> None:
    for arguments in (["list"], ["acquire", "bens"], ["release", "bens"]):
        terminal = svirtctl(*arguments)
        try:
            assert terminal.ended() == 0, terminal.text()
        finally:
            terminal.close()
        assert "AUTHENTICATING" not in terminal.text()


def test_the_agents_process_ends_with_the_call(client: Client, vm: str) -> None:
    terminal = svirtctl("release", vm)
    try:
        terminal.until("Password: ")
        found = subprocess.run(
            ["pgrep", "-u", str(BEN.uid), "-x", "pkttyagent"],
            capture_output=True,
            text=True,
            check=True,
        )
        (agent,) = found.stdout.split()
        os.kill(terminal.pid, signal.SIGINT)
        terminal.ended()
    finally:
        terminal.close()
    assert not os.path.exists(f"/proc/{agent}")
