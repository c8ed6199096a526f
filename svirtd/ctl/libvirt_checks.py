# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt's hook does when there is something to do: it checks a VM in and out at svirtd.

A domain that is adopted does not start without svirtd; one that is not starts as it always did,
unless it would take what a VM of svirtd's holds.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from svirtd.core.domain_parts import Given, Sort, Used
from svirtd.core.domains import Domain, Seclabel, holds, uncovered
from svirtd.core.mcs import format_categories, parse_context
from svirtd.core.model import Access
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.libvirt_calls import RESERVED, LibvirtCalls

# libvirt waits without an end of its own.
_TIMEOUT_S: Final = 60.0
PID_FOLDER: Final = "/run/libvirt/qemu"
_REFUSED: Final = "Refused"
_Work = Callable[[Domain, str | None], Awaitable[None]]


def check(operation: tuple[str, ...], domain: Domain, address: str | None) -> str:
    """Do what goes with an operation; returns why it must not go on, empty if it may."""
    try:
        asyncio.run(_within(_WORK[operation], domain, address))
    except TimeoutError:
        return f"svirtd did not answer within {_TIMEOUT_S:.0f} s"
    except Failure as failure:
        return failure.text
    return ""


def tell(text: str) -> None:
    """Write one line to libvirt, which shows it to whoever has asked for the start."""
    sys.stderr.write("svirtd: " + "".join(c if c.isprintable() else "?" for c in text) + "\n")


async def _within(work: _Work, domain: Domain, address: str | None) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        await work(domain, address)


# -- before the start ---------------------------------------------------------------------------


async def _start(domain: Domain, address: str | None) -> None:
    """Enter the domain, or raise why it must not start.

    When the domain starts, and not when it is prepared: by now libvirt knows what lies under its
    disks, and has made the files that it makes itself. It labels next.
    """
    try:
        async with LibvirtCalls.connected(address, None) as client:
            vm = await client.of_uuid(domain.uuid)
            if not vm and domain.mark is None:
                await _start_alone(client, domain)
            else:
                await _check_in(client, domain, str(vm.get("Name", "")), str(vm.get("State", "")))
    except Failure as failure:
        if failure.code is not Exit.UNREACHABLE or domain.mark is not None:
            raise
        # Nothing of it is svirtd's; and what is, libvirt cannot be kept from without svirtd.
        tell(f"domain {domain.name!r} is not adopted and starts: {failure.text}")


async def _start_alone(client: LibvirtCalls, domain: Domain) -> None:
    """Let a domain start that is not adopted, if it takes nothing of anybody's."""
    _, required = await client.settings()
    if required:
        raise _refusal(
            f"domain {domain.name!r} is not adopted, and [libvirt] require-adopted is set: "
            f"svirtctl libvirt adopt {shlex.quote(domain.name)}"
        )
    await _refuse_conflicts(client, domain, domain.uses, "")
    label = domain.seclabel.label
    if label and _has_categories(label):
        for owner in await client.owners(label):
            raise _refusal(
                f"domain {domain.name!r} was to run under {label}, which gives it what is VM "
                f"{owner['vm']!r}'s; have it start again to get another label from libvirt, or "
                "adopt it (svirtctl libvirt adopt)"
            )


async def _check_in(client: LibvirtCalls, domain: Domain, name: str, state: str) -> None:
    again = f"svirtctl libvirt adopt {shlex.quote(domain.name)}"
    if domain.mark is None:
        raise _refusal(
            f"domain {domain.name!r} is VM {name!r} of svirtd's book, and svirtd's label is gone "
            f"from its description: {again}, or svirtctl libvirt release"
        )
    _refuse_seclabel(domain, again)
    if name and state != RESERVED:
        # libvirt starts it, so it does not run: an end that svirtd was not told of.
        await client.release(name)
    mine = name or domain.mark.name
    left = [used for used, _ in uncovered(domain)]
    await _refuse_conflicts(client, domain, left, mine)
    # A domain that the book does not know comes from another host, and keeps its set.
    categories = "" if name else format_categories(parse_context(domain.seclabel.label).categories)
    vm = await client.check_in(mine, domain.uuid, holds(domain), categories)
    if vm["ProcessContext"] != domain.seclabel.label:
        await client.release(mine)
        raise _refusal(
            f"domain {domain.name!r} has the label {domain.seclabel.label}, and VM {mine!r} of "
            f"svirtd's book {vm['ProcessContext']}: {again}"
        )


def _refuse_seclabel(domain: Domain, again: str) -> None:
    seclabel: Seclabel = domain.seclabel
    if seclabel.type != "static" or not seclabel.relabel or not _has_categories(seclabel.label):
        raise _refusal(
            f"domain {domain.name!r} is adopted, and its seclabel is not what svirtd wrote: {again}"
        )


def _has_categories(label: str) -> bool:
    try:
        return bool(parse_context(label).categories)
    except ValueError:
        return False


async def _refuse_conflicts(
    client: LibvirtCalls, domain: Domain, uses: Sequence[Used], mine: str
) -> None:
    """Raise a refusal that names both, if libvirt would label what a VM of the book holds."""
    for used in uses:
        if used.gives is Given.NOTHING or used.sort not in (Sort.FILE, Sort.NODE):
            continue
        if not used.path.startswith("/"):
            continue
        for owner in await client.owners(used.path):
            alike = used.gives is Given.CONTENT and owner["access"] == Access.PUBLIC.value
            if owner["vm"] != mine and not alike:
                raise _refusal(
                    f"{used.path} ({used.what} of domain {domain.name!r}) is held by VM "
                    f"{owner['vm']!r} with access {owner['access']!r}; end that VM first, or have "
                    "the two share it by a group (svirtctl libvirt adopt --group)"
                )


def _refusal(text: str) -> Failure:
    return Failure(_REFUSED, text, Exit.REFUSED)


# -- after the start, and at the end ------------------------------------------------------------


async def _started(domain: Domain, address: str | None) -> None:
    async with LibvirtCalls.connected(address, None) as client:
        vm = await client.of_uuid(domain.uuid)
        if not vm:
            raise _refusal(f"domain {domain.name!r} is adopted, and was not checked in")
        await client.follow(vm["Name"], _pid(domain.name))


async def _reconnected(domain: Domain, address: str | None) -> None:
    """libvirt is back, and would end the domain if this failed: whatever is wrong is only told."""
    try:
        await _started(domain, address)
    except Failure as failure:
        tell(f"domain {domain.name!r} runs on, and is not in svirtd's book: {failure.text}")


async def _stopped(domain: Domain, address: str | None) -> None:
    async with LibvirtCalls.connected(address, None) as client:
        vm = await client.of_uuid(domain.uuid)
        if vm:
            await client.ending(vm["Name"])


async def _released(domain: Domain, address: str | None) -> None:
    async with LibvirtCalls.connected(address, None) as client:
        vm = await client.of_uuid(domain.uuid)
        if vm and vm["State"] != RESERVED:
            await client.release(vm["Name"])


def _pid(name: str) -> int:
    """Return the process of a domain that libvirt has started."""
    path = os.path.join(PID_FOLDER, f"{name}.pid")
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(32))
    except (OSError, ValueError) as error:
        raise _refusal(f"the process of domain {name!r} is not known: {path}: {error}") from error


_WORK: Final[Mapping[tuple[str, ...], _Work]] = {
    ("start", "begin"): _start,
    ("started", "begin"): _started,
    ("reconnect", "begin"): _reconnected,
    ("stopped", "end"): _stopped,
    ("release", "end"): _released,
}
