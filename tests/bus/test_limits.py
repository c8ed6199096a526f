# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ceilings: what is too much is refused by the limit's name, and works again with less."""

import asyncio
import os
import resource
from pathlib import Path

from svirtd.host.bus import BusError, Variant
from tests.attack import LIMITS, OWN, assert_refused, nothing_changes
from tests.sandbox import Sandbox
from tests.support import MANAGER, NAME, ROOT, Client, Daemon, image, label, resources

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
ACQUIRE = "saa{sv}a{sv}"


def test_too_many_pending_calls(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = "[limits]\npending-calls = 8\npending-calls-per-sender = 4\n"
    daemon = Daemon(tmp_path / "d", extra=limits)
    daemon.start()
    clients = [Client() for _ in range(4)]
    texts: set[str] = set()
    try:
        for _ in range(3):  # and works again after each burst
            for client in clients:
                assert client.vms() == {}
            for client in clients:
                texts |= burst_of(client, 40)
        assert any("pending-calls-per-sender = 4" in text for text in texts), texts
    finally:
        for client in clients:
            client.close()
        assert daemon.stop() == 0


def burst_of(client: Client, count: int) -> set[str]:
    """Send many calls at once; each is answered. Returns the texts of the refusals."""

    async def one() -> str:
        try:
            await client.connection.call(NAME, ROOT, MANAGER, "ListVMs", timeout_s=20.0)
        except BusError as error:
            assert_refused(error, LIMITS, "[limits] pending-calls")
            return error.text
        return ""

    async def every() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(count)))

    texts = client.runner.run(every())
    assert texts.count("") >= 1
    return set(texts) - {""}


def test_too_many_vms(sandbox: Sandbox, client: Client, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", extra="[limits]\nvms = 3\nlisted-vms = 2\nresources = 2\n")
    daemon.start()
    try:
        for name in ("a", "b", "c"):
            client.acquire(name)
        for member in ("Acquire", "Plan"):
            refused = client.error(member, "saa{sv}a{sv}", "d", [], {})
            assert_refused(refused, LIMITS, "[limits] vms = 3")
        for interface, member in ((MANAGER, "ListVMs"), (OBJECT_MANAGER, "GetManagedObjects")):
            refused = client.error(member, "", interface=interface)
            assert_refused(refused, LIMITS, "[limits] listed-vms = 2", "GetVM")
        disks = [image(tmp_path / f"{n}.img") for n in range(3)]
        refused = client.error("Acquire", "saa{sv}a{sv}", "d", resources(*disks), {})
        assert_refused(refused, LIMITS, "[limits] resources allows 2")
        client.release("a")
        client.acquire("d", *disks[:2])
        for name in ("b", "c", "d"):
            client.release(name)
        assert client.vms() == {}
    finally:
        assert daemon.stop() == 0


def test_a_full_pool(sandbox: Sandbox, client: Client, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", extra='[labels]\nprivate = "c0.c3"\ngroups = ""\n')
    daemon.start()
    disks = [image(tmp_path / f"{n}.img") for n in range(7)]
    names = [f"vm{n}" for n in range(7)]
    try:
        for name, disk in zip(names[:6], disks, strict=False):
            client.acquire(name, disk)
        assert len({label(disk) for disk in disks[:6]}) == 6
        full = client.manager()
        assert (full["PairsTotal"], full["PairsInUse"], full["PairsQuarantined"]) == (6, 6, 0)
        assert full["GroupCategoriesTotal"] == 0
        with nothing_changes(client, tmp_path):
            for refused in (
                client.error("Acquire", ACQUIRE, names[6], resources(disks[6]), {}),
                client.error("Plan", ACQUIRE, names[6], resources(disks[6]), {}),
                client.error(
                    "Launch", "sasaa{sv}a{sv}", names[6], ["/bin/true"], resources(disks[6]), {}
                ),
            ):
                assert_refused(refused, OWN + "PoolExhausted", "of 6 category sets, 6 are in use")
        freed = client.properties(names[2])["Categories"]
        client.release(names[2])
        client.acquire(names[6], disks[6])
        assert client.properties(names[6])["Categories"] == freed
        for name in (*names[:2], *names[3:]):
            client.release(name)
        assert client.manager()["PairsInUse"] == 0
    finally:
        assert daemon.stop() == 0


def test_a_call_that_is_too_long_is_not_read(daemon: Daemon, client: Client) -> None:
    refused = client.error("Acquire", "saa{sv}a{sv}", "x" * 5_000_000, [], {})
    assert refused.name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert "at most 4194304 are read" in refused.text
    assert client.vms() == {}


def test_a_descriptor_that_the_daemon_cannot_have(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """A policy can keep one from it; here there is no room. The call is refused, and no more."""
    path = image(tmp_path / "a.img")
    wanted = [{"fd": Variant("h", 0), "access": Variant("s", "exclusive")}]
    pid = daemon.pid
    fd = os.open(path, os.O_RDWR)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        error = client.error("Acquire", "saa{sv}a{sv}", "vm", wanted, {}, fds=[fd])
        assert error.name == "org.svirt1.Error.ResourceRefused"
        assert "name files by path" in error.text
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        client.call("Acquire", "saa{sv}a{sv}", "vm", wanted, {}, fds=[fd])
        assert label(path) == client.properties("vm")["ImageContext"]
        client.release("vm")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        os.close(fd)
    assert daemon.pid == pid
