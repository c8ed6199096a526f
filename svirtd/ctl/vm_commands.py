# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands about VMs and the host: each reads its arguments, asks the daemon once or twice, and
prints the answer.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from svirtd.core.model import Lifetime
from svirtd.ctl import arguments, goal_commands, render
from svirtd.ctl.answers import Event
from svirtd.ctl.arguments import Disk, Property
from svirtd.ctl.channel import Unsent, pump
from svirtd.ctl.client import Client
from svirtd.ctl.failures import IO_ERROR, Exit, Failure, exit_code
from svirtd.ctl.options import json_option, name_argument, parsed, request_options
from svirtd.ctl.terminal import (
    answer,
    ask,
    progress_bar,
    screen,
    shows_progress,
    user_name,
    wants_json,
    warn,
)
from svirtd.ctl.values import Options

# What verify tells and nobody has to do anything about.
_HARMLESS: Final = ("foreign",)


class _Launch(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        separated = "--" in args
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if separated:
                raise
            text = f"{error.format_message()} The command of the VM belongs behind --"
            raise click.UsageError(text, ctx) from error


@click.command(cls=_Launch)
@name_argument
@request_options
@click.option(
    "--user",
    metavar="USER",
    callback=parsed(arguments.carried),
    help="User that the command runs as; the default is you.",
)
@click.option(
    "--env",
    "environment",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parsed(arguments.parse_environment),
    help="Environment of the command. Repeatable.",
)
@click.option(
    "--workdir",
    metavar="DIR",
    type=click.Path(file_okay=False),
    callback=parsed(arguments.absolute),
    help="Working directory of the command.",
)
@click.option(
    "--property",
    "properties",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parsed(arguments.parse_property),
    help="Resource control of the unit, as in MemoryMax=2G, CPUQuota=150%, TasksMax=64, "
    "CPUWeight=50, RuntimeMaxSec=1h. Repeatable.",
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(
    name: str,
    disks: Sequence[Disk],
    properties: Sequence[Property],
    command: tuple[str, ...],
    lifetime: str | None,
    workdir: str | None,
    **options: Any,
) -> None:
    """Label disks and start COMMAND as VM NAME under its label.

    The command follows "--" and runs as a systemd unit; its output is in the journal. It is
    labelled and running, or nothing has changed, when svirtctl returns. The labels come back
    when the command ends.

    In an argument, {runtime} stands for the VM's own folder for control sockets:

    \b
      svirtctl launch web --disk web.img --property MemoryMax=2G -- \\
        qemu-system-x86_64 -m 1024 -drive file=/srv/web.img \\
          -qmp unix:{runtime}/qmp,server=on,wait=off
    """
    try:
        argv = arguments.parse_command(command)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="COMMAND") from None
    asked = Options(
        lifetime=Lifetime(lifetime) if lifetime else None,
        working_directory=workdir,
        properties=properties,
        **options,
    )

    async def action(client: Client) -> None:
        enforced = await client.enforced()
        with progress_bar() as progress:
            path, unit = await client.launch(name, argv, disks, asked, progress)
        warn(enforced=enforced)
        answer(
            {"name": name, "vm": path, "unit": unit, "enforced": enforced},
            lambda: f"{render.shown(name)} runs in {render.shown(unit)}\n",
        )
        await _stay(client, name, asked, holds=True)

    ask(action)


@click.command()
@name_argument
@request_options
@json_option
def acquire(name: str, disks: Sequence[Disk], lifetime: str | None, **options: Any) -> None:
    """Label disks for VM NAME, which somebody else starts.

    All of them are labelled, or none. The VM has to run under the process context that
    "svirtctl show NAME" tells. "svirtctl release NAME" takes the labels back.
    """
    asked = Options(lifetime=Lifetime(lifetime) if lifetime else None, **options)

    async def action(client: Client) -> None:
        enforced = await client.enforced()
        with progress_bar() as progress:
            path = await client.acquire(name, disks, asked, progress)
        warn(enforced=enforced)
        answer(
            {"name": name, "vm": path, "enforced": enforced},
            lambda: f"{render.shown(name)} holds {render.resources(len(disks))}\n",
        )
        await _stay(client, name, asked, holds=bool(disks))

    ask(action)


async def _stay(client: Client, name: str, asked: Options, *, holds: bool) -> None:
    """Stay on the bus for a VM whose lifetime is ours; Ctrl-C is the ordinary end of that."""
    if asked.lifetime is Lifetime.CALLER:
        try:
            await client.ended(name, holds=holds)
        except asyncio.CancelledError:
            raise click.exceptions.Exit(Exit.OK) from None


@click.command()
@name_argument
@json_option
def release(name: str) -> None:
    """Stop VM NAME and give its disks their old labels back.

    Stops the unit if "launch" started it. A persistent VM keeps its name and categories.
    """
    with progress_bar() as progress:
        ask(lambda client: client.release(name, progress if shows_progress() else None))
    answer({"name": name}, lambda: f"{render.shown(name)} is released\n")


@click.command()
@name_argument
@json_option
def forget(name: str) -> None:
    """Free name and categories of persistent VM NAME.

    The VM must hold nothing: release it first.
    """
    ask(lambda client: client.forget(name))
    answer({"name": name}, lambda: f"{render.shown(name)} is forgotten\n")


@click.command()
@name_argument
@request_options
@json_option
def plan(name: str, disks: Sequence[Disk], lifetime: str | None, **options: Any) -> int:
    """Say what "acquire" would do with the same arguments.

    Changes nothing. Exits as "acquire" would: not with 0 if a disk would be refused.
    """
    asked = Options(lifetime=Lifetime(lifetime) if lifetime else None, **options)
    steps, goal = ask(lambda client: client.plan(name, disks, asked))
    answer(
        {"steps": steps, "goal": goal},
        lambda: render.plan_list(steps, screen()) + goal_commands.plan_lines(goal, screen()),
    )
    refused = [str(one["error"]) for one in (goal, *steps) if "error" in one]
    return exit_code(refused[0]) if refused else Exit.OK


@click.command("list")
@json_option
def list_() -> None:
    """List the VMs."""

    async def action(client: Client) -> Any:
        return await client.enforced(), await client.vms()

    enforced, rows = ask(action)
    vms = [
        {"name": r.name, "state": r.state, "unit": r.unit, "owner": r.owner_uid, "path": r.path}
        for r in rows
    ]
    answer(
        {"enforced": enforced, "vms": vms},
        lambda: render.vm_list(rows, user_name, screen(), enforced=enforced),
    )


@click.command()
@name_argument
@json_option
def show(name: str) -> None:
    """Show VM NAME: its state, its contexts, and what it holds."""

    async def action(client: Client) -> Any:
        return await client.enforced(), await client.vm(name)

    enforced, vm = ask(action)
    answer(
        {"enforced": enforced, **render.keyed(vm)},
        lambda: render.vm_details(vm, user_name, screen(), None, enforced=enforced),
    )


@click.command()
@click.argument("what", callback=parsed(arguments.parse_owners))
@json_option
def owners(what: str) -> None:
    """Say which VMs hold WHAT.

    WHAT is a path, categories such as c17,c402, or a whole context. Any name of a file will do,
    also one that no VM was given.
    """
    found = ask(lambda client: client.owners(what))
    answer({"owners": found}, lambda: render.owner_list(found, screen()))


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended; the list says what was.")
@click.option(
    "--scan",
    "folders",
    metavar="DIR",
    multiple=True,
    type=click.Path(),
    callback=parsed(arguments.absolute),
    help="Look below this directory for files that carry the categories of no VM. Repeatable.",
)
@json_option
def verify(folders: Sequence[str], repair: bool) -> int:
    """Compare the book with files, labels and running processes.

    Without --repair no label changes. Exits with 1 if something is left that a person should
    look at. Ctrl-C stops a scan.
    """
    with progress_bar() as progress:
        findings = ask(lambda client: client.verify(folders, progress, repair=repair))
    answer({"findings": findings}, lambda: render.finding_list(findings, screen()))
    left = [one for one in findings if not one["repaired"] and one["kind"] not in _HARMLESS]
    return Exit.REFUSED if left else Exit.OK


@click.command()
@name_argument
@click.argument("socket", callback=parsed(arguments.carried))
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="After the end of the input, wait until the VM has been silent for so long.",
)
@json_option
def channel(name: str, socket: str, linger: float) -> None:
    """Connect the terminal, or a pipe, to SOCKET of VM NAME.

    SOCKET is a socket that the VM's command made in its folder {runtime}. Ends when the VM
    closes it, or after the end of the input (Ctrl-D). Bytes are passed as they are.

    \b
      echo '{"execute": "qmp_capabilities"}' | svirtctl channel web qmp
    """
    stream = ask(lambda client: client.open_channel(name, socket))
    with stream:
        try:
            pump(stream, 0, 1, linger_s=linger)
        except Unsent as error:
            text = f"{error}; the VM does not read from {socket!r}: give it time with --linger"
            raise Failure(IO_ERROR, text, Exit.REFUSED) from error


@click.command()
@json_option
def monitor() -> None:
    """Print what happens to VMs, until Ctrl-C.

    With --json, one object a line.
    """

    async def action(client: Client) -> None:
        events: asyncio.Queue[Event] = asyncio.Queue()
        await client.watch(events.put_nowait)
        await client.enforced()  # fails where there is no daemon to watch
        lost = asyncio.create_task(client.lost())
        while not lost.done():
            following = asyncio.create_task(events.get())
            await asyncio.wait({lost, following}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                _print_event(following.result())
        while not events.empty():
            _print_event(events.get_nowait())
        raise lost.result()

    try:
        ask(action)
    except KeyboardInterrupt:
        return


def _print_event(event: Event) -> None:
    if wants_json():
        line = render.document(render.event_values(event, None), indent=None) + "\n"
    else:
        line = render.event_line(event, screen(), None)
    sys.stdout.write(line)
    sys.stdout.flush()


@click.command()
@json_option
def status() -> None:
    """Show the daemon: version, SELinux, categories in use."""
    manager = ask(lambda client: client.manager())
    answer(render.keyed(manager), lambda: render.daemon_status(manager, screen()))
