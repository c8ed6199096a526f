# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the guest: `python3 -m tests.guest tests|part|demo|compare|cuts [argument…]`.

Tests run in the newest Debian and, unless arguments choose some of them, once more in each older
one that the package is for: those about the policy and the service. Power cuts follow them; more
come with `--cuts N`, and the same again with the `--seed` that a run has shown. All that is one
boot after the other; `part NAME` is one of them, and several may run at once.
"""

import argparse
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tests.guest import build, cuts, machine, parts

_LIMIT_S: Final = {"tests": 2400.0, "demo": 600.0, "compare": 1500.0}
_CUTS: Final = 10
# How many of a boot's tests are named with what they took: the shares are made by that.
_SLOWEST: Final = 20


def main() -> int:
    """Build what is missing, boot, return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.guest", description=__doc__)
    parser.add_argument("wanted", choices=[*sorted(_LIMIT_S), "part", parts.CUTS])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    arguments: list[str] = options.arguments
    newest = build.releases()[-1]
    try:
        if options.wanted == parts.CUTS or "--cuts" in arguments:
            passed = _cut(newest, arguments)
        elif options.wanted == "part" or (options.wanted == "tests" and not arguments):
            # Each of them runs, whatever became of those before it.
            passed = [_part(name) for name in arguments or parts.names()].count(False) == 0
        else:
            passed = _run(newest, options.wanted, arguments)
    except (build.BuildError, subprocess.TimeoutExpired) as error:
        _say(str(error))
        return 1
    return 0 if passed else 1


def _part(name: str) -> bool:
    if name not in parts.names():
        raise build.BuildError(f"no part is named {name}; there are: {', '.join(parts.names())}")
    if name == parts.CUTS:
        return _cut(parts.suite_of(name), ())
    part = name if name.isdigit() else ""
    arguments = [*parts.files_of(name), f"--durations={_SLOWEST}"]
    return _run(parts.suite_of(name), "tests", arguments, part)


def _cut(suite: str, arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(prog="tests.guest cuts")
    parser.add_argument("--cuts", type=int, default=_CUTS, metavar="N")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), metavar="SEED")
    options = parser.parse_args(arguments)
    _say(f"building what is missing of {suite}")
    return cuts.cut(build.guest(suite), options.cuts, options.seed, sys.stdout)


def _run(suite: str, wanted: str, arguments: Sequence[str], part: str = "") -> bool:
    _say(f"building what is missing of {suite}")
    verdict = machine.boot(
        build.guest(suite),
        wanted,
        limit_s=_LIMIT_S[wanted],
        shown=sys.stdout,
        arguments=shlex.join(arguments),
        part=part,
    )
    if verdict.code != 0:
        _say(verdict.explain())
    return verdict.code == 0


def _say(text: str) -> None:
    sys.stderr.write(f"guest: {text}\n")


if __name__ == "__main__":
    # QEMU ends with us, however we end.
    signal.signal(signal.SIGTERM, lambda caught, _frame: sys.exit(128 + caught))
    sys.exit(main())
