# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the guest: `python3 -m tests.guest tests|demo|compare [argument…]`."""

import argparse
import shlex
import subprocess
import sys
from typing import Final

from tests.guest import build, machine

_LIMIT_S: Final = {"tests": 780.0, "demo": 300.0, "compare": 1500.0}


def main() -> int:
    """Build what is missing, boot, return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.guest", description=__doc__)
    parser.add_argument("wanted", choices=sorted(_LIMIT_S))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        sys.stderr.write("guest: building what is missing of it\n")
        guest = build.guest()
        verdict = machine.boot(
            guest,
            options.wanted,
            limit_s=_LIMIT_S[options.wanted],
            shown=sys.stdout,
            arguments=shlex.join(options.arguments),
        )
    except (build.BuildError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"guest: {error}\n")
        return 1
    if verdict.code != 0:
        sys.stderr.write(f"guest: {verdict.explain()}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
