# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goals through the real daemon and systemd: what they allow, and what a unit is kept in."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests import svirtctl
from tests.bus.test_launch import SLEEP, show
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, resources, unwrap, wait_for

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
SITE = """
[goal.lab]
description = "Samples, without a network"
based-on = "isolated"
accesses = ["readonly", "exclusive"]
default-access = "readonly"
network = "none"
devices = ["/dev/null"]
"""


def goal(name: str) -> dict[str, Variant]:
    return {"goal": Variant("s", name)}


def plain(*disks: Path) -> list[dict[str, Variant]]:
    """Resources without an access: the goal's own."""
    return [{"path": Variant("s", str(disk))} for disk in disks]


@pytest.fixture
def site(sandbox: Sandbox, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose goals are in a folder of the test's own."""
    folder = tmp_path / "goals.d"
    folder.mkdir()
    (folder / "lab.toml").write_text(SITE)
    extra = f'[goals]\ndirectory = "{folder}"\n'
    daemon = Daemon(tmp_path / "daemon", extra=extra)
    daemon.start()
    yield daemon
    if daemon.process is not None:
        assert daemon.stop() == 0


def recorded() -> str:
    """What the daemon has recorded, of this boot."""
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = ["journalctl", "-b", "-t", "svirtd", "-o", "cat", "--no-pager"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def reload(daemon: Daemon, said: str) -> None:
    before = recorded().count(said)
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(said, lambda: recorded().count(said) > before)


def goals(client: Client) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in unwrap(client.call("ListGoals")[0])}


def test_list_goals_tells_all_of_them(site: Daemon, client: Client, tmp_path: Path) -> None:
    found = goals(client)
    assert list(found) == [
        *("isolated", "offline", "forensic", "view-only", "network-zone"),
        "lab",
    ]
    assert found["lab"] == {
        "name": "lab",
        "description": "Samples, without a network",
        "source": f"{tmp_path}/goals.d/lab.toml",
        "process-type": "svirt_t",
        "image-type": "svirt_image_t",
        "accesses": ["exclusive", "readonly"],
        "default-access": "readonly",
        "groups": "any",
        "network": "none",
        "devices": ["/dev/null"],
        "levels": "",
        "written": "kept",
        "digest": False,
        "problem": "",
    }
    assert found["forensic"]["devices"] == ["/dev/kvm"]
    assert found["isolated"]["devices"] == "host"
    assert "goals" in client.manager()["Features"]


def test_a_goal_gives_its_types_its_accesses_and_its_default(
    site: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.call("Acquire", ACQUIRE, "vm", plain(disk), goal("forensic"))
    vm = client.properties("vm")
    assert vm["Goal"] == "forensic"
    assert ":svirtd_view_t:" in vm["ProcessContext"]
    assert ":svirtd_scratch_t:" in vm["ImageContext"]
    (held,) = vm["Resources"]
    assert held["access"] == "readonly"
    assert ":virt_content_t:" in str(label(disk))
    client.release("vm")
    assert label(disk) is None
    for name, access in (("view-only", "exclusive"), ("forensic", "public"), ("lab", "public")):
        refused = client.error("Acquire", ACQUIRE, "vm", resources(disk, access=access), goal(name))
        assert refused.name == "org.svirt1.Error.ResourceRefused"
        assert f"goal {name!r} does not allow access {access!r}" in refused.text


def interfaces(pid: int) -> list[str]:
    """The network interfaces that a process sees."""
    lines = Path(f"/proc/{pid}/net/dev").read_text("utf-8").splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


@pytest.mark.parametrize("name", ["offline", "forensic", "view-only", "lab"])
def test_without_a_network_there_is_no_interface_but_lo(
    site: Daemon, client: Client, name: str
) -> None:
    _, unit = client.launch("vm", SLEEP, **goal(name))
    pid = client.properties("vm")["MainPID"]
    assert show(unit, "PrivateNetwork") == {"PrivateNetwork": "yes"}
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert interfaces(pid) == ["lo"]
    client.release("vm")


def test_devices_are_those_of_the_goal(site: Daemon, client: Client) -> None:
    _, unit = client.launch("vm", SLEEP, **goal("lab"))
    assert show(unit, "DevicePolicy", "DeviceAllow") == {
        "DevicePolicy": "closed",
        "DeviceAllow": "/dev/null rw",
    }
    client.release("vm")
    _, unit = client.launch("vm", SLEEP)
    assert show(unit, "DevicePolicy", "PrivateNetwork") == {
        "DevicePolicy": "auto",
        "PrivateNetwork": "no",
    }
    client.release("vm")


@pytest.mark.parametrize(
    "given",
    [
        {"PrivateNetwork": Variant("b", False)},
        {"NetworkNamespacePath": Variant("s", "/proc/1/ns/net")},
        {"JoinsNamespaceOf": Variant("as", ["dbus.service"])},
        {"DevicePolicy": Variant("s", "auto")},
        {"DeviceAllow": Variant("a(ss)", [["/dev/mem", "rw"]])},
        {"ExecStartPre": Variant("a(sasb)", [])},
        {"SELinuxContext": Variant("s", "system_u:system_r:svirt_t:s0")},
    ],
    ids=lambda given: next(iter(given)),
)
def test_no_property_loosens_what_a_goal_keeps_a_unit_in(
    site: Daemon, client: Client, given: dict[str, Variant]
) -> None:
    options = goal("lab") | {"properties": Variant("a{sv}", given)}
    refused = client.error("Launch", LAUNCH, "vm", SLEEP, [], options)
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert "may not be set" in refused.text
    assert client.vms() == {}


def test_a_zones_goal_takes_a_zone_and_a_launch(site: Daemon, client: Client) -> None:
    refused = client.error("Acquire", ACQUIRE, "vm", [], goal("network-zone"))
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert "which only a launch can" in refused.text
    refused = client.error("Launch", LAUNCH, "vm", SLEEP, [], goal("network-zone"))
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert client.vms() == {}


def test_goals_are_read_again(site: Daemon, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "goals.d" / "lab.toml"
    client.launch("vm", SLEEP, **goal("lab"))
    # A file with a mistake changes nothing, and says so loudly.
    file.write_text('[goal.lab]\nnetwork = "off"')
    reload(site, "configuration kept as it was")
    assert f"{file}: [goal.lab] network: 'off' cannot be used" in recorded()
    assert goals(client)["lab"]["network"] == "none"
    # A good one changes what comes, and not what runs.
    file.write_text('[goal.other]\nnetwork = "none"')
    reload(site, "configuration read again")
    assert "lab" not in goals(client)
    assert client.properties("vm")["Goal"] == "lab"
    refused = client.error("Acquire", ACQUIRE, "b", [], goal("lab"))
    assert "goal 'lab' is not known; known goals: forensic, isolated" in refused.text
    client.release("vm")


def test_a_bad_file_of_goals_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "goals.d").mkdir()
    (tmp_path / "goals.d" / "a.toml").write_text("[goal.a]\nx = 1")
    daemon = Daemon(tmp_path / "daemon", extra=f'[goals]\ndirectory = "{tmp_path}/goals.d"\n')
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20.0) == 2
    assert "a.toml: [goal.a] x: unknown key; expected one of accesses, based-on" in daemon.output()


def test_a_vm_of_a_goal_is_known_again_after_the_book_was_lost(
    site: Daemon, client: Client, tmp_path: Path
) -> None:
    """By the type of its processes: it must not be taken for a stranger's."""
    disk = image(tmp_path / "a.img")
    argv = [*SLEEP[:1], "1000"]
    client.call("Launch", LAUNCH, "vm", argv, plain(disk), goal("view-only"))
    before = client.properties("vm")
    site.kill()
    for file in site.book.parent.glob("book.sqlite*"):
        file.unlink()
    site.start()
    after = client.properties("vm")
    assert after["ProcessContext"] == before["ProcessContext"]
    assert after["ImageContext"] == before["ImageContext"]
    assert after["Goal"] in ("forensic", "view-only")  # they have one type
    client.release("vm")
    os.removexattr(disk, "security.selinux")


def test_svirtctl_goals(site: Daemon, client: Client, tmp_path: Path) -> None:
    listed = svirtctl.run("goals")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        *("GOAL", "isolated", "offline", "forensic", "view-only", "network-zone", "lab")
    ]
    one = svirtctl.run("goals", "lab").stdout
    for text in ("Samples, without a network", "lab.toml", "exclusive, readonly", "/dev/null"):
        assert text in one
    assert json.loads(svirtctl.run("goals", "lab", "--json").stdout)["network"] == "none"
    refused = svirtctl.run("goals", "x")
    assert refused.returncode == 1
    assert "goal 'x' is not known; known goals: isolated, offline" in refused.stderr


def test_svirtctl_plan_says_what_the_goal_does(site: Daemon, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    said = svirtctl.run("plan", "vm", "--goal", "forensic", "--disk", f"{disk}:readonly").stdout
    for text in ("svirtd_view_t", "/dev/kvm", "overlay", "taken before, compared after"):
        assert text in said
