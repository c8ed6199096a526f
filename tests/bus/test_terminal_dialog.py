# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl of an ordinary user on a terminal: polkit's own agent asks there, and nowhere else."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from svirtd.ctl.failures import Exit
from tests.sandbox.accounts import BEN
from tests.support import DEADLINE_S, Client, Daemon

# The source tree is read before root's rights are dropped: another user may not be able to.
_AS_BEN = f"""
import os, sys, svirtd.ctl.commands, svirtd.ctl.main
os.setgroups({list(BEN.groups)}); os.setgid({BEN.gid}); os.setuid({BEN.uid})
sys.exit(svirtd.ctl.main.run(sys.argv[1:]))
"""


class Terminal:
    """svirtctl as Ben on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        self.seen = b""
        if self.pid == 0:
            # The sandbox has no sessions, whatever the tester's own terminal is.
            os.environ.pop("XDG_SESSION_ID", None)
            os.execv(sys.executable, [sys.executable, "-c", _AS_BEN, *arguments])

    def read_until(self, text: bytes) -> None:
        """Wait until this has been shown."""
        end = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError as error:
                    raise AssertionError(f"it has ended: {self.seen!r}") from error

    def ended(self) -> int:
        """Its exit code."""
        end = time.monotonic() + DEADLINE_S
        while True:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:  # nobody has the other side any more
                    return self.close()
            assert time.monotonic() < end, self.seen

    def close(self) -> int:
        """End it if need be."""
        if self.pid:
            os.close(self.fd)
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            return os.waitstatus_to_exitcode(status)
        return 0


@pytest.fixture
def vm(daemon: Daemon, client: Client) -> Iterator[str]:
    """A VM of root's."""
    client.acquire("roots")
    yield "roots"
    client.release("roots")


def test_asked_on_the_terminal(client: Client, vm: str) -> None:
    terminal = Terminal("release", vm)
    try:
        terminal.read_until(b"Password: ")
        shown = b"'ben' (uid 60002) to end the virtual machine 'roots' of 'root' (uid 0)"
        assert shown in terminal.seen.replace(b"\r\n", b"\n"), terminal.seen
        os.write(terminal.fd, b"\x03")  # Ctrl-C
        terminal.read_until(b"svirtctl: interrupted")
        # What is typed now is seen again.
        assert termios.tcgetattr(terminal.fd)[3] & termios.ECHO
        assert terminal.ended() == Exit.INTERRUPTED
    finally:
        terminal.close()
    assert client.vms() == {vm: "reserved"}


def test_nobody_is_asked_where_that_is_not_wanted(client: Client, vm: str) -> None:
    terminal = Terminal("--no-ask-password", "release", vm)
    try:
        assert terminal.ended() == Exit.PERMISSION
        assert b"unless an administrator authenticates" in terminal.seen
        assert b"Password" not in terminal.seen
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
        terminal = Terminal(*arguments)
        try:
            assert terminal.ended() == 0, terminal.seen
        finally:
            terminal.close()
        assert b"AUTHENTICATING" not in terminal.seen


def test_the_agents_process_ends_with_the_call(client: Client, vm: str) -> None:
    terminal = Terminal("release", vm)
    try:
        terminal.read_until(b"Password: ")
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
