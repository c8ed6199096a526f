# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases: who is stopped loses what is over, who runs is reported, or released if asked for."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.support import GROUP, ROOT, VM, Client, Daemon, image, label, unwrap, wait_for

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
IDLE = ["/bin/sleep", "1000"]
GROUP_PATH = f"{ROOT}/group/g"


def in_s(seconds: float) -> Variant:
    return Variant("t", time.time_ns() // 1000 + int(seconds * 1_000_000))


def leased(path: Path, until: Variant, at_end: str = "report") -> list[dict[str, Variant]]:
    return [{"path": Variant("s", str(path)), "until": until, "at-end": Variant("s", at_end)}]


def expired(client: Client) -> list[dict[str, Any]]:
    found = [unwrap(body[0]) for body in client.seen("DriftFound")]
    return [one for one in found if one["kind"] == "expired"]


@pytest.fixture
def kept(daemon: Daemon, client: Client) -> Iterator[str]:
    """A persistent VM in group "g", granted for two seconds; gone at the end."""
    client.call("CreateGroup", "sa{sv}", "g", {})
    path = client.acquire("kept", persistent=Variant("b", True))
    yield path
    if client.vms()["kept"] != "reserved":
        client.release("kept")
    client.call("Forget", "sa{sv}", "kept", {})
    client.call("DeleteGroup", "sa{sv}", "g", {})


def granted(client: Client, until: Variant, at_end: str = "report") -> None:
    options = {"until": until, "at-end": Variant("s", at_end)}
    client.call("Grant", "sa{sv}", "kept", options, path=GROUP_PATH, interface=GROUP)


def test_a_hold_of_a_vm_that_does_not_run(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    until = in_s(3)
    client.call("Acquire", ACQUIRE, "vm", leased(disk, until), {})
    (held,) = client.properties("vm")["Resources"]
    assert (held["until"], held["at-end"]) == (until.value, "report")
    wait_for("it lost its disk", lambda: not client.vms())
    assert time.time_ns() // 1000 > until.value
    assert label(disk) is None


def test_a_hold_of_a_vm_that_runs_is_told_once(
    client: Client, daemon: Daemon, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.call("Launch", LAUNCH, "vm", IDLE, leased(disk, in_s(2)), {})
    (found,) = wait_for("it is told", lambda: expired(client))
    assert (found["vm"], found["path"]) == ("vm", str(disk))
    assert "leased until 20" in found["reason"]
    # Another one ends, so that everything is looked at again.
    client.call("Acquire", ACQUIRE, "other", leased(image(tmp_path / "b.img"), in_s(2)), {})
    wait_for("the other lost its disk", lambda: client.vms() == {"vm": "running"})
    assert len(expired(client)) == 1
    client.release("vm")


def test_a_hold_that_ends_what_runs(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    client.call("Launch", LAUNCH, "vm", IDLE, leased(disk, in_s(4), "stop"), {})
    assert client.vms() == {"vm": "running"}
    wait_for("it was released", lambda: not client.vms())
    assert label(disk) is None


def test_an_end_while_no_daemon_runs(client: Client, own_daemon: Daemon, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    until = in_s(3)
    client.call("Acquire", ACQUIRE, "vm", leased(disk, until), {})
    own_daemon.kill()
    wait_for("it is over", lambda: time.time_ns() // 1000 > until.value)
    assert label(disk) is not None
    own_daemon.start()
    wait_for("it lost its disk", lambda: not client.vms())
    assert label(disk) is None


def test_a_grant_of_a_vm_that_is_stopped(client: Client, kept: str) -> None:
    granted(client, in_s(4))
    client.call("JoinGroup", "sa{sv}", "g", {}, path=kept, interface=VM)
    assert client.properties("kept")["LastingGroups"] == ["g"]
    wait_for("it is out", lambda: client.properties("kept")["LastingGroups"] == [])
    options = {"groups": Variant("as", ["g"])}
    refused = client.error("Acquire", ACQUIRE, "kept", [], options)
    assert "in group 'g' ended at 20" in refused.text
    refused = client.error("JoinGroup", "sa{sv}", "g", {}, path=kept, interface=VM)
    assert "have it granted again" in refused.text


@pytest.mark.parametrize("at_end", ["report", "stop"])
def test_a_grant_of_a_vm_that_runs(client: Client, kept: str, at_end: str) -> None:
    client.listen()
    granted(client, in_s(4), at_end)
    client.call("JoinGroup", "sa{sv}", "g", {}, path=kept, interface=VM)
    client.call("Launch", LAUNCH, "kept", IDLE, [], {})
    assert client.properties("kept")["Groups"] == ["g"]
    if at_end == "stop":
        wait_for("it was released", lambda: client.vms()["kept"] == "reserved")
        assert expired(client) == []
    else:
        (found,) = wait_for("it is told", lambda: expired(client))
        assert (found["vm"], found["path"]) == ("kept", "group:g")
        now = client.properties("kept")
        assert (now["State"], now["Groups"], now["LastingGroups"]) == ("running", ["g"], [])
        client.release("kept")
    client.call("Acquire", ACQUIRE, "kept", [], {})
    assert client.properties("kept")["Groups"] == []


def test_what_is_over_is_not_given(client: Client, kept: str, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    refused = client.error("Acquire", ACQUIRE, "vm", leased(disk, in_s(-1)), {})
    assert "'until' is over already, 20" in refused.text
    options = {"until": in_s(-1)}
    refused = client.error("Grant", "sa{sv}", "kept", options, path=GROUP_PATH, interface=GROUP)
    assert "'until' is over already" in refused.text
    for options in (
        {"until": Variant("t", 2**63)},
        {"at-end": Variant("s", "stop")},
        {"until": in_s(9), "at-end": Variant("s", "burn")},
    ):
        refused = client.error("Grant", "sa{sv}", "kept", options, path=GROUP_PATH, interface=GROUP)
        assert refused.name.endswith("InvalidArgs")
    assert label(disk) is None


@pytest.mark.parametrize("launched", [False, True])
def test_one_hold_ends_and_the_vm_goes_on(client: Client, tmp_path: Path, launched: bool) -> None:
    """A stopped VM loses what is over; one that runs does so where the lease says it."""
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    wanted = leased(disk, in_s(4), "detach" if launched else "report")
    wanted.append({"path": Variant("s", str(other))})
    if launched:
        client.call("Launch", LAUNCH, "vm", IDLE, wanted, {})
    else:
        client.call("Acquire", ACQUIRE, "vm", wanted, {})
    state = client.vms()["vm"]
    wait_for("it was detached", lambda: label(disk) is None)
    (held,) = wait_for(
        "one is left",
        lambda: [one for one in [client.properties("vm")["Resources"]] if len(one) == 1],
    )[0]
    assert held["path"] == str(other)
    assert label(other) == held["context"]
    assert client.vms() == {"vm": state}
    client.release("vm")


def test_a_grant_does_not_end_by_detaching(client: Client, kept: str) -> None:
    options = {"until": in_s(9), "at-end": Variant("s", "detach")}
    refused = client.error("Grant", "sa{sv}", "kept", options, path=GROUP_PATH, interface=GROUP)
    assert "'detach' is for resources" in refused.text
