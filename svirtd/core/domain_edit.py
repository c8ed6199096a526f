# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes svirtd's label into the description of a domain, and takes it out again. Pure.

What is not svirtd's stays as it is, to the byte. What svirtd's seclabels take the place of is kept
in the mark, and is put back at the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from svirtd.core.domain_parts import MODEL, selinux
from svirtd.core.domains import MARK, mark_of
from svirtd.core.xml_text import Edit, Element, edited, escaped, inside, parse, without

_BEFORE: Final = f"{MARK} before"


@dataclass(frozen=True, slots=True)
class Shared:
    """A disk that a group shares: the group, and the label that is the group's."""

    group: str
    label: str


def adopted(text: bytes, vm_name: str, label: str, shared: Mapping[str, Shared]) -> bytes:
    """Return the description with this static label, in which libvirt is to use it for all but the
    disks of groups (by path). Raises ValueError: it is none, or has no such disk.

    One that was adopted before gets the new label in the place of the old one.
    """
    text = released(text)
    root = parse(text)
    edits: list[Edit] = []
    before = [text[one.start : one.end].decode() for one in selinux(root)]
    edits += [without(text, one) for one in selinux(root)]
    sources = dict(_sources(root))
    disks = []
    for path, one in shared.items():
        source = sources.get(path)
        if source is None:
            raise ValueError(f"the domain has no disk {path}")
        own = list(selinux(source))
        replaced = "".join(text[o.start : o.end].decode() for o in own)
        disks.append(
            f'<svirtd:disk path="{escaped(path)}" group="{escaped(one.group)}">'
            f"{replaced}</svirtd:disk>"
        )
        new = f"<seclabel model='{MODEL}' relabel='yes'><label>{escaped(one.label)}</label>"
        edits += _instead(text, source, own, f"{new}</seclabel>".encode())
    mark = (
        f'<svirtd:vm xmlns:svirtd="{MARK}" name="{escaped(vm_name)}">{"".join(disks)}'
        f"<svirtd:before>{''.join(before)}</svirtd:before></svirtd:vm>"
    )
    edits.append(_into_metadata(text, root, mark.encode()))
    seclabel = (
        f"  <seclabel type='static' model='{MODEL}' relabel='yes'>\n"
        f"    <label>{escaped(label)}</label>\n  </seclabel>\n"
    )
    edits.append(inside(text, root, seclabel.encode()))
    return edited(text, edits)


def released(text: bytes) -> bytes:
    """Return the description as it was before it was adopted. Raises ValueError if it is none."""
    root = parse(text)
    mark = mark_of(root)
    if mark is None:
        return text
    edits = [without(text, one) for one in selinux(root)]
    before = mark.one(_BEFORE)
    if before is not None:
        again = b"".join(b"  " + text[o.start : o.end] + b"\n" for o in before.children)
        edits.append(inside(text, root, again))
    sources = dict(_sources(root))
    for disk in mark.all(f"{MARK} disk"):
        source = sources.get(disk.get("path"))
        if source is not None:
            own = list(selinux(source))
            earlier = b"".join(text[one.start : one.end] for one in disk.children)
            edits += _instead(text, source, own, earlier)
    metadata = root.one("metadata")
    alone = metadata is not None and metadata.children == [mark]
    edits.append(without(text, metadata if metadata is not None and alone else mark))
    return edited(text, edits)


def _sources(root: Element) -> Iterator[tuple[str, Element]]:
    """Yield the top source of each disk that is a file or block device, by its path."""
    for disk in (one for devices in root.all("devices") for one in devices.all("disk")):
        source = disk.one("source")
        if source is not None and (path := source.get("file") or source.get("dev")):
            yield path, source


def _instead(text: bytes, source: Element, own: list[Element], new: bytes) -> list[Edit]:
    if source.children == own and not new:
        # As it was written: empty, or with no more than it has now.
        head = text[source.start : source.inner].removesuffix(b">").rstrip(b"/ ")
        return [Edit(source.start, source.end, head + b"/>")]
    if not own:
        return [inside(text, source, new)]
    first, *others = own
    return [Edit(first.start, first.end, new), *(without(text, one) for one in others)]


def _into_metadata(text: bytes, root: Element, mark: bytes) -> Edit:
    metadata = root.one("metadata")
    if metadata is not None:
        return inside(text, metadata, mark)
    first = root.one("uuid") or root.one("name")
    at = root.inner if first is None else first.end
    return Edit(at, at, b"\n  <metadata>" + mark + b"</metadata>")
