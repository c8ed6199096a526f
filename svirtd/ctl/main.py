# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl's entry: global options, the way to the commands, and how an error is told.

Only click is imported here. The commands bring D-Bus along and are loaded when one is needed, see
commands.py, so that `svirtctl --version` and a mistyped option answer at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn, TextIO

import click

import svirtd
from svirtd.ctl.commands import COMMANDS
from svirtd.ctl.failures import IO_ERROR, Exit, Failure

_HELP = """Run virtual machines under SELinux labels of their own.

Each VM gets a private set of categories; its disks are labelled for it alone, and get their old
labels back when it is released. svirtctl asks the system service svirtd for that.

\b
Start a VM with a disk of its own, look at it, end it:
  svirtctl launch web --disk web.img -- qemu-system-x86_64 -drive file=web.img ...
  svirtctl show web
  svirtctl release web
Talk to its monitor, which it was told to open at {runtime}/qmp:
  svirtctl channel web qmp

Every command has a --help of its own.
"""

_EPILOG = """\b
Exit codes:
  0  done
  1  svirtd refused or failed; the message says why
  2  the command line is wrong
  3  no such VM or group
  4  not permitted
  5  busy: another VM holds the disk, or the name is in use
  6  svirtd or the bus cannot be reached
"""


# In which order and under what --help lists the commands; one that is not here comes last.
_HEADINGS: Final = {
    "Virtual machines": "launch acquire release forget plan attach detach replace channel",
    "What there is": "list show owners goals monitor status",
    "Virtual machines that others start": "run enroll unenroll enrolled libvirt",
    "Sharing, and never sharing": "group wall",
    "The host": "verify matrix foreign backup restore",
}


class _Commands(click.Group):
    """Takes from click what it would tell itself."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        return COMMANDS.get(cmd_name)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = dict(COMMANDS)
        width = max(map(len, left))
        for heading, names in (*_HEADINGS.items(), ("More", " ".join(left))):
            rows = [
                (name.ljust(width), left.pop(name).get_short_help_str(formatter.width))
                for name in names.split()
                if name in left
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            text = "interrupted; svirtd finishes what it has begun: see svirtctl list"
            raise Failure("Interrupted", text, Exit.INTERRUPTED) from None
        except BrokenPipeError:
            raise _ReaderGone from None


class _ReaderGone(Exception):
    """Whoever read our output has seen enough."""


@click.command(
    cls=_Commands,
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--bus",
    metavar="ADDRESS",
    help="D-Bus address to use instead of the system bus.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON, errors included.")
@click.option(
    "--no-color", is_flag=True, help="Print no colours; NO_COLOR in the environment does the same."
)
@click.option(
    "--no-ask-password", is_flag=True, help="Have nobody asked for a password: fail instead."
)
@click.version_option(svirtd.__version__, prog_name="svirtctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context, bus: str | None, json_: bool, no_color: bool, no_ask_password: bool
) -> None:
    """Keep the global options where the commands find them."""
    ctx.meta["svirtd.ctl.bus"] = bus
    ctx.meta["svirtd.ctl.json"] = json_
    ctx.meta["svirtd.ctl.no-color"] = no_color
    ctx.meta["svirtd.ctl.ask-password"] = not no_ask_password


def main() -> NoReturn:
    """Run svirtctl with the arguments of the process and exit."""
    _prepare_streams()
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run svirtctl with these arguments and return the exit code. Errors go to stderr."""
    wants_json = "--json" in argv[: argv.index("--") if "--" in argv else None]
    try:
        result = cli.main(list(argv), prog_name="svirtctl", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        hint = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail("Usage", error.format_message() + hint, Exit.USAGE, wants_json)
    except click.ClickException as error:
        return _fail("Usage", error.format_message(), Exit.USAGE, wants_json)
    except Failure as failure:
        return _fail(failure.name, failure.text, failure.code, wants_json)
    except (_ReaderGone, BrokenPipeError):
        _drop_output()
        return Exit.BROKEN_PIPE
    except OSError as error:
        _drop_output()
        return _fail(IO_ERROR, f"output: {error.strerror or error}", Exit.REFUSED, wants_json)
    return result if isinstance(result, int) else Exit.OK


def _drop_output() -> None:
    """Lose what could not be written: Python's own flush at exit must not complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(name: str, text: str, code: Exit, wants_json: bool) -> int:
    if wants_json:
        _say(sys.stderr, json.dumps({"error": name, "message": text}))
    else:
        from svirtd.ctl.render import shown  # noqa: PLC0415 -- see the module's text

        _say(sys.stderr, f"svirtctl: {shown(text)}")
    return code


def _say(stream: TextIO, line: str) -> None:
    click.echo(line, file=stream)


def _prepare_streams() -> None:
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Left closed, the number would become the bus's, and the bus would get our output.
            os.open(os.devnull, os.O_RDWR)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115 -- for good
        # A locale that lacks a character must not end a command that has done its work.
        getattr(sys, name).reconfigure(errors="backslashreplace")
