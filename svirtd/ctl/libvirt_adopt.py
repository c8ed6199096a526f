# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes a domain of libvirt's a VM of svirtd's, and the other way round.

libvirt's definition and svirtd's book are written one after the other. The book comes first: a
domain whose definition was not written yet has a set that nobody else gets, and no label of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from svirtd.core.domain_edit import Shared, adopted, released
from svirtd.core.domains import Domain, described, holds
from svirtd.core.mcs import parse_categories, parse_context
from svirtd.core.names import check_vm_name
from svirtd.ctl.failures import Exit, Failure
from svirtd.ctl.libvirt_calls import RESERVED, LibvirtCalls
from svirtd.ctl.libvirt_door import Libvirt
from svirtd.ctl.values import Values
from svirtd.errors import InvalidArgs, VMExists

_REFUSED = "Libvirt"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A domain that was adopted: its VM, its label, whether its definition changed, whether it runs
    on under another label for now, and what would keep it from starting."""

    domain: str
    vm: str
    label: str
    changed: bool
    runs: bool
    problems: tuple[str, ...]


def read(name: str, text: bytes) -> Domain:
    """Return a domain by what libvirt says of it. Raises Failure."""
    try:
        return described(text)
    except ValueError as error:
        raise Failure(_REFUSED, f"domain {name!r}: {error}", Exit.REFUSED) from error


async def adopt(
    client: LibvirtCalls, libvirt: Libvirt, name: str, groups: Mapping[str, str]
) -> Adopted:
    """Reserve a set for a domain and write its label into the definition.

    `groups` has the disks that a group shares, by path; those of an earlier time stay. Raises
    Failure, and then neither definition nor book are other than before, but for memberships.
    """
    text = libvirt.definition(name)
    domain = read(name, text)
    if not domain.uuid:
        raise Failure(_REFUSED, f"domain {name!r} has no UUID", Exit.REFUSED)
    shared = {**(domain.mark.groups if domain.mark else {}), **groups}
    vm, made = await _reserve(client, domain)
    try:
        vm, written, changed = await _write(client, libvirt, vm, text, shared)
    except Failure:
        if made:
            await client.forget(str(vm["Name"]))
        raise
    problems: tuple[str, ...] = ()
    running = libvirt.running(name)
    if vm["State"] == RESERVED and running is None:
        steps = await client.planned(str(vm["Name"]), domain.uuid, holds(read(name, written)))
        problems = tuple(str(one["reason"]) for one in steps if "reason" in one)
    label = read(name, written).seclabel.label
    under = read(name, running).seclabel.label if running is not None else label
    return Adopted(name, str(vm["Name"]), label, changed, under != label, problems)


async def release(client: LibvirtCalls, libvirt: Libvirt, name: str) -> None:
    """Take svirtd's label out of a definition again, and the VM out of the book. Raises Failure."""
    text = libvirt.definition(name)
    domain = read(name, text)
    vm = await client.of_uuid(domain.uuid)
    if not vm and domain.mark is None:
        raise Failure(_REFUSED, f"domain {name!r} is not adopted", Exit.REFUSED)
    if vm and vm["State"] != RESERVED and libvirt.running(name) is not None:
        raise Failure(
            _REFUSED,
            f"domain {name!r} runs under svirtd's label; shut it down first (virsh shutdown)",
            Exit.BUSY,
        )
    before = released(text)
    if before != text:
        libvirt.define(before)
    if vm:
        if vm["State"] != RESERVED:
            await client.release(str(vm["Name"]))
        await client.forget(str(vm["Name"]))


async def _reserve(client: LibvirtCalls, domain: Domain) -> tuple[Values, bool]:
    """Return the domain's VM, and whether it is new."""
    vm = await client.of_uuid(domain.uuid)
    if vm:
        return vm, False
    short = f"{domain.name[:51]}-{domain.uuid[:8]}"
    for name in (domain.name, short, f"domain-{domain.uuid}"):
        try:
            return await client.check_in(check_vm_name(name), domain.uuid), True
        except InvalidArgs:
            continue  # libvirt lets a domain be called anything
        except Failure as failure:
            if failure.name != VMExists.name:
                raise
    raise Failure(_REFUSED, f"every name for domain {domain.name!r} is in use", Exit.BUSY)


async def _write(
    client: LibvirtCalls, libvirt: Libvirt, vm: Values, text: bytes, groups: Mapping[str, str]
) -> tuple[Values, bytes, bool]:
    """Write the label; returns the VM as it is then, the definition, and whether it changed."""
    name = str(vm["Name"])
    for group in sorted({*groups.values()} - {*vm["LastingGroups"]}):
        await client.join(group, name, at_next_start=True)
    vm = await client.named(name)
    categories = {
        group: parse_categories(str((await client.group(group))["Category"]))
        for group in vm["LastingGroups"]
    }
    process, image = parse_context(vm["ProcessContext"]), parse_context(vm["ImageContext"])
    whole = parse_categories(vm["Categories"]).union(*categories.values())
    shared = {
        path: Shared(group, str(image.with_categories(categories[group])))
        for path, group in groups.items()
    }
    try:
        new = adopted(text, name, str(process.with_categories(whole)), shared)
    except ValueError as error:
        raise Failure(_REFUSED, f"domain of VM {name!r}: {error}", Exit.REFUSED) from error
    changed = not _alike(text, new)
    if changed:
        libvirt.define(new)
    return vm, new, changed


def _alike(text: bytes, new: bytes) -> bool:
    """Say whether a definition has what svirtd would write: libvirt words it in its own way."""
    old, wanted = described(text), described(new)
    same = (old.mark, old.seclabel.type, old.seclabel.label, old.seclabel.relabel) == (
        *(wanted.mark, wanted.seclabel.type, wanted.seclabel.label, wanted.seclabel.relabel),
    )
    return same and old.uses == wanted.uses
