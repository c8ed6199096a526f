# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain of libvirt's: what it is, what svirtd wrote into it, what the book has of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from svirtd.core.domain_parts import Given, Sort, Used, selinux, uses_of
from svirtd.core.model import Access, Contexts
from svirtd.core.xml_text import Element, parse

MARK: Final = "urn:org.svirt1:domain"


@dataclass(frozen=True, slots=True)
class Seclabel:
    """The domain's own, as libvirt would take it. `label` and `image` are empty if it draws one."""

    type: str = "dynamic"
    relabel: bool = True
    label: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What svirtd has written into the domain: the VM's name, and its groups' disks by path."""

    name: str
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as it is described."""

    name: str
    uuid: str
    seclabel: Seclabel
    mark: Mark | None
    uses: tuple[Used, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Something that svirtd enters for the domain."""

    path: str
    access: Access
    group: str = ""


def described(text: bytes) -> Domain:
    """Return a domain by its description. Raises ValueError for what is none."""
    root = parse(text)
    if root.tag != "domain":
        raise ValueError("it is no <domain>")
    name, uuid = root.said("name"), root.said("uuid").lower()
    if not name:
        raise ValueError("the domain has no name")
    seclabel = _seclabel(root)
    uses = tuple(uses_of(root, uuid))
    if not seclabel.relabel:
        why = f"the domain's seclabel (type '{seclabel.type}') has libvirt label nothing"
        uses = tuple(Used(u.what, u.path, Given.NOTHING, u.sort, why=u.why or why) for u in uses)
    return Domain(name, uuid, seclabel, _mark(root), uses)


def label_of(used: Used, contexts: Contexts, image: str) -> str | None:
    """Return the label that something gets, None if it keeps its own. `image` is the domain's."""
    match used.gives:
        case Given.IMAGE:
            return image
        case Given.CONTENT:
            return str(contexts.content.with_categories(frozenset()))
        case Given.SHARED:
            return str(contexts.image.with_categories(frozenset()))
        case Given.OWN:
            return used.label
        case Given.NOTHING:
            return None


def holds(domain: Domain) -> tuple[Hold, ...]:
    """Return what svirtd enters: files that libvirt gives a label which svirtd gives, too."""
    found: dict[Hold, None] = {}
    for used in domain.uses:
        if used.sort is not Sort.FILE or not used.path:
            continue
        group = domain.mark.groups.get(used.path, "") if domain.mark else ""
        if used.gives is Given.IMAGE:
            found[Hold(used.path, Access.EXCLUSIVE)] = None
        elif used.gives is Given.CONTENT:
            found[Hold(used.path, Access.PUBLIC)] = None
        elif used.gives is Given.OWN and group:
            found[Hold(used.path, Access.GROUP, group)] = None
    return tuple(found)


def uncovered(domain: Domain) -> tuple[tuple[Used, str], ...]:
    """Return what svirtd does not enter, each with the reason in words."""
    entered = {hold.path for hold in holds(domain)}
    found = []
    for used in domain.uses:
        if used.path and used.path in entered:
            continue
        match used.gives:
            case Given.NOTHING:
                why = used.why
            case Given.SHARED:
                why = "every VM of the host may write it; give it to a group instead"
            case Given.OWN:
                why = f"it has a label of its own, {used.label}"
            case _:
                why = "libvirt labels it by itself; svirtd's book does not have it"
        found.append((used, why))
    return tuple(found)


# -- the domain ---------------------------------------------------------------------------------


def mark_of(root: Element) -> Element | None:
    """Return the element that svirtd has written into a domain."""
    return root.under("metadata", f"{MARK} vm")


def _seclabel(root: Element) -> Seclabel:
    found = next(selinux(root), None)
    if found is None:
        return Seclabel()
    type_ = found.get("type") or "dynamic"
    relabel = found.get("relabel") == "yes" if type_ == "static" else type_ != "none"
    return Seclabel(type_, relabel, found.said("label"), found.said("imagelabel"))


def _mark(root: Element) -> Mark | None:
    found = mark_of(root)
    if found is None:
        return None
    groups = {one.get("path"): one.get("group") for one in found.all(f"{MARK} disk")}
    return Mark(found.get("name"), groups)
