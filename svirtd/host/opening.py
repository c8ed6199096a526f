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
from dataclasses import dataclass, replace
from typing import Final

from svirtd.core import rules
from svirtd.core.filesystems import BOOLEANS, UNKNOWN, Labels, Mount, may_hang, problem
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


_OPENED: Final = (Kind.FILE, Kind.BLOCK, Kind.DIRECTORY)
_NOWHERE: Final = Mount()


@dataclass(frozen=True, slots=True)
class Taken:
    """A resource, taken by who may. Of one that came by descriptor only where it was found."""

    fd: int | None
    mount: Mount = _NOWHERE


@dataclass(frozen=True, slots=True)
class Opened:
    """An object that a request named, open with the rights that its access takes; a node is only
    held, since opening it may have an effect."""

    seen: Seen
    fd: int

    @property
    def handle(self) -> int | str:
        """What its label is written through: that very object, whatever happens to its path."""
        return f"/proc/self/fd/{self.fd}" if self.seen.kind in rules.NODES else self.fd


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
                else Taken(None, walk.mount_of(fd))
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

    What a path names is opened as the access takes, or only held if it is a node. What came by
    descriptor is looked for at its path. Raises ResourceRefused, InvalidArgs, LimitsExceeded.
    """
    if request.path is not None:
        return Taken(open_path(kernel, request.path, request.opens))
    held = _hold_passed(passed(request), request.opens)
    try:
        return Taken(None, walk.mount_of(held))
    finally:
        os.close(held)


def passed(request: ResourceRequest) -> int:
    """Return the descriptor that a resource came by. Raises InvalidArgs."""
    if request.fd is None:
        raise InvalidArgs("a resource needs a path or an fd")
    return request.fd


def refuse_odd(request: ResourceRequest, taken: Taken) -> None:
    """Raise ResourceRefused for what is never labelled, whatever the plan would say of it."""
    what = walk.facts(passed(request) if taken.fd is None else taken.fd)
    kind = kind_of(what.mode)
    rules.refuse_kind(request.named, kind, recursive=request.terms.recursive)
    rules.refuse_shared_device(request.named, kind, what.device)
    rules.refuse_deleted(request.named, what.links)


def open_path(kernel: Kernel, path: str, access: Access) -> int:
    """Open what a path names, by the rights of this process. Raises ResourceRefused,
    LimitsExceeded."""
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

    A node is not opened, since that may have an effect (a fifo, a device): it is held once more,
    and of a fifo or socket the kernel is asked whether this process might have. Of a device it is
    not: the service's unit can open none, and a device goes to root, to its owner, and to whoever
    may use any file. What is never labelled is held, too, for the plan to refuse with its kind.
    Raises ResourceRefused, LimitsExceeded.
    """
    try:
        what = walk.facts(held)
        kind = kind_of(what.mode)
        _refuse_unkept(kernel, path, walk.mount_by(what))
        if kind in (Kind.FIFO, Kind.SOCKET) and not os.access(
            f"/proc/self/fd/{held}", os.R_OK | (os.W_OK if access.writes else 0)
        ):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if kind not in _OPENED:
            return os.dup(held)
        if kind is Kind.DIRECTORY:
            _refuse_unusable(held, access)
            return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | QUIET)
        flags = os.O_RDWR if access.writes else os.O_RDONLY
        return os.open(f"/proc/self/fd/{held}", flags | QUIET)
    except OSError as error:
        raise not_opened(kernel, path, access, error) from error


def _refuse_unusable(folder: int, access: Access) -> None:
    """A directory is never open for writing: the kernel is asked whether it might be written in.
    Raises PermissionError."""
    wanted = os.R_OK | os.X_OK | (os.W_OK if access.writes else 0)
    if not os.access(f"/proc/self/fd/{folder}", wanted):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _refuse_unkept(kernel: Kernel, path: str, mount: Mount) -> None:
    """Said before it is opened, which the policy would deny for a type that such a mount makes up:
    that is no matter of the type, and nothing for the log."""
    if kernel.enabled() and mount.labels is Labels.NONE:
        raise ResourceRefused(f"{path} is {problem(_told(kernel, mount))}")


def _told(kernel: Kernel, mount: Mount) -> Mount:
    """Return a mount that keeps no labels, with the boolean that opens it to every VM, if on."""
    opened_by = BOOLEANS.get(mount.kind, "")
    return replace(mount, opened_by=opened_by if opened_by and kernel.boolean(opened_by) else "")


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
    what = walk.facts(fd)
    how = mode & os.O_ACCMODE
    wanted = (os.O_RDWR,) if access.writes else (os.O_RDONLY, os.O_RDWR)
    if how not in wanted and not stat.S_ISDIR(what.mode):
        need = "reading and writing" if access.writes else "reading"
        raise ResourceRefused(
            f"the passed descriptor is not open for {need}, which access "
            f"{access.value!r} takes: open the file so, or ask for another access"
        )
    path = os.readlink(f"/proc/self/fd/{fd}")
    if kind_of(what.mode) not in (*_OPENED, *rules.NODES) or not what.links:
        # Held as it is, for the plan to refuse.
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    try:
        held = walk.hold(path, walk.Links.BUT_THE_LAST)
        if walk.facts(held).identity == what.identity:
            if stat.S_ISDIR(what.mode):
                _refuse_unusable(held, access)
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
            fd = os.dup(passed(request))
            # Its own mount may be one of another namespace.
            return Opened(_look(kernel, request, fd, taken.mount), fd)
        return Opened(_look(kernel, request, fd, walk.mount_of(fd)), fd)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        refuse_scarcity(error)
        raise ResourceRefused(f"{request.named} cannot be looked at: {why(error)}") from error
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise


def _look(kernel: Kernel, request: ResourceRequest, fd: int, mount: Mount) -> Seen:
    named, through = request.named, f"/proc/self/fd/{fd}"
    what = walk.facts(fd)
    kind = kind_of(what.mode)
    # A mount of elsewhere may be of any kind: nothing is asked of it, and it is refused as unknown.
    asked = kind in (*_OPENED, *rules.NODES) and what.links > 0 and mount.kind != UNKNOWN
    if may_hang(mount.kind):
        raise ResourceRefused(f"{named} is {problem(mount)}")
    path = os.readlink(through)
    if not path.isprintable():
        # As for a named path, whose links may end anywhere: this is the path that the book keeps
        # and every message shows. Bytes that are not UTF-8 are not printable either.
        raise ResourceRefused(
            f"{named} is the file {path[-64:]!a}, a path that cannot be shown; rename it"
        )
    label, mount = _label(kernel, named, through, mount) if asked else (None, mount)
    return Seen(
        named=named,
        access=request.access,
        path=path,
        identity=what.identity,
        kind=kind,
        links=what.links,
        # On a directory it only says which group a new file gets.
        setid=bool(what.mode & (stat.S_ISUID | stat.S_ISGID)) and kind is not Kind.DIRECTORY,
        label=label,
        owner_uid=what.uid,
        mount=mount,
        terms=request.terms,
        device=what.device,
    )


def _label(kernel: Kernel, named: str, through: str, mount: Mount) -> tuple[str | None, Mount]:
    """Return the label of an object, and where labels of its mount come from by that.

    The kernel shows a label also where none can be set; the mount's options say that.
    """
    try:
        found = kernel.read_label(through)
        # Without SELinux no mount says that it keeps them.
        labels = mount.labels if kernel.enabled() else Labels.KEPT
    except NoLabels:
        found, labels = None, Labels.NONE
    except OSError as error:
        raise ResourceRefused(f"{named}: its label cannot be read ({error.strerror})") from error
    mount = mount if labels is mount.labels else replace(mount, labels=labels)
    return found, _told(kernel, mount) if labels is Labels.NONE else mount


def kind_of(mode: int) -> Kind:
    """Return what an object of this mode is."""
    return _KINDS.get(stat.S_IFMT(mode), Kind.OTHER)
