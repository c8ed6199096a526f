# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl foreign`: which sets of categories others on this host use."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from svirtd.ctl import render
from svirtd.ctl.options import json_option
from svirtd.ctl.render import Screen
from svirtd.ctl.terminal import answer, ask, screen, user_name

Values = Mapping[str, Any]


@click.command()
@json_option
def foreign() -> None:
    """List the sets of categories that others use.

    libvirt's virtual machines and containers run under sets that svirtd did not give. It hands out
    none that overlaps one of them while they run.
    """
    found = ask(lambda client: client.foreign())
    answer({"foreign": found}, lambda: table(found, screen()))


def table(found: Sequence[Values], on: Screen) -> str:
    """Return the sets: a line each, and below what they could use that a group shares."""
    if not found:
        return "Nobody else uses a set of categories.\n"
    rows = [
        (
            one["categories"],
            one["name"],
            str(one["pid"]),
            str(one["processes"]),
            user_name(one["owner"]),
            one["unit"] or "-",
            one["context"],
        )
        for one in found
    ]
    heads = ("CATEGORIES", "NAME", "PID", "PROCESSES", "OWNER", "UNIT", "CONTEXT")
    text = render.table(heads, rows, on)
    told = [
        f"{render.shown(one['name'])} ({one['pid']}) has the category of "
        f"{render.shown(', '.join(one['groups']))}, and could use what it shares"
        for one in found
        if one["groups"]
    ]
    return text + ("\n" if told else "") + "".join(render.alarm(one, on) for one in told)
