# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m tests.sandbox run [OPTION…] -- COMMAND…`"""

import argparse
import sys
from pathlib import Path

from tests.sandbox.errors import SandboxError
from tests.sandbox.session import run

_BUS_FILES = Path(__file__).resolve().parents[2] / "dbus"


def main() -> int:
    """Parse the command line, run, and turn a failure of the sandbox into one message."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.sandbox")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("run", help="run a command beside a private systemd, bus and journal")
    verb.add_argument(
        "--bus-files",
        type=Path,
        default=_BUS_FILES,
        metavar="DIR",
        help="bus policy, activation, polkit actions and rules to install (default: the project's)",
    )
    verb.add_argument(
        "--start-timeout-s",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="give up when the sandbox is not up by then (default: 20)",
    )
    verb.add_argument("command", nargs="+", metavar="COMMAND")
    arguments = parser.parse_args()
    try:
        return run(arguments.command, arguments.bus_files.resolve(), arguments.start_timeout_s)
    except (SandboxError, OSError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
