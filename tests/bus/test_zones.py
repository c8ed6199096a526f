# SPDX-License-Identifier: LGPL-2.1-or-later
"""Zones: two networks with real interfaces on one host, and packets that do not cross."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, Variant
from tests.bus.test_goals import ACQUIRE, LAUNCH, goal, interfaces
from tests.bus.test_launch import SLEEP, show
from tests.support import VM, Client, Daemon, image, resources, wait_for
from tests.zones import COMMON, PORT, Zone

# Writes who answers at each address, or why nobody does, and stays.
ASKER = """
import os, socket, sys, time
out = open(sys.argv[1] + ".new", "w")
for address in sys.argv[3:]:
    try:
        with socket.create_connection((address, int(sys.argv[2])), timeout=5) as stream:
            print(address, stream.recv(16).decode(), file=out)
    except OSError as error:
        print(address, error.errno, file=out)
out.close()
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(1000)
"""


@pytest.fixture
def zones(daemon: Daemon, client: Client) -> Iterator[tuple[Zone, Zone]]:
    """Two zones, "red" and "blue", and a group "plain" that is none."""
    made = Zone("red", "10.1.5.1"), Zone("blue", "10.1.6.1")
    for zone in made:
        client.call("CreateGroup", "sa{sv}", zone.name, {"namespace": Variant("s", zone.path)})
    client.call("CreateGroup", "sa{sv}", "plain", {})
    yield made
    for name in ("red", "blue", "plain"):
        client.call("DeleteGroup", "sa{sv}", name, {})
    for zone in made:
        zone.close()


def options(of: str, *groups: str, **more: Variant) -> dict[str, Variant]:
    return goal(of) | {"groups": Variant("as", list(groups))} | more


def refused(client: Client, name: str, of: str, *groups: str) -> BusError:
    return client.error("Launch", LAUNCH, name, SLEEP, [], options(of, *groups))


def answers(client: Client, folder: Path, zone: str, addresses: Sequence[str]) -> dict[str, str]:
    """Have a VM of a zone ask who is at each address."""
    out = folder / f"{zone}.txt"
    argv = ["/usr/bin/python3", "-c", ASKER, str(out), str(PORT), *addresses]
    client.call("Launch", LAUNCH, zone, argv, [], options("network-zone", zone))
    wait_for("the answers", out.exists, 60.0)
    lines = (line.split(maxsplit=1) for line in out.read_text("utf-8").splitlines())
    return dict(lines)


def test_packets_do_not_cross(client: Client, tmp_path: Path, zones: tuple[Zone, Zone]) -> None:
    addresses = (COMMON, *(zone.only for zone in zones))
    got = {zone.name: answers(client, tmp_path, zone.name, addresses) for zone in zones}
    nobody = str(113)  # EHOSTUNREACH
    assert got == {
        "red": {COMMON: "red", "10.1.5.1": "red", "10.1.6.1": nobody},
        "blue": {COMMON: "blue", "10.1.5.1": nobody, "10.1.6.1": "blue"},
    }
    for zone in zones:
        vm = client.properties(zone.name)
        assert show(vm["Unit"], "NetworkNamespacePath") == {"NetworkNamespacePath": zone.path}
        assert interfaces(vm["MainPID"]) == sorted(["lo", f"{zone.name}0"])
        assert vm["Groups"] == [zone.name]
        client.release(zone.name)


def test_zones_meet_in_no_vm(client: Client, zones: tuple[Zone, Zone]) -> None:
    both = refused(client, "vm", "network-zone", "red", "blue")
    assert both.name == "org.svirt1.Error.WallConflict"
    assert "zones 'blue' and 'red' would meet in VM 'vm'" in both.text
    assert "takes a group, and VM 'vm' is in none" in refused(client, "vm", "network-zone").text
    none = refused(client, "vm", "network-zone", "plain")
    assert "takes a group that is a zone" in none.text
    host = refused(client, "vm", "isolated", "red")
    assert "the network of the zone or none, and goal 'isolated' gives it the host's" in host.text
    # Without any network it may be in one, for what its members share.
    _, unit = client.launch("vm", SLEEP, **options("offline", "red"))
    assert show(unit, "PrivateNetwork")["PrivateNetwork"] == "yes"
    client.release("vm")
    assert client.vms() == {}


def test_zones_meet_in_nothing_that_is_shared(
    client: Client, tmp_path: Path, zones: tuple[Zone, Zone]
) -> None:
    client.launch("r", SLEEP, **options("network-zone", "red", "plain"))
    for name, of, groups in (
        ("b", "network-zone", ("blue", "plain")),
        ("n", "isolated", ("plain",)),
        ("o", "offline", ("plain",)),
    ):
        error = refused(client, name, of, *groups)
        assert error.name == "org.svirt1.Error.WallConflict"
        assert "would share group 'plain', and networks would meet there" in error.text
    client.launch("r2", SLEEP, **options("network-zone", "red", "plain"))
    client.release("r2")
    client.release("r")
    client.launch("b", SLEEP, **options("network-zone", "blue", "plain"))
    client.release("b")


def test_joining_is_judged_too(client: Client, zones: tuple[Zone, Zone]) -> None:
    persistent = {"persistent": Variant("b", True)}
    for name in ("r", "b"):
        client.call("Acquire", ACQUIRE, name, [], persistent)
    paths = {name: client.call("GetVM", "s", name)[0] for name in ("r", "b")}

    def join(name: str, group: str) -> None:
        client.call("JoinGroup", "sa{sv}", group, {}, path=paths[name], interface=VM)

    def not_joined(name: str, group: str) -> str:
        error = client.error("JoinGroup", "sa{sv}", group, {}, path=paths[name], interface=VM)
        assert error.name == "org.svirt1.Error.WallConflict"
        return error.text

    join("r", "red")
    join("r", "plain")
    join("b", "blue")
    assert "would share group 'plain'" in not_joined("b", "plain")
    assert "would meet in VM 'r'" in not_joined("r", "blue")
    for name in ("r", "b"):
        for group in client.properties(name).get("LastingGroups", []):
            client.call("LeaveGroup", "sa{sv}", group, {}, path=paths[name], interface=VM)
        client.call("Forget", "sa{sv}", name, {})


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/hostname", "it must be a file of a namespace"),
        ("/run/netns/none", "no such file"),
        ("/proc/self/ns/net", "cannot be used"),
        ("{link}", "cannot be used"),
        ("{open}", "others than root may write"),
        ("/proc/1/ns/uts", "cannot be used"),
    ],
)
def test_what_is_no_namespace_is_no_zone(
    daemon: Daemon, client: Client, tmp_path: Path, zones: tuple[Zone, Zone], path: str, why: str
) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "link").symlink_to("/run/netns/red")
    os.makedirs("/run/zone-links", exist_ok=True)
    if not os.path.lexists("/run/zone-links/red"):
        os.symlink("/run/netns/red", "/run/zone-links/red")
    named = path.format(link="/run/zone-links/red", open=tmp_path / "netns")
    disk = image(tmp_path / "a.img")
    client.call("CreateGroup", "sa{sv}", "odd", {"namespace": Variant("s", named)})
    error = client.error(
        "Launch", LAUNCH, "vm", SLEEP, resources(disk), options("network-zone", "odd")
    )
    assert why in error.text
    assert client.vms() == {}
    client.call("DeleteGroup", "sa{sv}", "odd", {})
