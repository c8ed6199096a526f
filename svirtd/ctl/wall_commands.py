# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl wall`: which walls there are, what was held behind them, and forgetting it."""

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

import click

from svirtd.ctl import arguments, render
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.render import Screen
from svirtd.ctl.terminal import answer, ask, screen, user_name

Values = Mapping[str, Any]


@click.group(no_args_is_help=False)
def wall() -> None:
    """Walls: who held one side never gets the other.

    Walls stand in the configuration of svirtd, between groups: see svirtd.toml(5). All of these
    take an administrator.
    """


@wall.command("list")
@json_option
def list_() -> None:
    """List the walls with their sides."""
    walls = ask(lambda client: client.walls())
    told = [{k: v for k, v in one.items() if k not in ("history", "cleared")} for one in walls]
    answer({"walls": told}, lambda: wall_list(walls, screen()))


@wall.command()
@click.option(
    "--wall",
    "name",
    metavar="WALL",
    callback=parsed(arguments.carried),
    help="Of this wall only.",
)
@json_option
def history(name: str | None) -> None:
    """Show who has held what behind the walls, the newest first.

    SUBJECT is what svirtd remembers: a VM by its Id and by its UUID, an owner by uid:NUMBER. VM
    is the name that the VM had. Below it stands what was cleared, by whom and when.
    """
    walls = [one for one in ask(lambda client: client.walls()) if name in (None, one["name"])]
    told = [{key: one[key] for key in ("name", "entries", "history", "cleared")} for one in walls]
    answer({"walls": told}, lambda: wall_history(walls, screen(), None))


@wall.command()
@click.argument("name", metavar="WALL", callback=parsed(arguments.carried))
@click.argument("subject", callback=parsed(arguments.carried))
@json_option
def clear(name: str, subject: str) -> None:
    """Forget what SUBJECT has held behind WALL, so that it may hold any side again.

    SUBJECT is the name, the Id or the UUID of a VM, or uid:NUMBER for an owner. It is recorded
    who did this, and when.
    """
    removed = ask(lambda client: client.clear_wall(name, subject))
    entries = "1 entry" if removed == 1 else f"{removed} entries"
    answer(
        {"wall": name, "subject": subject, "removed": removed},
        lambda: f"{entries} of {render.shown(subject)} behind {render.shown(name)} forgotten\n",
    )


def wall_list(walls: Sequence[Values], on: Screen) -> str:
    """Return the table of `wall list`."""
    if not walls:
        return "No walls.\n"
    rows = [
        (
            one["name"],
            one["scope"] or "-",
            " | ".join(", ".join(groups) for groups in one["classes"])
            or "(not in the configuration)",
            one["entries"],
        )
        for one in walls
    ]
    return render.table(("WALL", "SCOPE", "SIDES", "HISTORY"), rows, on)


def wall_history(walls: Sequence[Values], on: Screen, zone: tzinfo | None) -> str:
    """Return the tables of `wall history`. Times are in `zone`, the local one if None."""

    def when(time_us: int) -> str:
        return render.moment(time_us / 1e6, zone)

    held = [
        (one["name"], row["subject"], row["group"], row["vm"], when(row["since"]))
        for one in walls
        for row in one["history"]
    ]
    cleared = [
        (one["name"], row["subject"], row["entries"], user_name(row["uid"]), when(row["at"]))
        for one in walls
        for row in one["cleared"]
    ]
    text = "Nothing was held behind a wall.\n"
    if held:
        text = render.table(("WALL", "SUBJECT", "GROUP", "VM", "SINCE"), held, on)
    more = sum(one["entries"] - len(one["history"]) for one in walls)
    if more > 0:
        text += f"\n{more} older ones are not shown.\n"
    if cleared:
        heads = ("WALL", "CLEARED OF", "ENTRIES", "BY", "AT")
        text += "\n" + render.table(heads, cleared, on)
    return text
