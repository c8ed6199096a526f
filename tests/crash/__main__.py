# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.crash [pytest option…]`: the crash tier, in several sandboxes at once.

Each shard is a sandbox with a bus and a systemd of its own, and takes one test after the other that
no other has taken. The verdict is one: every shard passed, and together they killed the daemon at
every boundary there is. With options of pytest only a part may have run, and only what ran is
judged.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from svirtd.failpoints import BOUNDARIES
from tests.crash import report

_REPO: Final = Path(__file__).resolve().parents[2]
# Half of a case is waiting for systemd, the bus and the end of processes.
_WELL: Final = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
_SHARDS: Final = int(os.environ.get("SVIRT_CRASH_SHARDS", "2"))


def main(options: Sequence[str]) -> int:
    """Run the shards and tell what they did; returns the exit code."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="svirt-crash-") as folder:
        processes = [_start(number, folder, options) for number in range(_SHARDS)]
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        for number, code in enumerate(codes):
            text = Path(folder, f"{number}.log").read_text(errors="replace")
            lines = text.splitlines()
            told = [line for line in lines if line.startswith("at random: ")] + lines[-1:]
            print("\n".join(told if code in _WELL else lines))
        total = report.merged(Path(folder))
    # A single test that was asked for is in one shard only.
    failed = any(code not in _WELL for code in codes) or all(codes)
    missing = [] if options else report.missing(total)
    for line in missing:
        print(f"crash: {line}")
    print(
        f"crash: {len(BOUNDARIES)} boundaries, killed at {len(total.boundaries)} of them in "
        f"{len(total.killed_at)} calls; {total.killed_at.total()} kills, {total.recoveries} of "
        f"them during recovery; {total.errors} errors injected; {total.histories} random "
        "histories; "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if failed or missing else 0


def _start(number: int, folder: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-q", "tests/crash", *options]
    with open(Path(folder, f"{number}.log"), "wb") as log:
        return subprocess.Popen(
            ["/usr/bin/python3", "-m", "tests.sandbox", "run", "--", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_REPO,
            env=os.environ | {report.SHARD: str(number), report.FOLDER: folder},
        )


if __name__ == "__main__":
    # The sandboxes end with us, however we end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
