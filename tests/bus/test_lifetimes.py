# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs that live as long as their caller, however many it has and whatever they hold."""

import os
from pathlib import Path

from svirtd.host.bus import Variant
from tests.support import Client, Daemon, image, label, wait_for

CALLER = Variant("s", "caller")


def test_releasing_one_vm_does_not_keep_another_from_ending(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    caller = Client()
    one, two = image(tmp_path / "one.img"), image(tmp_path / "two.img")
    caller.acquire("one", one, lifetime=CALLER)
    caller.acquire("two", two, lifetime=CALLER)
    client.release("one")
    caller.close()
    wait_for("the release", lambda: client.vms() == {})
    assert label(two) is None


def test_a_vm_that_holds_nothing_ends_with_its_caller(daemon: Daemon, client: Client) -> None:
    caller = Client()
    caller.acquire("vm", lifetime=CALLER)
    assert client.vms() == {"vm": "reserved"}
    caller.close()
    wait_for("the release", lambda: client.vms() == {})


def test_a_persistent_vm_is_reserved_when_its_caller_leaves(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    caller = Client()
    disk = image(tmp_path / "a.img")
    caller.acquire("vm", disk, lifetime=CALLER, persistent=Variant("b", True))
    caller.close()
    wait_for("the release", lambda: client.vms() == {"vm": "reserved"})
    assert label(disk) is None
    assert client.properties("vm")["Resources"] == []
    client.call("Forget", "sa{sv}", "vm", {})


def test_a_caller_that_left_while_svirtd_was_away(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    caller = Client()
    disk = image(tmp_path / "a.img")
    caller.acquire("labelled", disk, lifetime=CALLER)
    caller.acquire("empty", lifetime=CALLER)
    client.acquire("stays", lifetime=CALLER)
    own_daemon.kill()
    caller.close()
    own_daemon.start()
    assert client.vms() == {"stays": "reserved"}
    assert label(disk) is None
    client.release("stays")


def test_another_vm_of_the_same_name_is_not_the_callers(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    caller = Client()
    disk = image(tmp_path / "a.img")
    caller.acquire("vm", disk, lifetime=CALLER)
    caller.acquire("witness", lifetime=CALLER)
    client.release("vm")
    client.acquire("vm", disk)
    caller.close()
    wait_for("the end of the witness", lambda: client.vms() == {"vm": "labelled"})
    assert os.getxattr(disk, "security.selinux")
    client.release("vm")
