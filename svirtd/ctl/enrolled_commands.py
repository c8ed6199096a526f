# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl enroll`, `unenroll` and `enrolled`: services that run under a VM's label."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from svirtd.core.enrolment import check_unit
from svirtd.ctl import arguments, drop_ins, render
from svirtd.ctl.arguments import Disk
from svirtd.ctl.client import Client
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.options import enrol_options, json_option, name_argument, parsed
from svirtd.ctl.render import Screen, shown
from svirtd.ctl.terminal import answer, ask, screen, warn
from svirtd.ctl.values import Options
from svirtd.errors import AccessDenied, InvalidArgs, NoSuchVM

Values = Mapping[str, Any]


def _unit(text: str) -> str:
    """Read a unit's name; ".service" may be left out, as for systemctl."""
    name = text if text.endswith(".service") else f"{text}.service"
    try:
        return check_unit(arguments.carried(name))
    except InvalidArgs as error:
        raise ValueError(error.text) from None


_unit_argument = click.argument("unit", callback=parsed(_unit))


@click.command()
@_unit_argument
@name_argument
@enrol_options
@json_option
def enroll(unit: str, name: str, disks: Sequence[Disk], **options: Any) -> None:
    """Have the service UNIT run as VM NAME from its next start on.

    Its processes get the label of a VM of their own, the same at every start; its disks are
    labelled before each start and get their earlier labels back at each end. What that takes is
    written to a drop-in of the unit. Without svirtd, the service does not start.

    Again, for a unit that does not run: it gets these disks and options instead.

    \b
      svirtctl enroll web.service web --disk /srv/web.img
      svirtctl enroll vm@db.service db --disk /srv/db.img --goal offline
    """
    _refuse_users()
    asked = Options(**options)

    async def action(client: Client) -> Values:
        enforced = await client.enforced()
        await client.refuse_unknown_unit(unit)
        await client.enroll(unit, name, disks, asked)
        found = await _enrolled(client, unit)
        await _write(client, [found])
        return {**found, "enforced": enforced}

    found = ask(action)
    warn(enforced=found["enforced"])
    answer(
        found,
        lambda: f"{shown(unit)} is enrolled as {shown(name)}, from its next start on\n",
    )


@click.command()
@_unit_argument
@click.option("--keep", is_flag=True, help="Keep the VM, with its name and categories.")
@json_option
def unenroll(unit: str, keep: bool) -> None:
    """Have the service UNIT run as it did before it was enrolled.

    It must not run. Its drop-in is removed, and the VM forgotten.
    """
    _refuse_users()

    async def action(client: Client) -> None:
        missing = None
        try:
            await client.unenroll(unit, keep=keep)
        except Failure as failure:
            if failure.name != NoSuchVM.name:
                raise
            missing = failure
        # After the book: a drop-in that is left over keeps the unit from starting at all.
        removed = drop_ins.remove(unit)
        if removed:
            await client.reload_units()
        elif missing is not None:
            raise missing

    ask(action)
    answer({"unit": unit}, lambda: f"{shown(unit)} is not enrolled any more\n")


@click.group(no_args_is_help=False)
def enrolled() -> None:
    """Enrolled units: which there are, and what they call themselves."""


@enrolled.command("list")
@json_option
def list_() -> int:
    """List the enrolled units; exits with 1 if one of them could not start."""
    found = [_looked_at(one) for one in ask(lambda client: client.enrolled())]
    answer({"enrolled": found}, lambda: table(found, screen()))
    return Exit.REFUSED if any(one["problem"] for one in found) else Exit.OK


@enrolled.command()
@json_option
def refresh() -> None:
    """Write the drop-ins of all enrolled units again.

    That is due where "enrolled list" says that one is missing or not what it should be: after a
    VM has got into another group, say, or its goal was changed.
    """
    _refuse_users()

    async def action(client: Client) -> list[str]:
        found = await client.enrolled()
        changed = [one for one in found if one["drop-in"] and _differs(one)]
        await _write(client, changed)
        return [one["unit"] for one in changed]

    written = ask(action)
    count = "1 drop-in is" if len(written) == 1 else f"{len(written)} drop-ins are"
    answer({"written": written}, lambda: f"{count} written\n")


@enrolled.command()
@_unit_argument
@json_option
def start(unit: str) -> None:
    """Label what UNIT is to have. Called by systemd, before the unit starts."""
    ask(lambda client: client.start_enrolled(unit))
    answer({"unit": unit}, lambda: "")


@enrolled.command()
@_unit_argument
@json_option
def end(unit: str) -> None:
    """Give the labels of UNIT back. Called by systemd, after the unit has ended."""
    ask(lambda client: client.end_enrolled(unit))
    answer({"unit": unit}, lambda: "")


def _refuse_users() -> None:
    """Raise Failure before anything is half done: the drop-in is a file of root's."""
    if os.geteuid() != 0:
        text = f"a drop-in below {drop_ins.FOLDER} is written, which takes root"
        raise Failure(AccessDenied.name, text, Exit.PERMISSION)


async def _enrolled(client: Client, unit: str) -> Values:
    found = [one for one in await client.enrolled() if one["unit"] == unit]
    if not found or found[0]["problem"]:
        why = found[0]["problem"] if found else "somebody has taken it out again"
        raise Failure(NoSuchVM.name, f"{unit} has no drop-in: {why}", Exit.REFUSED)
    return found[0]


async def _write(client: Client, found: Sequence[Values]) -> None:
    for one in found:
        drop_ins.write(one["unit"], one["drop-in"])
    if found:
        await client.reload_units()


def _differs(one: Values) -> bool:
    return drop_ins.read(str(one["unit"])) != str(one["drop-in"])


def _looked_at(one: Values) -> dict[str, Any]:
    """Add what is wrong with the drop-in of a unit, as far as nothing else is."""
    problem = one["problem"]
    if not problem and _differs(one):
        lost = drop_ins.read(one["unit"]) is None
        what = "has no drop-in" if lost else "has a drop-in that is not what it should be"
        problem = f"{what}; svirtctl enrolled refresh writes it"
    return {**one, "problem": problem}


def table(found: Sequence[Values], on: Screen) -> str:
    """Return the enrolled units: a line each, and below why one could not start."""
    if not found:
        return "No unit is enrolled.\n"
    rows = [(one["unit"], one["vm"], one["state"], one["context"] or "-") for one in found]
    text = render.table(("UNIT", "VM", "STATE", "CONTEXT"), rows, on, state_column=2)
    told = [f"{one['unit']}: {one['problem']}" for one in found if one["problem"]]
    return text + ("\n" if told else "") + "".join(render.alarm(one, on) for one in told)
