# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk of the power cuts: what was flushed is there, what was not may be lost."""

import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.disk import BLOCK, Disk, Server

SIZE = 16 * BLOCK


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.write_bytes(b"o" * SIZE)
    disk = Disk(path)
    yield disk
    disk.close()


def in_file(tmp_path: Path) -> bytes:
    return (tmp_path / "disk").read_bytes()


def test_a_write_is_read_and_lost_at_a_cut(disk: Disk, tmp_path: Path) -> None:
    disk.write(100, b"new", through=False)
    assert disk.read(98, 7) == b"oonewoo"
    assert in_file(tmp_path) == b"o" * SIZE
    assert disk.cut(lambda: False) == (0, 1)
    assert disk.read(98, 7) == b"o" * 7


@pytest.mark.parametrize("through", [True, False])
def test_what_was_flushed_is_kept(disk: Disk, tmp_path: Path, through: bool) -> None:
    disk.write(BLOCK - 2, b"across", through=through)
    if not through:
        disk.flush()
    disk.write(2 * BLOCK, b"late", through=False)
    assert disk.cut(lambda: False) == (0, 1)
    assert in_file(tmp_path)[BLOCK - 2 : BLOCK + 4] == b"across"
    assert in_file(tmp_path)[2 * BLOCK :] == b"o" * (SIZE - 2 * BLOCK)


def test_any_part_of_a_write_may_survive(disk: Disk, tmp_path: Path) -> None:
    disk.write(0, b"n" * 4 * BLOCK, through=False)
    keep = iter([False, True, False, True])
    assert disk.cut(lambda: next(keep)) == (2, 2)
    assert in_file(tmp_path)[: 4 * BLOCK : BLOCK] == b"onon"


def test_against_a_plain_model(disk: Disk, tmp_path: Path) -> None:
    chance, model, flushed = random.Random(1), bytearray(b"o" * SIZE), b""
    for _ in range(2000):
        offset = chance.randrange(SIZE)
        length = chance.randint(1, min(3 * BLOCK, SIZE - offset))
        match chance.randrange(6):
            case 0 | 1 | 2:
                data = chance.randbytes(length)
                disk.write(offset, data, through=False)
                model[offset : offset + length] = data
            case 3 | 4:
                assert disk.read(offset, length) == model[offset : offset + length]
            case _:
                disk.flush()
                flushed = bytes(model)
                assert in_file(tmp_path) == flushed
    disk.cut(lambda: False)
    assert in_file(tmp_path) == flushed


def test_qemu_uses_it(disk: Disk, tmp_path: Path) -> None:
    """As the guest does: a flush and a write that goes through count, a plain write does not."""
    ours, theirs = socket.socketpair()
    server = Server(disk, ours)
    with theirs:
        image = f"driver=raw,file.driver=nbd,file.server.type=fd,file.server.str={theirs.fileno()}"
        commands = ["write -P 1 0 4k", "flush", "write -P 2 4k 4k", "write -f -P 3 8k 4k"]
        # Told to die before it flushes at its own end.
        commands += ["read -P 2 4k 4k", "sigraise 9"]
        done = subprocess.run(
            [
                "qemu-io",
                "--image-opts",
                "-t",
                "writeback",
                *(f"-c{one}" for one in commands),
                image,
            ],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    server.end()
    assert done.returncode == -9, done.stdout + done.stderr
    assert "Pattern verification failed" not in done.stdout
    assert disk.cut(lambda: False) == (0, 1)
    assert in_file(tmp_path)[: 3 * BLOCK : BLOCK] == b"\x01o\x03"
