# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where strangers meet the daemon: who they are, where their files lie, and who has won."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from svirtd.host.bus import BusError
from tests import journal
from tests.attack import DENIED, STANDARD
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import Account
from tests.support import Client, image

# How whoever may not is refused: outright, or unless an administrator authenticates.
DENIALS: Final = {DENIED, STANDARD + "InteractiveAuthorizationRequired"}
ROOTS_SECRET: Final = b"the host's secret\n"


def tries(client: Client, *call: Any, **where: Any) -> str:
    """Return the name of the refusal of a call, "" where there was none."""
    try:
        client.call(*call, **where)
    except BusError as error:
        return error.name
    return ""


class Arena:
    """One daemon, its administrator, and the strangers that a test lets in.

    `place` is the daemon's folder, or another of root's that everybody may pass through.
    """

    def __init__(
        self, pid: Callable[[], int], home: Callable[[Account], Path], place: Path, without: str
    ) -> None:
        self._pid = pid
        self._home = home
        self.place = place
        self.without = without
        self.root = Client()
        self.strangers: list[Stranger] = []
        # A stranger's file that is not where it was keeps its label, and its set in quarantine.
        self.moved = False
        # A command that does nothing, and that a VM may begin with.
        self.idle = ["/bin/sleep", "1000"]
        self.made: list[Path] = []

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._pid()

    def stranger(self, account: Account) -> Stranger:
        """Let somebody in; the end of the test ends it."""
        stranger = Stranger(account)
        self.strangers.append(stranger)
        return stranger

    def home(self, account: Account) -> Path:
        """Return a new folder of the account's, which only it can enter."""
        folder = self._home(account) / f"f{len(self.made)}"
        folder.mkdir(mode=0o700)
        os.chown(folder, account.uid, account.gid)
        self.made.append(folder)
        return folder

    def disk(self, account: Account, name: str = "disk.img", folder: Path | None = None) -> Path:
        """Return a new disk image of the account's own, in a home of its."""
        path = image((folder or self.home(account)) / name)
        os.chown(path, account.uid, account.gid)
        path.chmod(0o600)
        return path

    def victim(self, account: Account, *, mode: int = 0o600) -> Path:
        """Return a file of root's in the account's reach, in a folder that it may not write to."""
        folder = self._home(account) / f"r{len(self.made)}"
        folder.mkdir(mode=0o755)
        self.made.append(folder)
        path = folder / "secret"
        path.write_bytes(ROOTS_SECRET)
        path.chmod(mode)
        return path

    def verdict(self, won: object, what: str) -> None:
        """The attack has won exactly where its defence is off."""
        if self.without:
            assert won, f"{what}: fails although {self.without!r} is off; this test proves nothing"
        else:
            assert not won, f"{what}: {won}"

    def errors(self) -> list[str]:
        """Return what the daemon has recorded as an error, or worse."""
        return journal.errors_of(self.pid)

    def fds(self) -> int:
        """Return how many descriptors the daemon has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def leave(self) -> None:
        """End every stranger and take the files away."""
        for stranger in self.strangers:
            stranger.close()
        self.root.close()
        for folder in self.made:
            # However deep: the library's own gives up.
            subprocess.run(["rm", "-rf", folder], check=True)
