# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens what a caller named, and says what it is.

`take` runs as the caller: in a child that has become the caller (host/opener_child.py), or, for
root, in the daemon itself. What it returns is looked at in the daemon, by descriptor and by nobody
else's word. Everything blocks.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.core import plan
from svirtd.core.filesystems import UNKNOWN, may_hang, problem
from svirtd.core.model import Access, Kind, ResourceRequest, Seen
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs, ResourceRefused
from svirtd.host import walk
from svirtd.host.files import QUIET, why
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.scarcity import refuse_scarcity

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFLNK: Kind.LINK,
}


@dataclass(frozen=True, slots=True)
class Taken:
    """A resource, taken by who may. Of one that came by descriptor only where it was found: the
    kind of that file system."""

    fd: int | None
    file_system: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class Opened:
    """An object that a request named, open with the rights that its access takes."""

    seen: Seen
    fd: int


def open_all(kernel: Kernel, requests: Sequence[ResourceRequest]) -> list[Opened]:
    """Open every resource of a request as this process may; the caller closes them with close_all.

    Raises ResourceRefused or InvalidArgs for the first that cannot be opened, and leaves none open
    then.
    """
    opened: list[Opened] = []
    try:
        for request in requests:
            opened.append(look(kernel, request, take(kernel, request)))
    except BaseException:
        close_all(opened)
        raise
    return opened


def hold_all(requests: Sequence[ResourceRequest]) -> list[int]:
    """Hold what a request names, as this process may; the caller closes each. Raises
    ResourceRefused, LimitsExceeded."""
    held: list[int] = []
    try:
        for request in requests:
            held.append(_hold(request))
    except BaseException:
        for fd in held:
            os.close(fd)
        raise
    return held


def _hold(request: ResourceRequest) -> int:
    if request.fd is not None:
        return _hold_passed(request.fd, request.opens)
    path = str(request.path)
    try:
        return walk.hold(path)
    except OSError as error:
        refuse_scarcity(error)
        raise ResourceRefused(f"{path} cannot be used: {why(error)}") from error


def open_all_held(
    kernel: Kernel, requests: Sequence[ResourceRequest], held: Sequence[int]
) -> list[Opened]:
    """Open the very objects that are held, by the rights of this process; otherwise as open_all."""
    opened: list[Opened] = []
    try:
        for request, fd in zip(requests, held, strict=True):
            taken = (
                Taken(open_held(kernel, str(request.path), fd, request.opens))
                if request.fd is None
                else Taken(None, walk.kind_of(fd))
            )
            opened.append(look(kernel, request, taken))
    except BaseException:
        close_all(opened)
        raise
    return opened


def look_all(
    kernel: Kernel, requests: Sequence[ResourceRequest], taken: Sequence[Taken]
) -> list[Opened]:
    """Look at what was taken for a request; none stays open if one is refused."""
    opened: list[Opened] = []
    try:
        for request, one in zip(requests, taken, strict=True):
            opened.append(look(kernel, request, one))
    except BaseException:
        close_all(opened)
        for one in taken[len(opened) + 1 :]:
            if one.fd is not None:
                os.close(one.fd)
        raise
    return opened


def close_all(opened: Sequence[Opened]) -> None:
    """Close what open_all or look_all opened."""
    for one in opened:
        os.close(one.fd)


# -- as the caller ------------------------------------------------------------------------------


def take(kernel: Kernel, request: ResourceRequest) -> Taken:
    """Take a resource by the rights of this process, which are proven by that.

    What a path names is opened as the access takes, or only held if it is of a kind that is never
    labelled. What came by descriptor is looked for at its path. Raises ResourceRefused,
    InvalidArgs, LimitsExceeded.
    """
    if request.path is not None:
        return Taken(_open_path(kernel, request.path, request.opens))
    held = _hold_passed(_passed(request), request.opens)
    try:
        return Taken(None, walk.kind_of(held))
    finally:
        os.close(held)


def _passed(request: ResourceRequest) -> int:
    if request.fd is None:
        raise InvalidArgs("a resource needs a path or an fd")
    return request.fd


def refuse_odd(request: ResourceRequest, taken: Taken) -> None:
    """Raise ResourceRefused for what is never labelled, whatever the plan would say of it."""
    what = walk.facts(_passed(request) if taken.fd is None else taken.fd)
    plan.refuse_kind(request.named, kind_of(what.mode))
    plan.refuse_deleted(request.named, what.links)


def _open_path(kernel: Kernel, path: str, access: Access) -> int:
    try:
        held = walk.hold(path)
    except OSError as error:
        raise not_opened(kernel, path, access, error) from error
    try:
        return open_held(kernel, path, held, access)
    finally:
        os.close(held)


def open_held(kernel: Kernel, path: str, held: int, access: Access) -> int:
    """Open that very object that is held, by the rights of this process.

    What is never labelled is not opened, since that may have an effect (a fifo, a terminal): it is
    held once more, for the plan to refuse with its kind. Raises ResourceRefused, LimitsExceeded.
    """
    try:
        if not _may_label(walk.facts(held).mode):
            return os.dup(held)
        flags = os.O_RDWR if access.writes else os.O_RDONLY
        return os.open(f"/proc/self/fd/{held}", flags | QUIET)
    except OSError as error:
        raise not_opened(kernel, path, access, error) from error


def not_opened(kernel: Kernel, path: str, access: Access, error: OSError) -> ResourceRefused:
    """Return the refusal of an object. Raises LimitsExceeded if it is not the object's fault."""
    refuse_scarcity(error)
    wanted = "reading and writing" if access.writes else "reading"
    text = why(error)
    if error.errno == errno.EACCES:
        if os.geteuid():
            text += f" for uid {os.geteuid()}"
        if kernel.enabled():
            # The policy has the last word on types, for root too.
            with contextlib.suppress(OSError, NoLabels):
                text += (
                    f"; it carries {shown(str(_label_at(kernel, path)))}, and the policy lets "
                    "svirtd use files of the types in [labels] relabel-from only: see svirtd(8)"
                )
    return ResourceRefused(f"{path} cannot be opened for {wanted}: {text}")


def _label_at(kernel: Kernel, path: str) -> str | None:
    held = walk.hold(path)
    try:
        return kernel.read_label(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def _hold_passed(fd: int, access: Access) -> int:
    """Find a passed descriptor's object at its path; its open mode proves the right."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL)
    if mode & os.O_PATH:
        raise ResourceRefused(
            "the passed descriptor was opened with O_PATH, which proves nothing: open the file "
            "for reading, or for reading and writing where access is 'exclusive' or 'group'"
        )
    how = mode & os.O_ACCMODE
    wanted = (os.O_RDWR,) if access.writes else (os.O_RDONLY, os.O_RDWR)
    if how not in wanted:
        need = "reading and writing" if access.writes else "reading"
        raise ResourceRefused(
            f"the passed descriptor is not open for {need}, which access "
            f"{access.value!r} takes: open the file so, or ask for another access"
        )
    what = walk.facts(fd)
    path = os.readlink(f"/proc/self/fd/{fd}")
    if not _may_label(what.mode) or not what.links:
        # Held as it is, for the plan to refuse.
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    try:
        held = walk.hold(path, walk.Links.BUT_THE_LAST)
        if walk.facts(held).identity == what.identity:
            return held
        os.close(held)
    except OSError as error:
        refuse_scarcity(error)
    # The label could be set, but after a restart nobody could give it back.
    raise ResourceRefused(
        f"the passed descriptor's file is not found at {path[:256]!a} from here; pass a file of "
        "this host's own mount namespace"
    )


# -- in the daemon -------------------------------------------------------------------------------


def look(kernel: Kernel, request: ResourceRequest, taken: Taken) -> Opened:
    """Say what was taken, and keep it; it is closed if this raises.

    Raises ResourceRefused, LimitsExceeded.
    """
    fd = taken.fd
    try:
        if fd is None:
            fd = os.dup(_passed(request))
            # Its own mount may be one of another namespace.
            return Opened(_look(kernel, request, fd, taken.file_system), fd)
        return Opened(_look(kernel, request, fd, walk.kind_of(fd)), fd)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        refuse_scarcity(error)
        raise ResourceRefused(f"{request.named} cannot be looked at: {why(error)}") from error
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise


def _look(kernel: Kernel, request: ResourceRequest, fd: int, file_system: str) -> Seen:
    named, through = request.named, f"/proc/self/fd/{fd}"
    what = walk.facts(fd)
    # A mount of elsewhere may be of any kind: nothing is asked of it, and it is refused as unknown.
    asked = _may_label(what.mode) and what.links > 0 and file_system != UNKNOWN
    if may_hang(file_system):
        raise ResourceRefused(f"{named} is {problem(file_system)}")
    path = os.readlink(through)
    if not path.isprintable():
        # As for a named path, whose links may end anywhere: this is the path that the book keeps
        # and every message shows. Bytes that are not UTF-8 are not printable either.
        raise ResourceRefused(
            f"{named} is the file {path[-64:]!a}, a path that cannot be shown; rename it"
        )
    return Seen(
        named=named,
        access=request.access,
        path=path,
        identity=what.identity,
        kind=kind_of(what.mode),
        links=what.links,
        setid=bool(what.mode & (stat.S_ISUID | stat.S_ISGID)),
        label=_label(kernel, named, through) if asked else None,
        owner_uid=what.uid,
        file_system=file_system,
        terms=request.terms,
    )


def _label(kernel: Kernel, named: str, through: str) -> str | None:
    try:
        return kernel.read_label(through)
    except NoLabels:
        raise ResourceRefused(
            f"{named}: its file system cannot keep a label; move the file to one with extended "
            "attributes (ext4, xfs, btrfs, tmpfs)"
        ) from None
    except OSError as error:
        raise ResourceRefused(f"{named}: its label cannot be read ({error.strerror})") from error


def kind_of(mode: int) -> Kind:
    """Return what an object of this mode is."""
    return _KINDS.get(stat.S_IFMT(mode), Kind.OTHER)


def _may_label(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)
