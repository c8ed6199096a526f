# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may call: the policy's word about the caller's domain, ordinary users, and their files."""

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from svirtd.core.mcs import parse_context
from svirtd.host.kernel import Kernel
from tests.guest.inside.audit import Audit
from tests.guest.inside.callers import CONFINED, LOGIN, STRANGER, Person
from tests.guest.inside.test_c_service import DAEMON
from tests.guest.inside.vms import QEMU, Qemu, disk
from tests.support import Client, label

ROOT: Final = Person("root", LOGIN)
STRANGE: Final = Person("root", STRANGER)
REFUSED: Final = "217e877a64494731a393add6682ad853"
EVERYTHING: Final = {
    *("read", "plan", "acquire", "launch", "release", "forget", "connect"),
    *("verify", "repair", "backup", "override", "group", "wall", "levels", "enroll"),
}
USE: Final = {"read", "plan", "acquire", "launch", "group"}


@pytest.fixture
def allowed() -> Iterator[None]:
    """The stranger's domain may, as long as the test runs."""
    subprocess.run(["setsebool", "guest_caller_may", "on"], check=True)
    yield
    subprocess.run(["setsebool", "guest_caller_may", "off"], check=True)


@pytest.mark.parametrize(
    ("source", "on_daemon"),
    [
        (LOGIN, EVERYTHING - {"release", "forget", "connect"}),
        ("root:sysadm_r:sysadm_t:s0", EVERYTHING - {"release", "forget", "connect"}),
        ("system_u:system_r:initrc_t:s0", USE | {"verify", "repair", "backup"}),
        ("staff_u:staff_r:staff_t:s0", USE),
        (CONFINED, USE),
        (STRANGER, set()),
        ("system_u:system_r:httpd_t:s0", set()),
        ("system_u:system_r:svirt_t:s0:c1,c2", set()),
    ],
)
def test_who_may_what_by_default(source: str, on_daemon: set[str]) -> None:
    ask = Kernel().decide
    caller, daemon = parse_context(source), parse_context(DAEMON)
    vm = parse_context("system_u:system_r:svirt_t:s0:c1,c2")
    assert ask(caller, daemon, "svirtd").allowed == on_daemon
    on_vm = {"read", "acquire", "release", "forget", "connect", "group"} if on_daemon else set()
    assert ask(caller, vm, "svirtd").allowed == on_vm


def test_a_domain_that_the_policy_does_not_let(
    client: Client, audit: Audit, journal: Callable[[str], str]
) -> None:
    """As root, too: refused, each told to the audit log and to the journal."""
    vm = Qemu(client, "theirs", disk("a"))
    path = disk("b")
    before = label(path)
    disks = ["aa{sv}", "1", "1", "path", "s", str(path)]
    for permission, target, call in (
        ("read", DAEMON, ["ListVMs"]),
        ("launch", DAEMON, ["Launch", "sas" + disks[0] + "a{sv}", "x", "1", QEMU, *disks[1:], "0"]),
        ("release", vm.context, ["Release", "sa{sv}", "theirs", "0"]),
    ):
        with audit.denied(permission, STRANGER, target, "svirtd"):
            said = STRANGE.calls("/org/svirt1", "org.svirt1.Manager", *call)
        assert said.code != 0
        assert said.err == "Call failed: Access denied\n"
    assert label(path) == before
    assert client.vms() == {"theirs": "running"}
    vm.end()

    (text,) = [one.text for one in audit.denials() if "{ release }" in one.text]
    assert text.startswith("type=USER_AVC ")
    assert re.search(r'subj=\S+:svirtd_t:\S+ msg=.*uid=0 spid=\d+ vm="theirs" scontext=', text)
    assert re.search(r'permissive=0 exe="/usr/bin/python3\S*" sauid=0 ', text)
    refused = journal(REFUSED)
    for permission in ("read", "launch", "release"):
        told = f"does not let guest_caller_t {permission} (svirtd {{ {permission} }})"
        assert told in refused


@pytest.mark.usefixtures("allowed")
def test_a_domain_that_the_policy_lets(client: Client, audit: Audit) -> None:
    """By a switch of another module's, heard of at once."""
    before = len(audit.denials())
    vm = Qemu(client, "theirs", disk("a"))
    vm.close()
    assert [one["name"] for one in STRANGE.svirtctl("list")["vms"]] == ["theirs"]
    STRANGE.svirtctl("acquire", "mine", "--disk", disk("b"))
    STRANGE.svirtctl("release", "mine")
    STRANGE.svirtctl("release", "theirs")
    assert client.vms() == {}
    assert len(audit.denials()) == before


def test_the_feature_is_announced(client: Client) -> None:
    assert "object-manager" in client.manager()["Features"]
