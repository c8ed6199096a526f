# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the guest: `python3 -m tests.guest tests|demo|compare|cuts [argument…]`.

Tests run in the newest Debian and, unless arguments choose some of them, once more in each older
one that the package is for: those about the policy and the service. Power cuts follow them; more
come with `--cuts N`, and the same again with the `--seed` that a run has shown.
"""

import argparse
import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tests.guest import build, cuts, machine

_LIMIT_S: Final = {"tests": 2400.0, "demo": 300.0, "compare": 1500.0}
_CUTS: Final = 10
_ON_OLDER: Final = tuple(
    f"tests/guest/inside/test_{name}.py"
    for name in (
        "a_policy",
        "b_isolation",
        "c_service",
        "h_callers",
        "i_users",
        "k_matrix",
        "z_audit",
    )
)


def main() -> int:
    """Build what is missing, boot, return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.guest", description=__doc__)
    parser.add_argument("wanted", choices=[*sorted(_LIMIT_S), "cuts"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    arguments: list[str] = options.arguments
    try:
        *older, newest = build.releases()
        if options.wanted == "cuts" or "--cuts" in arguments:
            return 0 if _cut(newest, arguments) else 1
        passed = _run(newest, options.wanted, arguments)
        if options.wanted == "tests" and not arguments:
            for suite in older:
                passed = _run(suite, "tests", _ON_OLDER) and passed
            passed = _cut(newest, ()) and passed
    except (build.BuildError, subprocess.TimeoutExpired) as error:
        _say(str(error))
        return 1
    return 0 if passed else 1


def _cut(suite: str, arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(prog="tests.guest cuts")
    parser.add_argument("--cuts", type=int, default=_CUTS, metavar="N")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), metavar="SEED")
    options = parser.parse_args(arguments)
    _say(f"building what is missing of {suite}")
    return cuts.cut(build.guest(suite), options.cuts, options.seed, sys.stdout)


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
