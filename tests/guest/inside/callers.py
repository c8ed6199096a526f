# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other people: accounts of the guest and domains of the policy, from which svirtd is called."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# What Debian's policy gives to whoever logs in, and what an administrator may choose instead.
LOGIN: Final = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"
CONFINED: Final = "user_u:user_r:user_t:s0"
# Root in a domain that svirtd's policy does not mention: see guest_callers.te.
STRANGER: Final = "system_u:system_r:guest_caller_t:s0"
_HERE: Final = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who runs programs: a user in a domain."""

    user: str
    context: str

    @property
    def home(self) -> Path:
        """The home folder."""
        return Path("/root") if self.user == "root" else Path("/home") / self.user

    def run(self, *command: str | Path) -> Said:
        """Run a program as this person, in a process that has nothing of the test's."""
        # What it says goes through the home: a confined domain may not write to a test's pipe.
        inside = 'umask 022; cd; exec "$@" >"$0/said" 2>"$0/complained" </dev/null'
        done = subprocess.run(
            [
                *("systemd-run", "--quiet", "--wait", "--collect", "--service-type=exec"),
                *(f"--uid={self.user}", f"--property=SELinuxContext={self.context}"),
                f"--setenv=HOME={self.home}",
                f"--setenv=PYTHONPATH=/usr/lib/svirtd:{_HERE}",
                *("/bin/sh", "-c", inside, str(self.home), *map(str, command)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        said = [self.home / name for name in ("said", "complained")]
        log = Path("/var/log/audit/audit.log").read_text("utf-8").splitlines()[-20:]
        assert all(path.exists() for path in said), f"it could not be run: {done.stderr} {log}"
        out, err = (path.read_text("utf-8") for path in said)
        for path in said:
            path.unlink()
        return Said(done.returncode, out, err)

    def svirtctl(self, *arguments: str | Path) -> Any:
        """Run svirtctl, which must do it, and return its answer."""
        said = self.run("svirtctl", "--json", *arguments)
        assert said.code == 0, said
        return json.loads(said.out) if said.out else None

    def calls(self, *arguments: str) -> Said:
        """Call a method of svirtd as busctl does, without looking at anything before."""
        return self.run("busctl", "call", "org.svirt1", *arguments)

    def refused(self, *arguments: str | Path) -> str:
        """Run svirtctl, which must be refused; returns "error name: text"."""
        said = self.run("svirtctl", "--json", *arguments)
        assert said.code != 0, said
        return said.err
