# SPDX-License-Identifier: LGPL-2.1-or-later
"""The users of the sandbox, beside those of the host: for tests that act as somebody else.

    name    uid    polkit lets it          home
    ann     60001  launch and acquire      yes
    ben     60002  launch and acquire      yes
    nobody  65534  nothing without dialog  no

Ann and Ben are members of the group svirt, to which the project's own polkit rule gives both. In
the sandbox nobody is logged in at the machine, so everybody else has polkit's answer for "any": an
administrator must authenticate. That is root, with ROOT_PASSWORD in the sandbox. A home is in its
state folder, mode 0700, and ends with it. pytest's folders are root's: what a user must reach
belongs into its home.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import kernel

SVIRT_GID = 60000
ROOT_PASSWORD = "opens the sandbox"
# By "openssl passwd -6".
_ROOT_SHADOW = (
    "root:$6$sandbox$pl.NB5zCXxiczv7rTNbcdznR0ThPhCitDpNuYHsRtqxl0qBVGOYwiOS1gB3LW5g1BEu1anRpFEVdn6"
    "LjSusHM.:20000:0:99999:7:::"
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the sandbox, with a group of its own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """The groups it is in besides its own."""


ANN = Account("ann", 60001, 60001, (SVIRT_GID,))
BEN = Account("ben", 60002, 60002, (SVIRT_GID,))
NOBODY = Account("nobody", 65534, 65534)
_NEW = (ANN, BEN)


def home(state: Path, account: Account) -> Path:
    """Where the home of Ann or Ben is in a sandbox with this state folder."""
    return state / "homes" / account.name


def install(state: Path) -> None:
    """Make the accounts, for the calling process's mount namespace alone. Raises OSError."""
    (state / "homes").mkdir()
    (state / "homes").chmod(0o755)
    users, groups = [], [f"svirt:x:{SVIRT_GID}:{','.join(one.name for one in _NEW)}"]
    for one in _NEW:
        folder = home(state, one)
        folder.mkdir(0o700)
        os.chown(folder, one.uid, one.gid)
        users.append(f"{one.name}:x:{one.uid}:{one.gid}::{folder}:/bin/sh")
        groups.append(f"{one.name}:x:{one.gid}:")
    _cover(state, Path("/etc/passwd"), users)
    _cover(state, Path("/etc/group"), groups)
    _cover(state, Path("/etc/shadow"), [_ROOT_SHADOW], mode=0o600)


def _cover(state: Path, file: Path, own: list[str], mode: int = 0o644) -> None:
    """Put lines of ours before the host's, where a name or number is found first."""
    copy = state / file.name
    copy.touch(mode)
    copy.chmod(mode)
    copy.write_text("\n".join([*own, file.read_text()]))
    kernel.bind(str(copy), str(file))
