# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the guest: `python3 -m tests.guest tests|demo|compare [argument…]`.

Tests run in the newest Debian and, unless arguments choose some of them, once more in each older
one that the package is for: those about the policy and the service.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tests.guest import build, machine

_LIMIT_S: Final = {"tests": 780.0, "demo": 300.0, "compare": 1500.0}
_ON_OLDER: Final = tuple(
    f"tests/guest/inside/test_{name}.py"
    for name in ("a_policy", "b_isolation", "c_service", "z_audit")
)


def main() -> int:
    """Build what is missing, boot, return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.guest", description=__doc__)
    parser.add_argument("wanted", choices=sorted(_LIMIT_S))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    arguments: list[str] = options.arguments
    try:
        *older, newest = build.releases()
        passed = _run(newest, options.wanted, arguments)
        if options.wanted == "tests" and not arguments:
            for suite in older:
                passed = _run(suite, "tests", _ON_OLDER) and passed
    except (build.BuildError, subprocess.TimeoutExpired) as error:
        _say(str(error))
        return 1
    return 0 if passed else 1


def _run(suite: str, wanted: str, arguments: Sequence[str]) -> bool:
    _say(f"building what is missing of {suite}")
    verdict = machine.boot(
        build.guest(suite),
        wanted,
        limit_s=_LIMIT_S[wanted],
        shown=sys.stdout,
        arguments=shlex.join(arguments),
    )
    if verdict.code != 0:
        _say(verdict.explain())
    return verdict.code == 0


def _say(text: str) -> None:
    sys.stderr.write(f"guest: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
