# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the tests: `./test` every tier, `./test unit …` some. What follows "--" goes to pytest."""

import sys
import time
from collections.abc import Sequence
from typing import Final

from tests import lanes
from tests.guest import parts

_PYTEST: Final = (sys.executable, "-m", "pytest", "-q")
_SANDBOX: Final = ("/usr/bin/python3", "-m", "tests.sandbox", "run", "--")
TIERS: Final = {
    "unit": (*_PYTEST, "tests/unit"),
    "contract": (*_PYTEST, "tests/contract", "tests/sandbox"),
    "package": (*_PYTEST, "tests/package"),
    "bus": (*_SANDBOX, *_PYTEST, "tests/bus"),
    "attacks": (*_SANDBOX, *_PYTEST, "tests/attacks"),
    "crash": (sys.executable, "-m", "tests.crash"),
    "guest": (sys.executable, "-m", "tests.guest", "tests"),
}
# Tests of processes that run beside them, and that they wait for.
_WAIT: Final = ("bus", "attacks")
# What begins first, where not all can begin at once: what is soon over and says most, then what
# takes longest; the last ones are short, so that the lanes end at about the same time. While the
# first guest is built others would wait for it: what needs none runs beside it.
_ORDER: Final = (
    *("unit", "guest 1", "contract", "bus", "guest 2", "guest 3", "guest bookworm", "crash"),
    *("package", "guest cuts", "guest levels", "attacks"),
)


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for, say how it went, return the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    wanted, options = arguments[:split] or list(TIERS), tuple(arguments[split + 1 :])
    for name in wanted:
        if name not in TIERS:
            print(f"./test: unknown tier '{name}'; tiers: {', '.join(TIERS)}", file=sys.stderr)
            return 2
    start = time.monotonic()
    jobs = [job for name in dict.fromkeys(wanted) for job in jobs_of(name, options)]
    failed = lanes.run(ordered(jobs), lanes.number(), sys.stdout)
    if failed:
        print(f"failed: {' '.join(failed)}")
        return 1
    print(f"all tiers passed in {time.monotonic() - start:.0f} s")
    return 0


def jobs_of(tier: str, options: Sequence[str]) -> list[lanes.Job]:
    """Return what a tier consists of: one process, or the guests that it boots."""
    command = TIERS[tier]
    if tier == "guest" and not options:
        return [lanes.Job(f"guest {name}", (*command[:-1], "part", name)) for name in parts.names()]
    return [lanes.Job(tier, (*command, *options), waits=tier in _WAIT)]


def ordered(jobs: Sequence[lanes.Job]) -> list[lanes.Job]:
    """Return the jobs in the order in which they begin; one that nobody has placed comes first."""
    return sorted(jobs, key=lambda job: _ORDER.index(job.name) if job.name in _ORDER else -1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
