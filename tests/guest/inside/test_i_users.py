# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ordinary users: VMs of their own on disks of their homes, and nobody else's."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.inside.audit import Audit
from tests.guest.inside.callers import CONFINED, LOGIN, Person, Said
from tests.guest.inside.vms import SIZE, disk, process_label, qemu
from tests.support import XATTR, Client, label, wait_for


@pytest.fixture(scope="module")
def people() -> dict[str, Person]:
    """Accounts with homes, in the group whose members may have VMs."""
    people = {
        "alice": Person("alice", LOGIN),
        "bob": Person("bob", LOGIN),
        "carol": Person("carol", CONFINED),
    }
    for name in people:
        subprocess.run(
            ["useradd", "--create-home", "--groups", "svirt", "--shell", "/bin/sh", name],
            check=True,
        )
    # As at an installation: what useradd made carries the administrator's user.
    subprocess.run(["restorecon", "-R", "-F", "/home"], check=True)
    # What "semanage login" comes to for a user who is confined.
    subprocess.run(["chcon", "-R", "-u", "user_u", people["carol"].home], check=True)
    return people


def disk_of(person: Person, name: str = "disk.img") -> Path:
    """Have somebody make a disk image in the home: with the label that it then has."""
    path = person.home / name
    made = person.run("sh", "-c", f"head -c {SIZE} /dev/zero | tr '\\0' d >{path}")
    assert made == Said(0, "", "")
    assert os.stat(path).st_uid == os.stat(person.home).st_uid != 0
    return path


def qmp(person: Person, name: str, *commands: str) -> Said:
    """Talk to a VM's monitor with svirtctl."""
    lines = "".join(f'{{"execute": "{command}"}}\\n' for command in ("qmp_capabilities", *commands))
    talk = f"printf '{lines}' | svirtctl channel {name} qmp --linger 5"
    return person.run("sh", "-c", talk)


@pytest.mark.parametrize("name", ["alice", "carol"])
def test_an_ordinary_user_has_a_vm_on_a_disk_of_the_home(
    client: Client, people: dict[str, Person], audit: Audit, name: str
) -> None:
    """Launched, talked to and stopped without root; nobody else gets at it; nothing is denied."""
    person, bob = people[name], people["bob"]
    path = disk_of(person)
    before, denied = os.getxattr(path, XATTR), len(audit.denials())
    assert b":user_home_t:" in before

    person.svirtctl("launch", "own", "--disk", path, "--", *qemu(path))
    shown = client.properties("own")
    assert shown["Owner"] == os.stat(path).st_uid
    assert process_label(shown["MainPID"]) == shown["ProcessContext"]
    assert os.stat(f"/proc/{shown['MainPID']}").st_uid == os.stat(path).st_uid
    assert label(path) == shown["ImageContext"]
    said = wait_for("its monitor answers", lambda: _answered(qmp(person, "own", "query-status")))
    assert '"running": true' in said

    assert "AccessDenied" in bob.refused("channel", "own", "qmp")
    assert "AccessDenied" in bob.refused("release", "own")
    assert "AccessDenied" in bob.refused("forget", "own")
    assert client.vms() == {"own": "running"}
    (seen,) = bob.svirtctl("list")["vms"]
    assert (seen["name"], seen["state"]) == ("own", "running")

    person.svirtctl("release", "own")
    assert os.getxattr(path, XATTR) == before
    assert client.vms() == {}
    assert audit.denials()[denied:] == []


def _answered(said: Said) -> str | None:
    return said.out if '"status": "running"' in said.out else None


def test_the_same_over_the_bus(people: dict[str, Person], audit: Audit, client: Client) -> None:
    alice = people["alice"]
    path = disk_of(alice)
    before, denied = os.getxattr(path, XATTR), len(audit.denials())
    said = alice.run("python3", "-m", "tests.guest.inside.user_story", "own", path)
    assert said.code == 0, said
    seen = json.loads(said.out)
    uid = os.stat(path).st_uid
    assert seen.pop("vm")[0].startswith("system_u:system_r:svirt_t:s0:c")
    shown, wanted = seen.pop("disk")
    assert shown == wanted
    assert seen == {
        "uid": uid,
        "owner": uid,
        "running": True,
        "reads": "",
        "writes": "",
        "uids": [str(uid)] * 4,
        "left": {},
    }
    assert os.getxattr(path, XATTR) == before
    assert audit.denials()[denied:] == []
    assert client.vms() == {}


def test_other_peoples_files(client: Client, people: dict[str, Person]) -> None:
    """Neither another user's disk nor root's, whoever may read it."""
    alice, bob = people["alice"], people["bob"]
    path = disk_of(alice, "shared.img")
    alice.run("chmod", "o+x", alice.home)
    path.chmod(0o666)
    roots = disk("roots")
    roots.chmod(0o666)
    for one in (path, roots):
        before = os.getxattr(one, XATTR)
        assert "org.svirt1.Error.ResourceRefused" in bob.refused("acquire", "x", "--disk", one)
        assert os.getxattr(one, XATTR) == before
    assert client.vms() == {}


def test_the_callers_own_domain_must_be_let_read_the_file(
    client: Client, people: dict[str, Person]
) -> None:
    """The file is the caller's and DAC allows it; the policy keeps the type from the domain."""
    carol = people["carol"]
    path = disk("carols")
    os.chown(path, *[os.stat(carol.home).st_uid] * 2)
    before = label(path)
    error = carol.refused("acquire", "x", "--disk", path)
    assert "org.svirt1.Error.ResourceRefused" in error
    assert "user_t" in error
    assert label(path) == before
    assert client.vms() == {}
    # A user of another domain with the same file.
    subprocess.run(["chown", "alice:alice", path], check=True)
    people["alice"].svirtctl("acquire", "x", "--disk", path)
    people["alice"].svirtctl("release", "x")
    assert label(path) == before
