# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that takes its time, no descriptor left, a clock that is set: refused by name or done."""

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.attack import LIMITS, OWN, assert_refused, nothing_changes
from tests.bus.faults import ended, held, in_background, reached, restarted, running
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, resources, wait_for

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
ORIGINAL = "system_u:object_r:virt_image_t:s0"
YEAR_NS = 365 * 24 * 3600 * 10**9


class Notified:
    """What a daemon tells the service manager, taken in by a thread."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while text := self._socket.recv(4096).decode():
            self.lines += text.splitlines()

    def count(self, line: str) -> int:
        return self.lines.count(line)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Notified]:
    notified = Notified(tmp_path / "notify")
    yield notified
    notified.close()


@contextlib.contextmanager
def slow_disk(folder: Path) -> Iterator[tuple[Daemon, Path, Callable[[], None]]]:
    """A daemon under a watchdog, whose commits take until what this gives last is called, those of
    its start excepted."""
    trace = folder / "trace"
    with running(folder / "first", failpoints=f"trace:{trace}"):
        first = commits(trace) + 1
    trace.unlink()
    points = f"trace:{trace} commit-before@{first}+=hold:{folder / 'hold'}"
    env = {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": "6000000",
    }
    with (
        running(folder / "d", failpoints=points, env=env) as daemon,
        held(folder / "hold") as let_go,
    ):
        yield daemon, trace, let_go


def commits(trace: Path) -> int:
    return trace.read_text().count("commit-before ")


def test_a_disk_that_takes_its_time_holds_up_nobody_else(
    sandbox: Sandbox, client: Client, notified: Notified, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    with slow_disk(tmp_path) as (daemon, trace, let_go):
        done = commits(trace)
        fed = notified.count("WATCHDOG=1")
        with in_background(lambda c: c.acquire("vm", disk)) as acquire:
            wait_for("the commit", lambda: reached(trace, "commit-before", done + 1))
            # Everything that only reads.
            for _ in range(20):
                assert client.vms() == {}
                assert client.manager()["PairsInUse"] == 0
            assert client.call("Plan", ACQUIRE, "other", resources(disk), {})[0]
            refused = client.error("Release", "sa{sv}", "other", {})
            assert refused.name == OWN + "NoSuchVM"
            wait_for("the watchdog is fed", lambda: notified.count("WATCHDOG=1") >= fed + 2)
            assert not acquire.done()
            assert label(disk) is None
            let_go()
        assert acquire.result().endswith("/vm/vm")
        assert client.vms() == {"vm": "labelled"}
        assert label(disk) == client.properties("vm")["ImageContext"]
        daemon.stop()
        restarted(daemon)
        client.release("vm")


def test_a_stop_waits_for_a_disk_that_takes_its_time(
    sandbox: Sandbox, client: Client, notified: Notified, tmp_path: Path
) -> None:
    """Who has asked is answered, who asks now is refused, and nothing has to be settled after."""
    disk = image(tmp_path / "a.img")
    with slow_disk(tmp_path) as (daemon, trace, let_go):
        done = commits(trace)
        with in_background(lambda c: c.acquire("vm", disk)) as acquire:
            wait_for("the commit", lambda: reached(trace, "commit-before", done + 1))
            os.kill(daemon.pid, signal.SIGTERM)
            wait_for("the stop", lambda: notified.count("STOPPING=1"))
            refused = client.error("Acquire", ACQUIRE, "late", [], {})
            assert_refused(refused, OWN + "Failed", "svirtd is stopping")
            assert not acquire.done()
            let_go()
        assert acquire.result().endswith("/vm/vm")
        assert ended(daemon) == 0
        restarted(daemon)
        assert client.vms() == {"vm": "labelled"}
        client.release("vm")
        assert label(disk) is None


@pytest.fixture
def daemon(sandbox: Sandbox, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that others of this file make way for."""
    with running(tmp_path / "d") as daemon:
        yield daemon


@contextlib.contextmanager
def no_descriptor(daemon: Daemon) -> Iterator[None]:
    """The daemon can open nothing; what it has open stays so."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)


def test_no_descriptor_left_for_a_request(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    (tmp_path / "link").symlink_to(disk)
    # By a short name: that of a socket has 108 bytes.
    listen = "import os, socket, sys, time; os.chdir(sys.argv[1]); s = socket.socket(1)"
    listen += "; s.bind('qmp'); s.listen(); time.sleep(1000)"
    argv = ["/usr/bin/python3", "-c", listen, "{runtime}"]
    client.launch("running", argv)
    path, fd = client.call("GetVM", "s", "running")[0], os.open(disk, os.O_RDWR)
    channel = {"path": path, "interface": "org.svirt1.VM"}
    wait_for("its socket", lambda: opens(client, channel))
    with nothing_changes(client, tmp_path), no_descriptor(daemon):
        for wanted in (resources(disk), resources(tmp_path / "link")):
            for member, signature, *rest in (
                ("Acquire", ACQUIRE, wanted),
                ("Plan", ACQUIRE, wanted),
                ("Launch", LAUNCH, argv, wanted),
            ):
                refused = client.error(member, signature, "vm", *rest, {})
                assert_refused(refused, LIMITS, "Too many open files", "LimitNOFILE=")
        refused = client.error("OpenChannel", "sa{sv}", "qmp", {}, **channel)
        assert_refused(refused, LIMITS, "Too many open files")
        passed = [{"fd": Variant("h", 0), "access": Variant("s", "exclusive")}]
        refused = client.error("Acquire", ACQUIRE, "vm", passed, {}, fds=[fd])
        assert refused.name == OWN + "ResourceRefused"
        # Nothing to open: the book is open already.
        client.acquire("empty")
        client.release("empty")
    os.close(fd)
    client.acquire("vm", disk)
    for name in ("vm", "running"):
        client.release(name)
    assert label(disk) is None


def opens(client: Client, channel: dict[str, Any]) -> bool:
    try:
        reply = client.message("OpenChannel", "sa{sv}", "qmp", {}, **channel)
    except BusError as error:
        assert_refused(error, OWN + "ResourceRefused", "no socket")
        return False
    for fd in reply.unix_fds:
        os.close(fd)
    return True


def test_no_descriptor_left_for_a_way_back(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """A label that cannot be given back is kept in the book until it can."""
    disks = {name: image(tmp_path / f"{name}.img") for name in ("asked", "ended")}
    client.acquire("asked", disks["asked"])
    client.launch("ended", ["/bin/sleep", "1000"], disks["ended"])
    pid = client.properties("ended")["MainPID"]
    with no_descriptor(daemon):
        refused = client.error("Release", "sa{sv}", "asked", {})
        assert_refused(refused, OWN + "Drift", "Too many open files", "release")
        os.kill(pid, signal.SIGKILL)
        wait_for("the end", lambda: client.vms() == {"asked": "failed", "ended": "failed"})
        for name, disk in disks.items():
            vm = client.properties(name)
            assert label(disk) == vm["ImageContext"]
            assert "Too many open files" in vm["StateReason"]
        assert client.manager()["PairsInUse"] == 2
    for name, disk in disks.items():
        client.release(name)
        assert label(disk) is None
    assert client.manager()["PairsQuarantined"] == 0


def test_no_descriptor_left_half_way_through_a_launch(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """The labels stand, and the runtime folder cannot be made: all of it is taken back."""
    disk, trace, hold = image(tmp_path / "a.img"), tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} label-after=hold:{hold}"
    with running(tmp_path / "d", failpoints=points) as daemon:
        with (
            held(hold) as let_go,
            in_background(
                lambda c: c.error("Launch", LAUNCH, "vm", ["/bin/sleep", "9"], resources(disk), {})
            ) as launch,
        ):
            wait_for("the label", lambda: reached(trace, "label-after"))
            with no_descriptor(daemon):
                let_go()
                refused = launch.result()
        name = OWN + "Drift"  # the way back needs a descriptor as well
        assert_refused(refused, name, "Too many open files")
        assert client.vms() == {"vm": "failed"}
        client.release("vm")
        assert label(disk) is None


@pytest.fixture
def clock(tmp_path: Path) -> Callable[[int], None]:
    """What sets the wall clock of daemons that have this folder among their modules: it takes the
    nanoseconds to add."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "real, offset = time.time_ns, pathlib.Path(__file__).with_name('clock')\n"
        "time.time_ns = lambda: real() + int(offset.read_text())\n"
        "time.time = lambda: time.time_ns() / 1e9\n"
    )

    def set_by(offset_ns: int) -> None:
        # Never half there: the daemon reads it at any time.
        (tmp_path / "next").write_text(str(offset_ns))
        (tmp_path / "next").rename(tmp_path / "clock")

    set_by(0)
    return set_by


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_a_clock_that_is_set_back_and_forward(
    sandbox: Sandbox, client: Client, tmp_path: Path, clock: Callable[[int], None], order: str
) -> None:
    """Whose label was the original does not depend on who seems to have come first."""
    shared, own = image(tmp_path / "shared.img"), image(tmp_path / "own.img")
    os.setxattr(shared, "security.selinux", ORIGINAL.encode())
    daemon = Daemon(tmp_path / "d", executed=True)
    daemon.env["PYTHONPATH"] = str(tmp_path)
    daemon.start()
    try:
        client.acquire("a", shared, access="public")
        clock(-YEAR_NS)
        client.acquire("b", shared, access="public")
        daemon.kill()
        daemon.start()
        clock(YEAR_NS)
        client.acquire("c", shared, access="public")
        created = {name: client.properties(name)["CreatedAt"] for name in "abc"}
        assert created["b"] < created["a"] < created["c"]
        assert created["c"] - created["a"] >= YEAR_NS // 1000
        # Deadlines are of another clock: neither passes at once, nor never.
        clock(-YEAR_NS)
        client.launch("vm", ["/bin/sleep", "1000"], own)
        os.kill(client.properties("vm")["MainPID"], signal.SIGKILL)
        wait_for("its end", lambda: "vm" not in client.vms())
        for name in order[:-1]:
            client.release(name)
            assert label(shared) not in (None, ORIGINAL)
        client.release(order[-1])
        assert (label(shared), label(own)) == (ORIGINAL, None)
        os.removexattr(shared, "security.selinux")
    finally:
        assert daemon.stop() == 0
