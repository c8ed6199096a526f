# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus tier's tests of other people's clients, and of the examples, with the installed service.

The examples are those of the package, and polkit asks for the password of an administrator's.
"""

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.bus.test_clients import (  # noqa: F401 -- collected from here
    test_busctl,
    test_busctl_shows_every_member,
    test_gdbus,
    test_introspection_of_every_object_is_the_contract,
    test_the_manual_pages_examples,
)
from tests.bus.test_examples import (  # noqa: F401 -- collected from here
    START_S,
    User,
    at_home,
    test_a_vm_from_launch_to_ctrl_c,
    test_it_ends_with_its_vm_and_its_vm_with_it,
    test_somebody_has_to_agree,
    test_somebody_has_to_agree_to_busctl,
    test_the_same_with_busctl,
)
from tests.guest.inside.vms import process_label
from tests.sandbox.accounts import Account
from tests.support import Client, label

_PASSWORD: Final = "agreed to"


@pytest.fixture(scope="module")
def people() -> dict[str, Account]:
    """A member of the group svirt, somebody who is not, and an administrator with a password."""
    for name, *groups in (("mia", "--groups=svirt"), ("sam",), ("amy", "--groups=sudo")):
        subprocess.run(["useradd", "--create-home", *groups, name], check=True)
    subprocess.run(["chpasswd"], input=f"amy:{_PASSWORD}", text=True, check=True)
    subprocess.run(["restorecon", "-R", "-F", "/home"], check=True)
    found = {}
    for name in ("mia", "sam"):
        entry = pwd.getpwnam(name)
        others = tuple(os.getgrouplist(name, entry.pw_gid))
        found[name] = Account(name, entry.pw_uid, entry.pw_gid, others)
    return found


def _at_home(account: Account) -> Iterator[User]:
    with at_home(User(account, Path("/home") / account.name, password=_PASSWORD)) as user:
        # As if the user had made it.
        subprocess.run(["restorecon", "-R", "-F", user.home], check=True)
        yield user


@pytest.fixture
def member(people: dict[str, Account]) -> Iterator[User]:
    """Who may have VMs."""
    yield from _at_home(people["mia"])


@pytest.fixture
def stranger(people: dict[str, Account]) -> Iterator[User]:
    """Who may not, unless an administrator agrees."""
    yield from _at_home(people["sam"])


def test_a_strangers_vm_is_kept_apart(client: Client, stranger: User, member: User) -> None:
    """What two users' own tools have started: each runs under a pair of its own, by the kernel."""
    with stranger.tool("sams") as sams, member.tool("mias") as mias:
        sams.authenticate(stranger.password, START_S)
        for tool in (sams, mias):
            tool.until("Ctrl-C stops it", START_S)
        shown = [client.properties(name) for name in ("sams", "mias")]
        for one, user in zip(shown, (stranger, member), strict=True):
            assert process_label(one["MainPID"]) == one["ProcessContext"]
            assert label(user.disk) == one["ImageContext"]
        assert shown[0]["Categories"] != shown[1]["Categories"]
        for tool in (sams, mias):
            tool.type("\x03")
            assert tool.ended(START_S) == 0, tool.text()
