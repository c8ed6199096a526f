# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of the guest tier: nothing but the guest's own last word makes a run good.

And what a guest hands over to be kept: files, in a folder that the host has chosen.
"""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.guest.machine import follow, unpack


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo 'SVIRT-GUEST-RC 0'", 0),
        ("echo tests; sleep 0.3; echo 'SVIRT-GUEST-RC 1'", 1),
        # A panic, a reboot, a guest that was cut off: QEMU ends with 0 all the same.
        ("echo tests", None),
        ("true", None),
        ("echo 'SVIRT-GUEST-RC 0'; echo 'and then a panic'", None),
        ("echo 'SVIRT-GUEST-RC '", None),
        ("printf 'SVIRT-GUEST-RC 0'", None),
        # A hang.
        ("echo 'SVIRT-GUEST-RC 0'; exec sleep 1000", None),
    ],
)
def test_verdict(tmp_path: Path, script: str, code: int | None) -> None:
    output = tmp_path / "output"
    output.touch()
    shown = io.StringIO()
    with (
        open(output, "a", encoding="utf-8") as sink,
        subprocess.Popen(["/bin/sh", "-c", script], stdout=sink) as process,
        open(output, encoding="utf-8") as said,
    ):
        try:
            assert follow(process, said, shown, limit_s=2) == code
        finally:
            process.kill()
    assert ("did not end" in shown.getvalue()) == ("sleep 1000" in script)


def test_what_a_guest_keeps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    archive = folder / "kept.tar"
    archive.touch()
    assert unpack(folder) == []

    with tarfile.open(archive, "w") as packed:
        for name, kind in (
            ("./picture.png", tarfile.REGTYPE),
            ("../../outside", tarfile.REGTYPE),
            ("./link", tarfile.SYMTYPE),
            (".", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(name) if kind == tarfile.REGTYPE else 0
            packed.addfile(member, io.BytesIO(name.encode()))
    kept = folder / "kept"
    assert unpack(folder) == [kept / "picture.png", kept / "outside"]
    found = {folder, archive, kept, kept / "picture.png", kept / "outside"}
    assert set(tmp_path.rglob("*")) == found
    assert (kept / "outside").read_text("utf-8") == "../../outside"
