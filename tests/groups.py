# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parts of the tests that share resources in groups."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from svirtd.core.names import escape_path
from svirtd.host.bus import Variant
from tests.bus.agent import acting_as
from tests.sandbox.accounts import Account
from tests.support import GROUP, PROPERTIES, ROOT, Client, image, unwrap

ACQUIRE: Final = "saa{sv}a{sv}"
LAUNCH: Final = "sasaa{sv}a{sv}"
_RULE: Final = Path("/etc/polkit-1/rules.d/10-groups.rules")


def shared(path: Path, group: str = "g", access: str = "group") -> list[dict[str, Variant]]:
    """A resource that a group shares."""
    return [
        {
            "path": Variant("s", str(path)),
            "access": Variant("s", access),
            "group": Variant("s", group),
        }
    ]


def in_groups(*groups: str, **more: Variant) -> dict[str, Variant]:
    """Options of a VM that is in these groups for a run."""
    return {"groups": Variant("as", list(groups)), **more}


def group_path(name: str = "g") -> str:
    """The object of a group."""
    return f"{ROOT}/group/{escape_path(name)}"


def of_group(name: str = "g") -> dict[str, Any]:
    """Where a method of a group's object is called."""
    return {"path": group_path(name), "interface": GROUP}


def view(client: Client, name: str = "g") -> dict[str, Any]:
    """What a client sees of a group."""
    path = group_path(name)
    return dict(unwrap(client.call("GetAll", "s", GROUP, path=path, interface=PROPERTIES)[0]))


def category_of(client: Client, name: str = "g") -> int:
    """The category that a group owns."""
    return int(view(client, name)["Category"].removeprefix("c"))


def disk_of(account: Account, folder: Path, *, mode: int = 0o600) -> Path:
    """A disk image of a user's, in a folder that everybody may pass through."""
    path = image(folder / f"{account.name}.img")
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)
    return path


@contextlib.contextmanager
def users_make_groups() -> Iterator[None]:
    """Have polkit let the sandbox's users make groups, as an administrator may decide.

    What is somebody's already stays what it is: its owner's.
    """
    _RULE.write_text(
        "polkit.addRule(function(action, subject) {"
        '  if (action.id == "org.svirt1.manage-groups" && !action.lookup("owner") &&'
        '      subject.isInGroup("svirt"))'
        "    return polkit.Result.YES; });"
    )
    try:
        subprocess.run(["systemctl", "restart", "polkit.service"], check=True)
        yield
    finally:
        _RULE.unlink()
        subprocess.run(["systemctl", "restart", "polkit.service"], check=True)


@contextlib.contextmanager
def client_of(account: Account) -> Iterator[Client]:
    """A client whose credentials are this account's."""
    with acting_as(account):
        client = Client()
    try:
        yield client
    finally:
        client.close()
