# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book's file system is full: requests fail by name, nothing changes, and all works again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.host.bus import BusError
from tests.attack import OWN, assert_refused, nothing_changes
from tests.mounts import mounted
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, resources, wait_for

MOST = 2000


@pytest.fixture
def small(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A file system that the book fits on, with its log."""
    folder = tmp_path / "small"
    with mounted(folder, "-t", "tmpfs", "-o", "size=16m", "small"):
        yield folder


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        while os.statvfs(folder).f_bavail:
            file.write(b"x" * 4096)
    return ballast


def until_refused(client: Client, folder: Path, names: list[str]) -> BusError:
    """Acquire VMs, adding their names, until one is refused; returns why.

    The log of the book was grown beforehand: some requests still have room.
    """
    while len(names) < MOST:
        name = f"vm{len(names)}"
        try:
            client.acquire(name, image(folder / f"{name}.img"))
        except BusError as error:
            return error
        names.append(name)
    pytest.fail("the disk is never full")


def again_refused(client: Client, folder: Path, names: list[str]) -> BusError:
    """Have one more refused, and see that it changes nothing.

    What the log has is written into the book from time to time, and then it has room once more.
    """
    for _ in range(10):
        until_refused(client, folder, names)
        try:
            with nothing_changes(client, folder):
                return client.error(
                    "Acquire", "saa{sv}a{sv}", "more", resources(folder / "a.img"), {}
                )
        except AssertionError as error:
            if "was not refused" not in str(error):
                raise
            client.release("more")
    pytest.fail("there is room each time")


def test_a_full_disk(client: Client, small: Path, tmp_path: Path) -> None:
    daemon = Daemon(small / "d")
    daemon.start()
    disk = image(tmp_path / "a.img")
    ballast = fill(small)
    names: list[str] = []
    try:
        refused = until_refused(client, tmp_path, names)
        assert_refused(
            refused, OWN + "Failed", f"the book {daemon.book}", "disk is full", "free space"
        )
        assert_refused(
            again_refused(client, tmp_path, names), OWN + "Failed", "nothing was written"
        )
        assert label(disk) is None
        assert len(client.vms()) == len(names)
        # As long as an idle daemon needs to see to its log.
        client.idle(3.0)
        assert len(client.vms()) == len(names)
        ballast.unlink()

        def works() -> bool:
            client.acquire("more", disk)
            return True

        wait_for("it works again", works)
        assert label(disk) == client.properties("more")["ImageContext"]
        for name in (*names, "more"):
            client.release(name)
        assert client.vms() == {}
    finally:
        assert daemon.stop() == 0


@pytest.mark.parametrize("earlier", [0, 1, 3])
def test_all_or_nothing_wherever_the_disk_fills_up(
    client: Client, small: Path, tmp_path: Path, earlier: int
) -> None:
    """An acquisition writes twice: the disk fills up before the first or the second."""
    daemon = Daemon(small / "d")
    daemon.start()
    ballast = fill(small)
    names = [f"earlier{n}" for n in range(earlier)]
    try:
        for name in names:
            client.acquire(name)
        for number in range(MOST):
            disk = image(tmp_path / f"{number}.img")
            try:
                client.acquire(f"vm{number}", disk)
            except BusError as error:
                assert_refused(error, OWN + "Failed", "nothing was written")
                break
            names.append(f"vm{number}")
        assert label(disk) is None
        assert sorted(client.vms()) == sorted(names)
        ballast.unlink()
        client.acquire("more", disk)
        for name in (*names, "more"):
            client.release(name)
        assert client.vms() == {}
    finally:
        assert daemon.stop() == 0
