# SPDX-License-Identifier: LGPL-2.1-or-later
"""The goals' domains, each alone: a VM that was broken out of tries to get past its type.

No namespace, no filter of systemd's and no rule of svirtd's is in the way, and it runs as root:
what is stopped in here, the type has stopped. The same under svirt_t shows that the attempts work.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from svirtd.host.kernel import Kernel
from tests.guest.inside import devices
from tests.guest.inside.audit import Audit
from tests.guest.inside.sealed import (
    Attempt,
    Captured,
    Monitored,
    connect_at,
    not_written,
    own_context_at,
    stopped,
)
from tests.guest.inside.vms import FOLDER, disk
from tests.support import label, set_label

LEVEL: Final = "s0:c1,c2"
OTHER: Final = "s0:c1,c3"
ADDRESS: Final = "192.0.2.1"
NAMESPACE: Final = "/run/netns/sealed-other"
ABSTRACT: Final = "\\0sealed-host"
WRITES: Final = {"svirtd_view_t": "svirtd_scratch_t"}
SEALED: Final = ("svirtd_offline_t", "svirtd_view_t")
GOALS: Final = (*SEALED, "svirtd_zone_t")


def context(kind: str, level: str = LEVEL) -> str:
    return f"system_u:object_r:{kind}:{level}"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port of the host's that answers, on every address; one of them is a network card's."""
    subprocess.run(["modprobe", "-a", "tun", "vhost_vsock"], check=True)
    with (
        devices.card(ADDRESS),
        devices.namespace("sealed-other"),
        socket.create_server(("0.0.0.0", 0), backlog=64) as server,
    ):
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def abstract() -> Iterator[None]:
    """Somebody of the host's who listens where no file protects it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0sealed-host")
        server.listen(16)
        yield


@pytest.fixture
def captured(request: pytest.FixtureRequest) -> Iterator[Captured]:
    """A captive under the domain that the test names."""
    domain: str = request.param
    vm = Captured("taken", domain, LEVEL, writes=WRITES.get(domain, "svirt_image_t"))
    yield vm
    vm.end()


def in_domain(*domains: str) -> pytest.MarkDecorator:
    """Have the test done with a captive under each of these."""
    return pytest.mark.parametrize("captured", domains, indirect=True)


def sockets(me: str, *names: str) -> list[Attempt]:
    """Sockets, and that making one is what is denied."""
    made = {
        "tcp": ("socket.AF_INET, socket.SOCK_STREAM", "tcp_socket"),
        "tcp6": ("socket.AF_INET6, socket.SOCK_STREAM", "tcp_socket"),
        "udp": ("socket.AF_INET, socket.SOCK_DGRAM", "udp_socket"),
        "udp6": ("socket.AF_INET6, socket.SOCK_DGRAM", "udp_socket"),
        "raw": ("socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP", "rawip_socket"),
        "icmp": (
            "socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP",
            "icmp_socket rawip_socket",
        ),
        "sctp": ("socket.AF_INET, socket.SOCK_STREAM, 132", "sctp_socket rawip_socket"),
        "packet": ("socket.AF_PACKET, socket.SOCK_RAW, 0x300", "packet_socket"),
        "vsock": ("socket.AF_VSOCK, socket.SOCK_STREAM", "vsock_socket"),
        "bluetooth": ("socket.AF_BLUETOOTH, socket.SOCK_RAW, 1", "bluetooth_socket"),
        "can": ("socket.AF_CAN, socket.SOCK_RAW, 1", "can_socket"),
        "tipc": ("socket.AF_TIPC, socket.SOCK_STREAM", "tipc_socket"),
        "xdp": ("44, socket.SOCK_RAW", "xdp_socket"),
        "smc": ("43, socket.SOCK_STREAM", "smc_socket"),
        "alg": ("socket.AF_ALG, socket.SOCK_SEQPACKET", "alg_socket"),
        "route": ("socket.AF_NETLINK, socket.SOCK_RAW, 0", "netlink_route_socket"),
        "generic": ("socket.AF_NETLINK, socket.SOCK_RAW, 16", "netlink_generic_socket"),
        "netfilter": ("socket.AF_NETLINK, socket.SOCK_RAW, 12", "netlink_netfilter_socket"),
        "diag": ("socket.AF_NETLINK, socket.SOCK_RAW, 4", "netlink_tcpdiag_socket"),
        "uevent": ("socket.AF_NETLINK, socket.SOCK_RAW, 15", "netlink_kobject_uevent_socket"),
        "datagram": ("socket.AF_UNIX, socket.SOCK_DGRAM", "unix_dgram_socket"),
    }
    return [(f"opened({made[name][0]})", ("create", me, made[name][1])) for name in (names or made)]


def out_of_here(me: str, victim: Captured) -> list[Attempt]:
    """Ways to others that no domain of a goal's has."""
    host = "unconfined_u:unconfined_r:unconfined_t:*"
    return [
        *sockets(me, "raw", "packet", "vsock", "bluetooth", "can", "tipc", "xdp", "alg"),
        *sockets(me, "generic", "netfilter", "diag", "uevent", "datagram"),
        (f"connect('{ABSTRACT}')", ("connectto", host, "unix_stream_socket")),
        ("connect('/run/dbus/system_bus_socket')", ("write", "*", "sock_file")),
        ("connect('/run/systemd/journal/stdout')", ("write", "*", "sock_file")),
        ("connect('/run/systemd/private')", ("write", "*", "sock_file")),
        ("connect('/run/systemd/userdb/io.systemd.DynamicUser')", ("write", "*", "sock_file")),
        (f"connect('{victim.runtime}/control')", ("search", victim.image_context, "dir")),
        (f"os.listdir('{victim.runtime}')", ("read", victim.image_context, "dir")),
        (
            "os.open('/dev/vhost-vsock', os.O_RDWR)",
            ("read write", "*:vhost_device_t:*", "chr_file"),
        ),
        (f"enter('{NAMESPACE}')", ("read open", "*:nsfs_t:*", "file")),
        ("enter('/proc/1/ns/net')", None),
        ("call('unshare', 0x40000000)", None),
        (f"attach({victim.pid})", ("ptrace", victim.context, "process")),
        (f"os.kill({victim.pid}, signal.SIGKILL)", ("sigkill", victim.context, "process")),
        (f"read('/proc/{victim.pid}/mem')", ("search", victim.context, "dir")),
        (f"become({victim.context!r})", ("setcurrent dyntransition", "*", "process")),
        ("become('system_u:system_r:svirt_t:s0:c1,c2')", ("setcurrent", "*", "process")),
        ("run('/usr/bin/true')", ("execute", "*:bin_t:*", "file")),
        ("read('/etc/shadow')", ("read open", "*:shadow_t:*", "file")),
        ("read('/etc/passwd')", ("read open", "*:etc_t:*", "file")),
    ]


@in_domain(*SEALED)
def test_no_network(captured: Captured, audit: Audit, port: int) -> None:
    me = captured.context
    tcp, udp = ("create", me, "tcp_socket"), ("create", me, "udp_socket")
    attempts = [
        (f"tcp('127.0.0.1', {port})", tcp),
        (f"tcp('{ADDRESS}', {port})", tcp),
        (f"tcp('::1', {port})", tcp),
        (f"udp('127.0.0.1', {port})", udp),
        (f"udp('{ADDRESS}', {port})", udp),
        ("os.open('/dev/net/tun', os.O_RDWR)", ("read write", "*:tun_tap_device_t:*", "chr_file")),
        ("os.open('/dev/vhost-net', os.O_RDWR)", ("read write", "*:vhost_device_t:*", "chr_file")),
        ("add_address()", ("create", me, "netlink_route_socket")),
        *sockets(me),
    ]
    stopped(audit, captured, attempts)


@in_domain(*GOALS)
def test_nobody_else(captured: Captured, audit: Audit, port: int, abstract: None) -> None:
    domain = captured.context.split(":")[2]
    victim = Captured("victim", domain, OTHER, writes=WRITES.get(domain, "svirt_image_t"))
    others = disk("others", context("svirt_image_t", OTHER))
    documents = disk("documents", context("virt_content_t", OTHER))
    attempts = out_of_here(captured.context, victim)
    for path in (others, documents):
        target = str(label(path))
        attempts += [
            (f"read('{path}')", ("read open", target, "file")),
            (f"write('{path}')", ("write open", target, "file")),
        ]
    stopped(audit, captured, attempts)
    assert victim.do("os.getpid()") == victim.pid
    victim.end()


@in_domain(*GOALS)
def test_no_namespace_of_its_own(captured: Captured, audit: Audit) -> None:
    """Where it would be root, and could make sockets and devices of other kinds."""
    me, user, network = (
        captured.context,
        "call('unshare', 0x10000000)",
        "call('unshare', 0x40000000)",
    )
    if Kernel().has_class("user_namespace"):
        stopped(audit, captured, [(user, ("create", me, "user_namespace"))])
    else:
        # An older policy does not know these, and what it does not know it does not forbid. There
        # is nothing to be had in there.
        captured.do(user)
        stopped(audit, captured, [(network, ("sys_admin", me, "cap_userns"))])


@in_domain("svirtd_offline_t", "svirtd_zone_t")
def test_its_own_disk_and_no_more(captured: Captured, audit: Audit) -> None:
    own, documents = disk("own", context("svirt_image_t")), disk("read", context("virt_content_t"))
    assert captured.do(f"write('{own}')") == 5
    assert captured.do(f"read('{documents}')") == 512
    there = context("virt_content_t")
    attempts = [
        (f"write('{documents}')", ("write", there, "file")),
        (f"append('{documents}')", ("append", there, "file")),
        (f"os.chmod('{documents}', 0o666)", ("setattr", there, "file")),
        (f"relabel('{own}', '{context('svirt_image_t', OTHER)}')", ("relabelfrom", "*", "file")),
    ]
    stopped(audit, captured, attempts)


@pytest.fixture
def evidence() -> Iterator[dict[str, Path]]:
    """What a viewer may read and not write: its own, by type, in a folder that it may write."""
    folder = FOLDER / "sealed"
    folder.mkdir(parents=True)
    made = {
        kind: disk(f"sealed/{kind}", context(kind)) for kind in ("svirt_image_t", "virt_content_t")
    }
    set_label(folder, context("svirtd_scratch_t"))
    yield made
    subprocess.run(["rm", "-r", folder], check=True)


@in_domain("svirtd_view_t")
def test_evidence_is_not_written(
    captured: Captured, audit: Audit, evidence: dict[str, Path]
) -> None:
    folder = FOLDER / "sealed"
    before = {kind: path.read_bytes() for kind, path in evidence.items()}
    attempts: list[Attempt] = []
    for kind, path in evidence.items():
        there = context(kind)
        assert captured.do(f"read('{path}')") == 512
        attempts += [
            *not_written(path, there),
            (f"os.utime('{path}', (0, 0))", ("setattr", there, "file")),
            (f"os.setxattr('{path}', 'user.mark', b'x')", ("setattr", there, "file")),
            (f"os.unlink('{path}')", ("unlink", there, "file")),
            (f"os.link('{path}', '{folder}/link')", ("link", there, "file")),
            (f"os.rename('{path}', '{folder}/gone')", ("rename", there, "file")),
        ]
    # Put its own file in the place of the evidence.
    assert captured.do(f"os.close(os.open('{folder}/own', os.O_CREAT | os.O_RDWR))") is None
    path = evidence["virt_content_t"]
    attempts.append((f"os.replace('{folder}/own', '{path}')", ("unlink", "*", "file")))
    stopped(audit, captured, attempts)
    assert {kind: path.read_bytes() for kind, path in evidence.items()} == before
    # What it may write is its own.
    assert captured.do(f"write('{folder}/own')") == 5


@in_domain("svirtd_view_t")
def test_evidence_on_a_block_device_is_not_written(captured: Captured, audit: Audit) -> None:
    with devices.volume(disk("loop")) as node:
        for kind in ("svirt_image_t", "virt_content_t"):
            set_label(node, context(kind))
            assert captured.do(f"read('{node}')") == 512
            stopped(
                audit,
                captured,
                [
                    (f"write('{node}')", ("write", context(kind), "blk_file")),
                    (f"reopen('{node}')", ("write", context(kind), "blk_file")),
                ],
            )


@in_domain("svirtd_view_t")
def test_what_another_viewer_wrote_is_not_read(captured: Captured, audit: Audit) -> None:
    kept = disk("kept", context("svirtd_scratch_t", OTHER))
    there = str(label(kept))
    stopped(
        audit,
        captured,
        [
            (f"read('{kept}')", ("read open", there, "file")),
            (f"write('{kept}')", ("write open", there, "file")),
        ],
    )
    kept.unlink()


@in_domain(*SEALED)
def test_a_connection_that_somebody_hands_in(captured: Captured, audit: Audit, port: int) -> None:
    """An owner, or who has taken his account, passes the VM a socket that is connected already."""
    path = f"{captured.runtime}/offer"
    captured.do(f"offer('{path}')")
    host = "unconfined_u:unconfined_r:unconfined_t:*"
    with audit.denied("use", captured.context, host, "fd"):
        with (
            socket.create_connection(("127.0.0.1", port)) as network,
            connect_at(own_context_at(LEVEL), path) as stream,
        ):
            socket.send_fds(stream, [b"."], [network.fileno()])
        assert captured.do("taken()") == 0


@in_domain("svirtd_zone_t")
def test_a_zone_is_a_network_and_nothing_else(captured: Captured, audit: Audit, port: int) -> None:
    captured.do(f"tcp('127.0.0.1', {port})")
    captured.do(f"tcp('{ADDRESS}', {port})")
    assert captured.do(f"udp('{ADDRESS}', {port})") == 3
    for family, kind in (("AF_INET6", "SOCK_STREAM"), ("AF_NETLINK", "SOCK_RAW")):
        captured.do(f"opened(socket.{family}, socket.{kind})")
    # A tap that its administrator made, which another VM of the zone had before.
    with devices.tap("sealedtap", os.getuid()):
        before = Captured("before", "svirtd_zone_t", OTHER)
        before.do("tap('sealedtap')")
        before.end()
        captured.do("tap('sealedtap')")
    me = captured.context
    attempts = [
        ("tap('mine')", None),
        ("add_address()", ("nlmsg_write", me, "netlink_route_socket")),
        ("os.open('/dev/vhost-net', os.O_RDWR)", ("read write", "*:vhost_device_t:*", "chr_file")),
    ]
    stopped(audit, captured, attempts)


@in_domain("svirt_t")
def test_the_attempts_work_where_they_may(
    captured: Captured, audit: Audit, port: int, evidence: dict[str, Path]
) -> None:
    """Under the reference policy's own domain, to which none of this is forbidden."""
    captured.do(f"tcp('127.0.0.1', {port})")
    captured.do(f"tcp('{ADDRESS}', {port})")
    captured.do(f"tcp('::ffff:{ADDRESS}', {port})")
    captured.do("opened(socket.AF_NETLINK, socket.SOCK_RAW)")
    captured.do("opened(socket.AF_UNIX, socket.SOCK_DGRAM)")
    captured.do("connect('/run/systemd/journal/stdout')")
    captured.do("run('/usr/bin/true')")
    captured.do("os.close(os.open('/dev/net/tun', os.O_RDWR))")
    assert captured.do("read('/etc/passwd')") == 512
    path = evidence["svirt_image_t"]
    assert captured.do(f"write('{path}')") == 5
    assert captured.do(f"append('{path}')") == 4
    assert captured.do(f"reopen('{path}')") == 5
    captured.do(f"os.chmod('{path}', 0o600)")
    captured.do(f"os.truncate('{path}', 512)")


@pytest.mark.parametrize("domain", GOALS)
def test_a_qemu_runs(domain: str, audit: Audit) -> None:
    writes = WRITES.get(domain, "svirt_image_t")
    own, evidence = disk("own", context(writes)), disk("evidence", context("virt_content_t"))
    vm = Monitored("qemu", domain, LEVEL, own, read_only=[evidence], writes=writes)
    assert vm.reads() == vm.writes() == ""
    assert vm.command("query-status")["return"]["status"] == "running"
    # The guest's view of the evidence is no way around the kernel's.
    with audit.denied("write", vm.context, context("virt_content_t")):
        answer = vm.command("blockdev-reopen", options=[_writable(evidence)])
        assert "Permission denied" in answer["error"]["desc"]
    vm.end()


def _writable(path: Path) -> dict[str, object]:
    file = {"driver": "file", "filename": str(path), "locking": "off"}
    return {"driver": "raw", "node-name": "d1", "read-only": False, "file": file}
