# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon under its own unit file, started by a real systemd."""

import subprocess
import sys

from tests.contract import sources


def test_the_daemon_works_within_the_limits_of_its_unit() -> None:
    found = subprocess.run(
        [
            *("/usr/bin/python3", "-m", "tests.sandbox", "run", "--"),
            *(sys.executable, "-m", "tests.contract.unit_session"),
        ],
        cwd=sources.REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
