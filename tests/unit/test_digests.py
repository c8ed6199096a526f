# SPDX-License-Identifier: LGPL-2.1-or-later
"""Digests when the daemon starts: what is large is told and not read, the rest is compared."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from svirtd.core.findings import FindingKind
from svirtd.core.model import VM, Access, Hold, Identity, Lifetime, State
from svirtd.engine.digests import Digests
from svirtd.engine.doors import file_threads
from svirtd.host import files

LARGE = (256 << 20) + 1
HELD_BY = VM("1", "vm", 0, State.RELEASING, "", "forensic", "", 7, "c1,c2", "p", "i", "", 0, "",
             False, Lifetime.RELEASE, "", 1)  # fmt: skip


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize("size", [LARGE, LARGE - 1])
def test_what_is_large_keeps_no_service_from_starting(
    tmp_path: Path, size: int, starting: bool
) -> None:
    path = tmp_path / "evidence"
    path.touch()
    os.truncate(path, size)
    info = path.stat()
    expected = hashlib.sha256(b"something else").hexdigest()
    hold = Hold("1", "vm", Identity(info.st_dev, info.st_ino), str(path), Access.READONLY, "l",
                None, digest=expected)  # fmt: skip
    digests = Digests(file_threads(1))
    digests.starting = starting
    os.close(files.find(str(path), hold.identity))  # what is opened once for all is open now
    before = set(os.listdir("/proc/self/fd"))
    try:
        (found,) = asyncio.run(digests.compare(HELD_BY, [hold]))
    finally:
        digests.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert found.expected == f"sha256:{expected}"
    if starting and size == LARGE:
        assert (found.kind, found.found) == (FindingKind.FAILED, "")
        assert "compare it by hand" in found.reason
    else:
        assert (found.kind, found.found[:7]) == (FindingKind.ALTERED, "sha256:")
