# SPDX-License-Identifier: LGPL-2.1-or-later
"""Digests: of the whole file, by the descriptor that is held, and left when nobody waits."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.core.goals import BUILT_INS, ISOLATED
from svirtd.core.model import VM, Access, FindingKind, Hold, Identity, Kind, Lifetime, Seen, State
from svirtd.engine.digests import Digests
from svirtd.engine.doors import file_threads
from svirtd.engine.events import Entry
from svirtd.errors import Failed, ResourceRefused
from svirtd.host.digest import sha256
from svirtd.host.opening import Opened

FORENSIC = BUILT_INS["forensic"]
CONTENT = os.urandom(3 * (1 << 20) + 17)
VM_ = VM(
    id="0123456789abcdef", name="vm", owner_uid=0, state=State.LABELLED, reason="", goal="forensic",
    uuid="", rank=1, categories="c1,c2", process_context="u:r:t:s0:c1,c2",
    image_context="u:r:i:s0:c1,c2", unit="", main_pid=0, runtime_dir="", persistent=False,
    lifetime=Lifetime.RELEASE, caller="", created_us=0,
)  # fmt: skip


@pytest.fixture
def digests() -> Iterator[Digests]:
    one = Digests(file_threads(1))
    yield one
    one.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    path = tmp_path / "a.img"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    info = os.fstat(fd)
    identity = Identity(info.st_dev, info.st_ino)
    named = str(path)
    yield Opened(
        Seen(named, Access.READONLY, named, identity, Kind.FILE, 1, False, None, 0, "ext4"), fd
    )
    os.close(fd)


def entry(one: Opened, access: Access = Access.READONLY, digest: str = "") -> Entry:
    hold = Hold(
        VM_.id, VM_.name, one.seen.identity, one.seen.path, access, "l", None, digest=digest
    )
    return Entry(VM_, (hold,))


def test_the_digest_is_of_all_of_it(digests: Digests, opened: Opened) -> None:
    os.lseek(opened.fd, 100, os.SEEK_SET)
    after = asyncio.run(digests.take(FORENSIC, entry(opened), [opened]))
    assert after.holds[0].digest == hashlib.sha256(CONTENT).hexdigest()
    assert os.lseek(opened.fd, 0, os.SEEK_CUR) == 100
    assert asyncio.run(digests.compare(VM_, after.holds)) == []


def test_only_what_is_read_alone_and_only_where_the_goal_wants_it(
    digests: Digests, opened: Opened
) -> None:
    before = entry(opened)
    assert asyncio.run(digests.take(ISOLATED, before, [opened])) == before
    written = entry(opened, Access.EXCLUSIVE)
    assert asyncio.run(digests.take(FORENSIC, written, [opened])) == written


def test_what_was_altered_is_found(digests: Digests, opened: Opened) -> None:
    after = asyncio.run(digests.take(FORENSIC, entry(opened), [opened]))
    with open(opened.seen.path, "r+b") as file:
        file.seek(len(CONTENT) - 1)
        file.write(bytes([CONTENT[-1] ^ 1]))
    (found,) = asyncio.run(digests.compare(VM_, after.holds))
    assert found.kind is FindingKind.ALTERED
    assert found.expected == f"sha256:{after.holds[0].digest}"
    now = hashlib.sha256(Path(opened.seen.path).read_bytes()).hexdigest()
    assert found.found == f"sha256:{now}"
    # Longer and shorter count, too.
    Path(opened.seen.path).write_bytes(CONTENT + b"\0")
    assert asyncio.run(digests.compare(VM_, after.holds))[0].kind is FindingKind.ALTERED


def test_what_is_gone_is_told_with_its_label(digests: Digests, opened: Opened) -> None:
    after = asyncio.run(digests.take(FORENSIC, entry(opened), [opened]))
    os.unlink(opened.seen.path)
    assert asyncio.run(digests.compare(VM_, after.holds)) == []


def test_what_cannot_be_read_is_refused(digests: Digests, opened: Opened, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ResourceRefused, match="cannot be read whole for its digest"):
            asyncio.run(digests.take(FORENSIC, entry(opened), [Opened(opened.seen, fd)]))
    finally:
        os.close(fd)


def test_whoever_is_cancelled_leaves_the_thread_free(digests: Digests, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(1 << 40)
    fd = os.open(large, os.O_RDONLY)
    info = os.fstat(fd)
    identity, named = Identity(info.st_dev, info.st_ino), str(large)
    one = Opened(
        Seen(named, Access.READONLY, named, identity, Kind.FILE, 1, False, None, 0, "ext4"), fd
    )

    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await digests.take(FORENSIC, entry(one), [one])

    asyncio.run(story())
    os.close(fd)
    # A terabyte would keep the next one waiting for hours.
    assert asyncio.run(digests.compare(VM_, ())) == []
    with open(large, "wb") as file:
        file.truncate(1)
    fd = os.open(large, os.O_RDONLY)
    found = asyncio.run(digests.take(FORENSIC, entry(one), [Opened(one.seen, fd)]))
    os.close(fd)
    assert found.holds[0].digest == hashlib.sha256(b"\0").hexdigest()


def test_none_is_taken_once_the_daemon_stops(opened: Opened) -> None:
    digests = Digests(file_threads(1))
    digests.close()
    with pytest.raises(Failed, match="no digest can be taken"):
        asyncio.run(digests.take(FORENSIC, entry(opened), [opened]))


def test_a_digest_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    assert sha256(fd, lambda: False) is None
    assert sha256(fd, lambda: True) == hashlib.sha256(b"x").hexdigest()
    os.close(fd)
