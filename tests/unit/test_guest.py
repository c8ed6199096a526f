# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of the guest tier: nothing but the guest's own last word makes a run good."""

import io
import subprocess
from pathlib import Path

import pytest

from tests.guest.machine import follow


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
