# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl libvirt`: domains of libvirt's as VMs of svirtd's."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from svirtd.core.domains import Domain, uncovered
from svirtd.core.mcs import format_categories, parse_context
from svirtd.ctl import arguments, libvirt_adopt, render
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.libvirt_adopt import Adopted
from svirtd.ctl.libvirt_calls import LibvirtCalls
from svirtd.ctl.libvirt_door import URI, Libvirt
from svirtd.ctl.libvirt_watch import watch as watch_domains
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.render import Screen, shown
from svirtd.ctl.terminal import answer, ask_as, screen
from svirtd.ctl.values import Values

_NOT_ADOPTED: Final = "-"


def _group(text: str) -> tuple[str, str]:
    path, separator, group = arguments.carried(text).rpartition("=")
    if not separator or not group or not path:
        raise ValueError(f"{text!r} is not PATH=GROUP")
    return os.path.abspath(path), group


_connect = click.option(
    "--connect",
    "uri",
    metavar="URI",
    default=URI,
    show_default=True,
    help="Which libvirt is meant.",
)
_domain = click.argument("domain", callback=parsed(arguments.carried))


@click.group(no_args_is_help=False)
def libvirt() -> None:
    """Domains of libvirt's as VMs.

    A domain that is adopted has the same categories at each start, and svirtd's label in its
    definition. libvirt labels by it; svirtd keeps others from what the domain uses, and looks after
    the labels while it runs.
    """


@libvirt.command()
@click.argument("domains", nargs=-1, callback=parsed(arguments.carried))
@click.option("--all", "all_", is_flag=True, help="Every domain that libvirt has a definition of.")
@click.option(
    "--group",
    "groups",
    metavar="PATH=GROUP",
    multiple=True,
    callback=parsed(_group),
    help="Have GROUP share this disk of the domain: its VMs can use it, and no other. Repeatable.",
)
@_connect
@json_option
def adopt(
    domains: Sequence[str], groups: Sequence[tuple[str, str]], uri: str, *, all_: bool
) -> int:
    """Give DOMAIN a label that it has at each start.

    It is written into the definition; all else of that stays as it is. A domain that runs has the
    label from its next start on.
    """
    if bool(domains) == all_:
        raise click.UsageError("name the domains, or say --all")
    if groups and len(domains) != 1:
        raise click.UsageError("--group is about the disks of one domain")
    door = Libvirt(uri)

    async def action(client: LibvirtCalls) -> list[Adopted | Failure]:
        found: list[Adopted | Failure] = []
        for name in door.names() if all_ else domains:
            try:
                found.append(await libvirt_adopt.adopt(client, door, name, dict(groups)))
            except Failure as failure:
                if not all_ or failure.code is Exit.UNREACHABLE:
                    raise
                found.append(Failure(failure.name, f"{name}: {failure.text}", failure.code))
        return found

    found = ask_as(LibvirtCalls, action)
    done = [one for one in found if isinstance(one, Adopted)]
    failures = [one for one in found if isinstance(one, Failure)]
    answer(
        {
            "adopted": [asdict(one) for one in done],
            "failed": [{"error": one.name, "message": one.text} for one in failures],
        },
        lambda: (
            "".join(map(_adopted, done))
            + "".join(render.alarm(shown(one.text), screen()) for one in failures)
        ),
    )
    wrong = bool(failures) or any(one.problems for one in done)
    return Exit.REFUSED if wrong else Exit.OK


def _adopted(one: Adopted) -> str:
    text = f"{shown(one.domain)} is VM {shown(one.vm)} with the label {shown(one.label)}\n"
    if one.runs:
        text += f"{shown(one.domain)} runs: it has that label from its next start on\n"
    for problem in one.problems:
        text += render.alarm(f"{shown(one.domain)} would not start: {shown(problem)}", screen())
    return text


@libvirt.command()
@_domain
@_connect
@json_option
def release(domain: str, uri: str) -> None:
    """Take the label out of the definition of DOMAIN again.

    The definition is as it was before, and the categories go back to the pool. The domain must not
    run.
    """
    door = Libvirt(uri)
    ask_as(LibvirtCalls, lambda client: libvirt_adopt.release(client, door, domain))
    answer({"domain": domain}, lambda: f"{shown(domain)} is libvirt's alone again\n")


@libvirt.command()
@_connect
@json_option
def status(uri: str) -> None:
    """List the domains: which are adopted, and what svirtd's book does not have of them."""
    door = Libvirt(uri)

    async def action(client: LibvirtCalls) -> list[Values]:
        return [await _looked_at(client, door, name) for name in door.names()]

    found = ask_as(LibvirtCalls, action)
    answer({"domains": found}, lambda: table(found, screen()))


async def _looked_at(client: LibvirtCalls, door: Libvirt, name: str) -> Values:
    running = door.running(name)
    defined = libvirt_adopt.read(name, door.definition(name))
    domain = libvirt_adopt.read(name, running) if running is not None else defined
    vm = await client.of_uuid(domain.uuid)
    return {
        "domain": name,
        "uuid": domain.uuid,
        "runs": running is not None,
        "adopted": bool(vm) and defined.mark is not None,
        "vm": vm.get("Name", ""),
        "state": vm.get("State", ""),
        "label": domain.seclabel.label,
        "categories": _categories(domain),
        "groups": list(vm.get("LastingGroups", ())),
        "from_next_start": bool(vm) and domain.mark is None and defined.mark is not None,
        "not_in_the_book": [
            {"what": used.what, "path": used.path, "reason": why} for used, why in uncovered(domain)
        ],
    }


def _categories(domain: Domain) -> str:
    try:
        return format_categories(parse_context(domain.seclabel.label).categories)
    except ValueError:
        return ""  # libvirt draws a label when it starts


def table(found: Sequence[Values], on: Screen) -> str:
    """Return the domains: a line each, and below what is not in the book."""
    if not found:
        return "libvirt has no domains.\n"
    rows = [
        (
            one["domain"],
            "running" if one["runs"] else "shut off",
            one["vm"] if one["adopted"] else _NOT_ADOPTED,
            one["state"] or _NOT_ADOPTED,
            one["categories"] or _NOT_ADOPTED,
            ", ".join(one["groups"]) or _NOT_ADOPTED,
        )
        for one in found
    ]
    text = render.table(("DOMAIN", "LIBVIRT", "VM", "STATE", "CATEGORIES", "GROUPS"), rows, on)
    notes = [_note(one) for one in found]
    return text + ("\n" if any(notes) else "") + "".join(notes)


def _note(one: Values) -> str:
    text = ""
    name = shown(one["domain"])
    if one["from_next_start"]:
        text += f"{name}: adopted while it ran; it has its label from its next start on\n"
    if one["adopted"]:
        for left in one["not_in_the_book"]:
            path = f" {left['path']}" if left["path"] else ""
            text += f"{name}: {shown(left['what'])}{shown(path)}: {shown(left['reason'])}\n"
    return text


@libvirt.command()
@_connect
def watch(uri: str) -> None:
    """Adopt domains when they are defined, until Ctrl-C.

    svirtd-libvirt.service runs this. Which domains are meant is in svirtd.toml(5), [libvirt] adopt.
    """
    door = Libvirt(uri)

    async def action(client: LibvirtCalls) -> Any:
        await watch_domains(client, door)

    try:
        ask_as(LibvirtCalls, action)
    except KeyboardInterrupt:
        return
