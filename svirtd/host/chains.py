# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows what a qcow2 image says that it lies over, as whoever asked for the image.

Runs where the image was opened: in a child that has become the caller, or, for root, in the daemon.
So a header names nothing that its reader could not have named himself. It is read through the
descriptor that is labelled later, before that; its owner could write another one in the meantime or
afterwards, and would gain nothing: what is labelled is what was opened here, by the rules of
everything that is named, and QEMU follows the header by itself, under the VM's label. Everything
blocks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from svirtd.core import leases, qcow2, rules
from svirtd.core.model import Access, Backing, Format, Kind, ResourceRequest, Terms
from svirtd.core.qcow2 import CHAIN_MAX, HEAD_BYTES, Header
from svirtd.errors import InvalidArgs, ResourceRefused
from svirtd.host import opening, walk
from svirtd.host.files import why
from svirtd.host.kernel import Kernel
from svirtd.host.opening import Opened, Taken
from svirtd.host.scarcity import refuse_scarcity


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a chain: `top` is the place in the request of the image that it lies under, `named`
    the one whose header names it; `below`: only read, unlike the data file of the top itself."""

    top: int
    path: str
    named: str
    below: bool
    fd: int


def follow_all(kernel: Kernel, tops: Sequence[tuple[int, ResourceRequest, int]]) -> list[Member]:
    """Return what lies under these images (place in the request, request, descriptor), opened.

    The caller closes each. Raises ResourceRefused, LimitsExceeded.
    """
    found: list[Member] = []
    try:
        for place, request, fd in tops:
            _follow(kernel, place, request, fd, found)
    except BaseException:
        for one in found:
            os.close(one.fd)
        raise
    return found


def images(requests: Sequence[ResourceRequest]) -> list[tuple[int, ResourceRequest]]:
    """Return which resources have something under them, with their places in the request."""
    return [(n, one) for n, one in enumerate(requests) if one.terms.format is Format.QCOW2]


def _follow(
    kernel: Kernel, place: int, request: ResourceRequest, top: int, found: list[Member]
) -> None:
    here, path, named = top, request.path or os.readlink(f"/proc/self/fd/{top}"), request.named
    passed = {walk.facts(top).identity}
    for depth in range(CHAIN_MAX + 1):
        header = _header(here, named)
        if header.data_file:
            access = request.opens if here == top else Access.READONLY
            data = _open(kernel, header.data_file, access, named)
            found.append(Member(place, header.data_file, named, here != top, data))
        if not header.backing:
            return
        if depth == CHAIN_MAX:
            raise ResourceRefused(
                f"{request.named} lies over more than {CHAIN_MAX} files; commit or rebase some of "
                "them (qemu-img rebase), or say format 'raw' and name each file yourself"
            )
        path = _place(path, here, header.backing, named)
        here = _open(kernel, path, Access.READONLY, named)
        found.append(Member(place, path, named, True, here))
        if header.backing_format is Format.RAW:
            return
        identity = walk.facts(here).identity
        if identity in passed:
            raise ResourceRefused(
                f"{named} lies over {path}, which lies over it: the chain of {request.named} has "
                "no end; mend it (qemu-img rebase -u)"
            )
        passed.add(identity)
        named = path


def _header(fd: int, named: str) -> Header:
    try:
        head = os.pread(fd, HEAD_BYTES, 0)
        wanted = qcow2.head_bytes(head)
        if wanted > len(head) == HEAD_BYTES:
            head += os.pread(fd, wanted - len(head), len(head))
        return qcow2.parse(head)
    except ValueError as error:
        raise ResourceRefused(f"{named} cannot be used as a qcow2 image: {error}") from None
    except OSError as error:
        refuse_scarcity(error)
        raise ResourceRefused(f"{named} cannot be read: {why(error)}") from error


def virtual_size(fd: int, named: str) -> int:
    """Return the size of the disk in an image. Raises ResourceRefused, LimitsExceeded."""
    return _header(fd, named).size


def _place(image: str, fd: int, name: str, named: str) -> str:
    """Return where a name of an image's header leads, from the image's own folder.

    QEMU goes from the folder of the path that it was given. Where that is a link, the two may be
    different folders; then both have to lead to the same file.
    """
    if name.startswith("/"):
        return name
    own = os.path.join(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")), name)
    given = os.path.join(os.path.dirname(image), name)
    if own != given and walk.identity_at(own) != walk.identity_at(given):
        raise ResourceRefused(
            f"{named} lies over {name!r}, and is reached by a link, from whose folder that would "
            "be another file: name the image by its own path, or give it an absolute name "
            "(qemu-img rebase -u -b /PATH -F FORMAT IMAGE)"
        )
    return given


def _open(kernel: Kernel, path: str, access: Access, named: str) -> int:
    try:
        fd = opening.open_path(kernel, path, access)
    except ResourceRefused as error:
        raise ResourceRefused(f"{named} lies over a file that is refused: {error.text}") from error
    what = walk.facts(fd)
    kind = opening.kind_of(what.mode)
    if kind in (Kind.FILE, Kind.BLOCK) and what.links:
        return fd
    os.close(fd)
    rules.refuse_deleted(path, what.links)
    raise ResourceRefused(f"{named} lies over {path}, which is a {kind.value}")


# -- in the daemon -------------------------------------------------------------------------------


def request_of(member: Member, top: ResourceRequest, top_path: str) -> ResourceRequest:
    """Return a file of a chain as a resource of the request. Raises InvalidArgs.

    What lies below is only read, by the access that `backing` says; what is the image's own data
    is held as the image is.
    """
    terms = replace(
        top.terms,
        id="",
        takes="",
        format=Format.RAW,
        part_of=top.terms.id or top_path,
        below=member.named,
    )
    if not member.below:
        return ResourceRequest(member.path, None, top.access, terms)
    access, group = _access(top.terms)
    return ResourceRequest(
        member.path, None, access, replace(terms, group=group, backing_group="", reads=False)
    )


def _access(terms: Terms) -> tuple[Access, str]:
    match terms.backing:
        case Backing.PUBLIC:
            return Access.PUBLIC, ""
        case Backing.GROUP:
            return Access.READONLY, terms.backing_group
        case Backing.PRIVATE:
            return Access.READONLY, ""


def look_all(
    kernel: Kernel,
    requests: Sequence[ResourceRequest],
    opened: Sequence[Opened],
    members: Sequence[Member],
) -> list[Opened]:
    """Look at the files of chains, as at what was named outright; none is left open by a refusal.

    A file that was named as well is held as it was named. One that several images lie over is held
    once, by the VM itself: it does not end with one of them.
    """
    looked: list[Opened] = []
    left = list(members)
    try:
        while left:
            member = left.pop(0)
            request = request_of(member, requests[member.top], opened[member.top].seen.path)
            one = opening.look(kernel, request, Taken(member.fd))
            same = {other.seen.identity: other for other in (*opened, *looked)}.get(
                one.seen.identity
            )
            if same is None:
                looked.append(one)
                continue
            os.close(one.fd)
            if same in looked:
                looked[looked.index(same)] = _shared(same, one)
    except BaseException:
        opening.close_all(looked)
        for member in left:
            os.close(member.fd)
        raise
    return looked


def _shared(first: Opened, second: Opened) -> Opened:
    one, other = first.seen, second.seen
    if (one.access, one.terms.group) != (other.access, other.terms.group):
        raise InvalidArgs(
            f"{one.path} lies under two of the images, with access {one.access.value!r} and with "
            f"{other.access.value!r}: say the same 'backing' for both"
        )
    # The image whose lease ends first is not the only one that needs it.
    until_us, at_end = leases.last(one.terms, other.terms)
    terms = replace(one.terms, part_of="", until_us=until_us, at_end=at_end)
    return Opened(replace(one, terms=terms), first.fd)
