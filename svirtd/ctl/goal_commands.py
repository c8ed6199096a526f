# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl goals`: which goals there are, and what each means for a VM."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from svirtd.ctl import arguments, render
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.render import Screen
from svirtd.ctl.terminal import answer, ask, screen
from svirtd.errors import InvalidArgs

Values = Mapping[str, Any]

_NETWORKS = {
    "host": "the host's, as far as the policy lets the type use it",
    "none": "none: a network namespace without interfaces, and a type that may use none",
    "zone": "that of its zone, and no other",
}
_WRITTEN = {
    "kept": "kept: what it may write it writes, the rest it cannot write",
    "overlay": "overlay: what it only reads stays as it is, writes go to a file beside it",
}


@click.command()
@click.argument("name", required=False, callback=parsed(arguments.carried))
@json_option
def goals(name: str | None) -> None:
    """List the goals, or explain goal NAME.

    A goal says what a VM is for: under which type it runs, what it may be given, which network and
    devices it has, and what becomes of what it writes.
    """
    known = ask(lambda client: client.goals())
    if name is None:
        answer({"goals": known}, lambda: table(known, screen()))
        return
    found = next((one for one in known if one["name"] == name), None)
    if found is None:
        names = ", ".join(str(one["name"]) for one in known)
        text = f"goal {name!r} is not known; known goals: {names}"
        raise Failure(InvalidArgs.name, text, Exit.REFUSED)
    answer(found, lambda: details(found, screen()))


def table(known: Sequence[Values], on: Screen) -> str:
    """Return the list of goals: a line each, and below why one cannot be used."""
    rows = [
        (one["name"], one["process-type"], one["network"], one["written"], one["source"])
        for one in known
    ]
    text = render.table(("GOAL", "PROCESS TYPE", "NETWORK", "WRITTEN", "FROM"), rows, on)
    problems = [
        f"{one['name']} cannot be used: {one['problem']}" for one in known if one["problem"]
    ]
    return text + ("\n" if problems else "") + "".join(render.alarm(one, on) for one in problems)


def details(goal: Values, on: Screen) -> str:
    """Return all of one goal, in words."""
    rows = [
        ("Goal", goal["name"]),
        ("", goal["description"]),
        ("From", goal["source"]),
        ("Process type", goal["process-type"]),
        ("Image type", goal["image-type"]),
        ("Accesses", ", ".join(goal["accesses"])),
        ("If none said", goal["default-access"]),
        ("Groups", listed(goal["groups"])),
        ("Network", _NETWORKS.get(goal["network"], goal["network"])),
        ("Devices", listed(goal["devices"])),
        ("Levels", goal["levels"] or "whatever the policy has"),
        ("Written", _WRITTEN.get(goal["written"], goal["written"])),
        ("Digest", "taken before, compared after" if goal["digest"] else "none"),
        ("Problem", goal["problem"]),
    ]
    return render.pairs(rows, on)


def plan_lines(goal: Values, on: Screen) -> str:
    """Return what a plan's goal does to the VM, below the table of its resources."""
    rows = [
        ("Goal", goal.get("goal", "")),
        ("Process", goal.get("process", "")),
        ("Network", goal.get("network", "")),
        ("Devices", listed(goal.get("devices", ""))),
        ("Written", goal.get("written", "")),
        ("Digest", "taken before, compared after" if goal.get("digest") else ""),
        ("Refused", goal.get("reason", "")),
    ]
    return "\n" + render.pairs(rows, on)


def listed(value: str | Sequence[str]) -> str:
    """Return a word or a list of words as text; an empty list is "none"."""
    return value if isinstance(value, str) else ", ".join(value) or "none"
