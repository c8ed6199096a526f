# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl group`: groups of VMs that share, who may be in them, and who is."""

import pwd
import time
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any, Final

import click

from svirtd.ctl import arguments, render
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.render import Screen, UserName, shown
from svirtd.ctl.terminal import answer, ask, screen, user_name
from svirtd.ctl.times import until_us

Values = Mapping[str, Any]
_UID_MAX: Final = 2**32 - 2


def _until(text: str) -> int:
    return until_us(text, time.time_ns() // 1000)


def _uid(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= _UID_MAX:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a user of this host, nor a number of one") from None


_group = click.argument("group", callback=parsed(arguments.carried))
_vm = click.argument("vm", callback=parsed(arguments.carried))
_at_next_start = click.option(
    "--at-next-start",
    is_flag=True,
    help="Of a VM that runs: leave it as it is, and do this when it is started again.",
)


@click.group(no_args_is_help=False)
def group() -> None:
    """Groups: VMs that share disks, and nobody else.

    A group owns one category, which its VMs have besides their own. A disk that is given with
    --disk PATH:group=NAME carries that category alone: the VMs of the group can use it, others
    cannot.
    """


@group.command()
@click.argument("name", callback=parsed(arguments.carried))
@click.option(
    "--one-writer", is_flag=True, help="Of the VMs of the group one may write, the others read."
)
@click.option(
    "--namespace",
    metavar="PATH",
    type=click.Path(),
    callback=parsed(arguments.absolute),
    help="Make it a zone: its VMs have the network of this namespace and no other.",
)
@json_option
def create(name: str, namespace: str | None, one_writer: bool) -> None:
    """Make the group NAME, which is yours."""
    path = ask(lambda client: client.create_group(name, namespace, one_writer=one_writer))
    answer({"name": name, "group": path}, lambda: f"group {shown(name)} is made\n")


@group.command()
@_group
@json_option
def delete(group: str) -> None:
    """Delete GROUP, which no VM is in and no disk is labelled for."""
    ask(lambda client: client.delete_group(group))
    answer({"name": group}, lambda: f"group {shown(group)} is deleted\n")


@group.command("list")
@json_option
def list_() -> None:
    """List the groups."""
    rows = ask(lambda client: client.groups())
    answer(
        {"groups": [{"name": name, "owner": owner} for name, owner in rows]},
        lambda: group_list(rows, user_name, screen()),
    )


@group.command()
@_group
@json_option
def show(group: str) -> None:
    """Show GROUP: who is in it, and who may be."""
    found = ask(lambda client: client.group(group))
    answer(render.keyed(found), lambda: group_details(found, user_name, screen(), None))


@group.command()
@_group
@_vm
@click.option(
    "--owner",
    metavar="USER",
    callback=parsed(_uid),
    help="Whose VM of that name is meant; the default is yours.",
)
@click.option(
    "--until",
    metavar="TIME",
    callback=parsed(_until),
    help="Until when: 2h, 3d, or a time such as '2027-01-31 18:00' (local) or "
    "2027-01-31T18:00:00Z. Without it, until it is revoked.",
)
@click.option("--stop", is_flag=True, help="Stop the VM if it runs then; without, it is reported.")
@json_option
def grant(group: str, vm: str, owner: int | None, until: int | None, stop: bool) -> None:
    """Allow that VM is in GROUP, which is yours.

    The VM need not exist yet. Its owner puts it into the group: for good with "group join", or
    for one run with --group.
    """
    if stop and until is None:
        raise click.UsageError("--stop says what happens at the time of --until")
    ask(lambda client: client.grant(group, vm, owner, until, stop=stop))
    end = f" until {render.moment(until / 1e6, None)}" if until is not None else ""
    answer(
        {"group": group, "vm": vm, "owner": owner, "until": until},
        lambda: f"{shown(vm)} may be in group {shown(group)}{end}\n",
    )


@group.command()
@_group
@_vm
@_at_next_start
@json_option
def revoke(group: str, vm: str, at_next_start: bool) -> None:
    """End what "group grant" has allowed."""
    ask(lambda client: client.revoke(group, vm, at_next_start=at_next_start))
    answer(
        {"group": group, "vm": vm},
        lambda: f"{shown(vm)} may not be in group {shown(group)} any more\n",
    )


@group.command()
@_group
@_vm
@_at_next_start
@json_option
def join(group: str, vm: str, at_next_start: bool) -> None:
    """Put VM into GROUP for good: it is in it at each start from now on.

    A process gets its categories when it starts: a VM that runs is refused, unless
    --at-next-start is given.
    """
    ask(lambda client: client.join(group, vm, at_next_start=at_next_start))
    answer(
        {"group": group, "vm": vm},
        lambda: f"{shown(vm)} is in group {shown(group)} from its next start on\n",
    )


@group.command()
@_group
@_vm
@_at_next_start
@json_option
def leave(group: str, vm: str, at_next_start: bool) -> None:
    """Take VM out of GROUP again."""
    ask(lambda client: client.leave(group, vm, at_next_start=at_next_start))
    answer(
        {"group": group, "vm": vm},
        lambda: f"{shown(vm)} is not in group {shown(group)} from its next start on\n",
    )


def group_list(rows: Sequence[tuple[str, int]], user: UserName, on: Screen) -> str:
    """Return the table of `group list`."""
    if not rows:
        return "No groups.\n"
    return render.table(("GROUP", "OWNER"), [(name, user(owner)) for name, owner in rows], on)


def group_details(found: Values, user: UserName, on: Screen, zone: tzinfo | None) -> str:
    """Return what `group show` says. Times are in `zone`, the local one if None."""

    def when(time_us: int) -> str:
        return render.moment(time_us / 1e6, zone)

    owner = found.get("Owner", 0)
    rows = [
        ("Group", found.get("Name", "")),
        ("Owner", f"{user(owner)} ({owner})"),
        ("Category", found.get("Category", "")),
        ("Writers", found.get("Writers", "")),
        ("Namespace", found.get("Namespace", "")),
        ("Members", ", ".join(map(str, found.get("Members", ())))),
        ("Created", when(found["CreatedAt"]) if "CreatedAt" in found else ""),
    ]
    text = render.pairs(rows, on)
    if "Members" not in found:
        return text + "\nThe rest is for its owner, the owners of its VMs and root to see.\n"
    grants = [
        (
            one.get("vm", ""),
            user(one.get("owner", 0)),
            when(one["until"]) if one.get("until") else "-",
            one.get("at-end", "") if one.get("until") else "-",
        )
        for one in found.get("Grants", ())
    ]
    if not grants:
        return text + "\nNothing is granted.\n"
    return text + "\n" + render.table(("MAY BE IN IT", "OWNER", "UNTIL", "THEN"), grants, on)
