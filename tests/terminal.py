# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program of an ordinary user's on a terminal of its own."""

import os
import pty
import re
import select
import termios
import time
from pathlib import Path
from typing import Final

from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S, wait_for

# Colours.
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A program, of a user's if one is given, and who sits before it. `close()` it in any case."""

    def __init__(
        self, argv: list[str], account: Account | None = None, folder: Path = Path("/")
    ) -> None:
        self.shown = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                # A test has no session, whatever the tester's own terminal is.
                os.environ.pop("XDG_SESSION_ID", None)
                if account is not None:
                    os.setgroups(account.groups)
                    os.setgid(account.gid)
                    os.setuid(account.uid)
                os.chdir(folder)
                os.execv(argv[0], argv)
            finally:
                os._exit(127)

    def until(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until this has been shown."""
        end = time.monotonic() + deadline_s
        while text not in self.text():
            assert time.monotonic() < end, self.text()
            assert self._read() or text in self.text(), f"it has ended: {self.text()}"

    def type(self, text: str) -> None:
        """Type this; "\\x03" is Ctrl-C."""
        os.write(self.fd, text.encode())

    def authenticate(self, password: str, deadline_s: float = DEADLINE_S) -> None:
        """Answer polkit's agent."""
        self.until("Password: ", deadline_s)
        # What was typed before it hides what is typed would be thrown away.
        wait_for("it listens", lambda: not termios.tcgetattr(self.fd)[3] & termios.ECHO)
        self.type(f"{password}\n")

    def text(self) -> str:
        """What was shown so far, of what was typed as well where it is echoed."""
        return _ESCAPES.sub("", self.shown.decode(errors="replace")).replace("\r\n", "\n")

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait until nobody has the terminal any more; returns the exit code."""
        end = time.monotonic() + deadline_s
        while self._read():
            assert time.monotonic() < end, self.text()
        return self.close()

    def close(self) -> int:
        """Hang up, if that has not happened."""
        if self.pid:
            os.close(self.fd)
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            return os.waitstatus_to_exitcode(status)
        return 0

    def _read(self) -> bool:
        """Take in what is there, or wait for it a little; False if there will be no more."""
        if select.select([self.fd], [], [], 0.1)[0]:
            try:
                self.shown += os.read(self.fd, 65536)
            except OSError:  # nobody has the other side any more
                return False
        return True
