# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each goal through the service: what it gives, and a VM that was broken out of in it.

Type and unit hold one without the other: test_l_types has the types alone; here a goal of the
site's has systemd alone, under the reference policy's own domain.
"""

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd.host.bus import Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.sealed import Attempt, not_written, stopped
from tests.guest.inside.vms import QEMU, SIZE, Captive, Machine, Qemu, captive, disk
from tests.support import Client, label, unwrap, wait_for
from tests.zones import COMMON, PORT, Zone, ip

LAUNCH: Final = "sasaa{sv}a{sv}"
ADDRESS: Final = "192.0.2.1"
SITE: Final = Path("/etc/svirtd/goals.d/site.toml")
# Nothing but what systemd keeps a unit in: the type is that of any VM.
LONE: Final = """
[goal.lone]
description = "Without a network, by systemd alone"
network = "none"
[goal.few]
description = "Few devices, by systemd alone"
devices = ["/dev/kvm"]
"""
DENIED: Final = {"EACCES", "EPERM"}


def text(**values: str) -> dict[str, Variant]:
    return {key: Variant("s", value) for key, value in values.items()}


def launched(
    client: Client,
    name: str,
    goal: str,
    *given: dict[str, Variant],
    groups: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Captive:
    """A captive that was launched with a goal; further words stand behind its command."""
    options = text(goal=goal) | ({"groups": Variant("as", list(groups))} if groups else {})
    client.call("Launch", LAUNCH, name, [*captive(), *words], list(given), options)
    vm = Captive.__new__(Captive)
    Machine.__init__(vm, client, name, "control")
    assert vm.label() == vm.context
    return vm


def interfaces(vm: Machine) -> list[str]:
    """The network interfaces that a VM's process has."""
    lines = Path(f"/proc/{vm.pid}/net/dev").read_text("utf-8").splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


def goals(client: Client) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in unwrap(client.call("ListGoals")[0])}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port of the host's that answers, on every address."""
    ip("link add goals0 type dummy")
    ip(f"address add {ADDRESS}/24 dev goals0")
    ip("link set goals0 up")
    with socket.create_server(("0.0.0.0", 0), backlog=64) as server:
        yield int(server.getsockname()[1])
    ip("link delete goals0")


@pytest.fixture
def site(client: Client) -> Iterator[None]:
    """Goals of the site's."""
    SITE.parent.mkdir(exist_ok=True)
    SITE.write_text(LONE, "utf-8")
    systemctl("reload", "svirtd.service")
    wait_for("the goals are read", lambda: "lone" in goals(client))
    yield
    SITE.unlink()
    systemctl("reload", "svirtd.service")
    wait_for("they are gone", lambda: "lone" not in goals(client))


def test_the_policy_keeps_every_built_in(client: Client, site: None) -> None:
    found = goals(client)
    assert {name: one["problem"] for name, one in found.items()} == dict.fromkeys(found, "")
    assert len(found) == 7


def test_a_type_that_is_none_of_vms_is_refused(client: Client) -> None:
    SITE.parent.mkdir(exist_ok=True)
    for type_, why in (
        ("unconfined_t", "may"),
        ("init_t", "may"),
        ("svirtd_t", "may"),
        ("nothing_t", "does not accept the context"),
        ("svirt_image_t", "does not accept the context"),
    ):
        SITE.write_text(f'[goal.odd]\nprocess-type = "{type_}"\n', "utf-8")
        systemctl("reload", "svirtd.service")
        wait_for("the goal is read", lambda: goals(client).get("odd", {}).get("problem"))
        refused = client.error("Acquire", "saa{sv}a{sv}", "vm", [], text(goal="odd"))
        assert refused.name == "org.svirt1.Error.LabelRefused", (type_, refused)
        assert "goal 'odd' cannot be kept by the loaded policy" in refused.text
        assert why in refused.text
        refused = client.error("Launch", LAUNCH, "vm", captive(), [], text(goal="odd"))
        assert refused.name != "org.svirt1.Error.UnitFailed", (type_, refused)
        assert client.vms() == {}
        SITE.unlink()
        systemctl("reload", "svirtd.service")
        wait_for("it is gone", lambda: "odd" not in goals(client))


# -- offline ------------------------------------------------------------------------------------


def no_network(me: str, port: int) -> list[Attempt]:
    tcp, udp = ("create", me, "tcp_socket"), ("create", me, "udp_socket")
    return [
        (f"tcp('127.0.0.1', {port})", tcp),
        (f"tcp('{ADDRESS}', {port})", tcp),
        (f"udp('{ADDRESS}', {port})", udp),
        ("opened(socket.AF_PACKET, socket.SOCK_RAW, 0x300)", ("create", me, "packet_socket")),
        ("opened(socket.AF_VSOCK, socket.SOCK_STREAM)", ("create", me, "vsock_socket")),
        ("opened(socket.AF_UNIX, socket.SOCK_DGRAM)", ("create", me, "unix_dgram_socket")),
        ("enter('/proc/1/ns/net')", None),
    ]


def test_offline(client: Client, audit: Audit, port: int) -> None:
    own = disk("own")
    vm = launched(client, "vm", "offline", text(path=str(own)))
    assert ":svirtd_offline_t:" in vm.context
    assert interfaces(vm) == ["lo"]
    assert systemctl("show", "-P", "PrivateNetwork", "svirt-vm.service") == "yes"
    stopped(audit, vm, no_network(vm.context, port))
    assert vm.do(f"write('{own}')") == 5
    vm.end()


def test_without_a_network_by_systemd_alone(client: Client, port: int, site: None) -> None:
    """The type may use any network: the namespace has none."""
    free = launched(client, "free", "isolated")
    free.do(f"tcp('{ADDRESS}', {port})")
    free.end()
    vm = launched(client, "vm", "lone")
    assert ":svirt_t:" in vm.context
    assert interfaces(vm) == ["lo"]
    assert vm.fails(f"tcp('{ADDRESS}', {port})") == "ENETUNREACH"
    # Its own loopback, and not the host's.
    assert vm.fails(f"tcp('127.0.0.1', {port})") == "ECONNREFUSED"
    vm.end()


def test_few_devices_by_systemd_alone(client: Client, site: None) -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    free = launched(client, "free", "isolated")
    free.do("os.close(os.open('/dev/net/tun', os.O_RDWR))")
    free.end()
    vm = launched(client, "vm", "few")
    assert vm.fails("os.open('/dev/net/tun', os.O_RDWR)") == "EPERM"
    vm.do("os.close(os.open('/dev/null', os.O_RDWR))")
    vm.end()


# -- forensic and view-only ---------------------------------------------------------------------


def findings(client: Client) -> list[dict[str, Any]]:
    return [unwrap(body[0]) for body in client.seen("DriftFound")]


def test_forensic(client: Client, audit: Audit, port: int) -> None:
    evidence = disk("evidence")
    before = evidence.read_bytes()
    client.listen()
    vm = launched(client, "vm", "forensic", text(path=str(evidence), id="e"))
    (held,) = client.properties("vm")["Resources"]
    assert held["digest"] == f"sha256:{hashlib.sha256(before).hexdigest()}"
    there = str(label(evidence))
    assert (":svirtd_view_t:" in vm.context, ":virt_content_t:" in there) == (True, True)
    assert vm.do(f"read('{evidence}')") == 512
    overlay = f"{vm.runtime}/e.overlay.qcow2"
    assert label(overlay) == vm.image_context
    assert vm.do(f"write('{overlay}')") == 5
    assert interfaces(vm) == ["lo"]
    other = launched(client, "other", "forensic")
    stopped(audit, vm, [*not_written(evidence, there), *no_network(vm.context, port)])
    stopped(
        audit,
        other,
        [
            (f"read('{evidence}')", ("read open", there, "file")),
            (f"read('{overlay}')", ("search", vm.image_context, "dir")),
        ],
    )
    other.end()
    vm.end()
    assert evidence.read_bytes() == before
    assert not os.path.exists(overlay)
    assert findings(client) == []


def test_evidence_that_root_alters_is_told(client: Client) -> None:
    evidence = disk("evidence")
    client.listen()
    vm = launched(client, "vm", "forensic", text(path=str(evidence)))
    with open(evidence, "r+b") as file:
        file.write(b"planted")
    vm.end()
    (found,) = wait_for("the finding", lambda: findings(client))
    assert (found["kind"], found["path"]) == ("altered", str(evidence))


def test_what_is_written_over_evidence_is_kept_by_choice(client: Client, audit: Audit) -> None:
    evidence, kept = disk("evidence"), disk("kept")
    before = evidence.read_bytes()
    kept.write_bytes(b"")
    original = label(kept)
    given = text(path=str(evidence), id="e", overlay=str(kept))
    vm = launched(client, "vm", "forensic", given)
    assert label(kept) == vm.image_context
    assert vm.do(f"append('{kept}')") == 4
    vm.end()
    assert label(kept) == original
    assert kept.read_bytes().startswith(b"QFI\xfb")
    assert kept.read_bytes().endswith(b"more")
    assert evidence.read_bytes() == before
    kept.unlink()


def overlaid(name: str) -> list[str]:
    """A command that runs QEMU with a resource's overlay as d0."""
    file = {"driver": "file", "filename": f"{{resource.{name}}}", "locking": "off"}
    node = {"driver": "qcow2", "node-name": "d0", "file": file}
    argv = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-m", "32"]
    argv += ["-qmp", "unix:{runtime}/qmp,server=on,wait=off", "-blockdev", json.dumps(node)]
    return argv


@pytest.mark.parametrize("goal", ["forensic", "view-only"])
def test_a_qemu_writes_over_what_it_only_reads(client: Client, goal: str) -> None:
    documents = disk("documents")
    before = documents.read_bytes()
    client.listen()
    given = [text(path=str(documents), id="d")]
    client.call("Launch", LAUNCH, "vm", overlaid("d"), given, text(goal=goal))
    vm = Qemu.__new__(Qemu)
    Machine.__init__(vm, client, "vm", "qmp")
    vm.greet()
    assert vm.reads() == vm.writes() == ""
    written = os.stat(f"{vm.runtime}/d.overlay.qcow2").st_size
    assert written >= SIZE
    vm.end()
    assert documents.read_bytes() == before
    assert not os.path.exists(vm.runtime)
    assert findings(client) == []


def test_view_only(client: Client, audit: Audit, port: int) -> None:
    """It reads what a group's other members write, and leaves nothing behind."""
    client.call("CreateGroup", "sa{sv}", "desk", {})
    shared, document = disk("shared"), disk("document")
    of_group = text(path=str(shared), access="group", group="desk")
    writer = launched(client, "writer", "isolated", of_group, groups=["desk"])
    assert writer.do(f"write('{shared}')") == 5
    viewer = launched(
        client, "viewer", "view-only", of_group, text(path=str(document), id="d"), groups=["desk"]
    )
    assert viewer.do(f"read('{shared}')") == viewer.do(f"read('{document}')") == 512
    overlay = f"{viewer.runtime}/d.overlay.qcow2"
    assert viewer.do(f"write('{overlay}')") == 5
    attempts = [
        *not_written(shared, str(label(shared))),
        *not_written(document, str(label(document))),
        *no_network(viewer.context, port),
        (f"connect('{writer.runtime}/control')", ("search", writer.image_context, "dir")),
        (f"os.kill({writer.pid}, signal.SIGKILL)", ("sigkill", writer.context, "process")),
        (f"attach({writer.pid})", ("ptrace", writer.context, "process")),
    ]
    stopped(audit, viewer, attempts)
    runtime = viewer.runtime
    viewer.end()
    assert not os.path.exists(runtime)
    writer.end()
    client.call("DeleteGroup", "sa{sv}", "desk", {})


# -- zones --------------------------------------------------------------------------------------


@pytest.fixture
def zones(client: Client) -> Iterator[tuple[Zone, Zone]]:
    made = Zone("red", "10.1.5.1"), Zone("blue", "10.1.6.1")
    for zone in made:
        options = text(namespace=zone.path)
        client.call("CreateGroup", "sa{sv}", zone.name, options)
    yield made
    for zone in made:
        client.call("DeleteGroup", "sa{sv}", zone.name, {})
        zone.close()


def who(vm: Captive, address: str = COMMON) -> str:
    """Who answers a VM at an address."""
    connected = f"socket.create_connection(('{address}', {PORT}), timeout=10)"
    answer: str = vm.do(f"(lambda s: (s.recv(16).decode(), s.close())[0])({connected})")
    return answer


def test_two_zones_with_interfaces_of_their_own(
    client: Client, audit: Audit, port: int, zones: tuple[Zone, Zone]
) -> None:
    red = launched(client, "r", "network-zone", groups=["red"])
    blue = launched(client, "b", "network-zone", groups=["blue"])
    assert ":svirtd_zone_t:" in red.context
    assert interfaces(red) == ["lo", "red0"]
    assert interfaces(blue) == ["blue0", "lo"]
    # The same address, and two networks: nobody's packets get to the other.
    assert (who(red), who(blue)) == ("red", "blue")
    assert (who(red, "10.1.5.1"), who(blue, "10.1.6.1")) == ("red", "blue")
    for vm, address in ((red, "10.1.6.1"), (blue, "10.1.5.1")):
        assert vm.fails(f"tcp('{address}', {PORT})") == "EHOSTUNREACH"
        # Nor to the host's.
        assert vm.fails(f"tcp('{ADDRESS}', {port})") == "ENETUNREACH"
        assert vm.fails(f"tcp('127.0.0.1', {port})") == "ECONNREFUSED"
    nsfs = "*:nsfs_t:*"
    attempts: list[Attempt] = [
        ("enter('/run/netns/blue')", ("read open", nsfs, "file")),
        (f"enter('/proc/{blue.pid}/ns/net')", ("search", blue.context, "dir")),
        ("enter('/proc/1/ns/net')", None),
        ("call('unshare', 0x40000000)", None),
        ("opened(socket.AF_VSOCK, socket.SOCK_STREAM)", ("create", red.context, "vsock_socket")),
        (
            "opened(socket.AF_PACKET, socket.SOCK_RAW, 0x300)",
            ("create", red.context, "packet_socket"),
        ),
        ("add_address()", ("nlmsg_write", red.context, "netlink_route_socket")),
        ("connect('/run/dbus/system_bus_socket')", ("write", "*", "sock_file")),
        (f"connect('{blue.runtime}/control')", ("search", blue.image_context, "dir")),
        (f"os.kill({blue.pid}, signal.SIGKILL)", ("sigkill", blue.context, "process")),
    ]
    stopped(audit, red, attempts)
    red.end()
    blue.end()


def test_zones_do_not_meet(client: Client, zones: tuple[Zone, Zone]) -> None:
    client.call("CreateGroup", "sa{sv}", "plain", {})

    def refused(name: str, goal: str, *groups: str) -> Any:
        options = text(goal=goal) | {"groups": Variant("as", list(groups))}
        return client.error("Launch", LAUNCH, name, captive(), [], options)

    both = refused("vm", "network-zone", "red", "blue")
    assert both.name == "org.svirt1.Error.WallConflict"
    assert "zones 'blue' and 'red' would meet in VM 'vm'" in both.text
    assert "gives it the host's" in refused("vm", "isolated", "red").text
    assert "takes a group that is a zone" in refused("vm", "network-zone", "plain").text
    red = launched(client, "r", "network-zone", groups=["red", "plain"])
    shared = refused("b", "network-zone", "blue", "plain")
    assert shared.name == "org.svirt1.Error.WallConflict"
    assert "would share group 'plain', and networks would meet there" in shared.text
    assert "in no zone" in refused("b", "isolated", "plain").text
    red.end()
    launched(client, "b", "network-zone", groups=["blue", "plain"]).end()
    client.call("DeleteGroup", "sa{sv}", "plain", {})


def test_what_is_no_namespace_is_no_zone(client: Client, tmp_path: Path) -> None:
    for name, path, why in (
        ("file", "/etc/hostname", "cannot be used"),
        ("none", "/run/netns/none", "cannot be used"),
        ("uts", "/proc/1/ns/uts", "cannot be used"),
        ("open", f"{tmp_path}/netns", "others than root may write"),
    ):
        tmp_path.chmod(0o777)
        client.call("CreateGroup", "sa{sv}", name, text(namespace=path))
        options = text(goal="network-zone") | {"groups": Variant("as", [name])}
        refused = client.error("Launch", LAUNCH, "vm", captive(), [], options)
        assert why in refused.text, refused.text
        client.call("DeleteGroup", "sa{sv}", name, {})
