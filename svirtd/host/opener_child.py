# SPDX-License-Identifier: LGPL-2.1-or-later
"""A child of the opener: becomes an account, does one job as it, answers, and is gone.

A job is JSON from the daemon: the account, what to do, with what. The answer is JSON too, an error
or none, with the descriptors of what was opened. What only is to be known is told in words: on a
host that enforces SELinux the daemon may not even receive a descriptor of just any file. What is
labelled is never taken by word: the daemon looks at those descriptors itself.
"""

import json
import os
import signal
import socket
import stat
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from svirtd.core.model import Access, Format, ResourceRequest, Terms
from svirtd.errors import InvalidArgs, LimitsExceeded, ResourceRefused, SvirtError
from svirtd.host import chains, credentials, opening, walk
from svirtd.host.chains import Member
from svirtd.host.credentials import Account
from svirtd.host.files import why
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.scarcity import refuse_scarcity, scarcity

FDS_AT_ONCE: Final = 200
# What a child may answer with, by name; everything else is a fault of its own.
ERRORS: Final[dict[str, type[SvirtError]]] = {
    one.name: one for one in (ResourceRefused, InvalidArgs, LimitsExceeded)
}
_TEXT_MAX: Final = 16 * 1024


def run(kernel: Kernel, channel: int, server: int, deadline_s: int) -> NoReturn:
    """Do the job that comes over the descriptor `channel`, in a process forked for it; exits."""
    try:
        # A file system that does not answer must not keep this process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(deadline_s)
        with socket.socket(fileno=channel) as stream:
            job, passed = _receive(stream)
            credentials.become(Account(job["uid"], job["gid"], tuple(job["groups"])))
            credentials.end_with_parent(server, signal.SIGKILL)
            _answer(stream, kernel, job, passed)
    except BaseException as error:  # noqa: BLE001 -- the edge of a process that must end here
        os.write(2, f"<3>svirtd-opener: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def _receive(stream: socket.socket) -> tuple[dict[str, Any], list[int]]:
    parts: list[bytes] = []
    fds: list[int] = []
    while True:
        data, new, _, _ = socket.recv_fds(stream, 1 << 16, FDS_AT_ONCE)
        if not data:
            return dict(json.loads(b"".join(parts))), fds
        parts.append(data)
        fds += new


def _answer(
    stream: socket.socket, kernel: Kernel, job: dict[str, Any], passed: Sequence[int]
) -> None:
    error = ["", ""]
    fds: list[int] = []
    told: list[Any] = []
    try:
        fds, told = do(kernel, job, passed)
    except SvirtError as refusal:
        error = [refusal.name, refusal.text[:_TEXT_MAX]]
    except OSError as failure:
        refusal_ = scarcity(failure)
        if refusal_ is None:
            raise
        error = [refusal_.name, refusal_.text]
    for start in range(0, len(fds), FDS_AT_ONCE):
        socket.send_fds(stream, [b" "], fds[start : start + FDS_AT_ONCE])
    stream.sendall(json.dumps({"error": error, "count": len(fds), "told": told}).encode())


def do(kernel: Kernel, job: dict[str, Any], passed: Sequence[int]) -> tuple[list[int], list[Any]]:
    """Do a job by the rights of this process; returns descriptors, and what is told beside them.

    Raises SvirtError of ERRORS, OSError.
    """
    match job["do"]:
        case "open":
            return _open(kernel, job["resources"], passed)
        case "below":
            return _below(kernel, job["resources"], passed)
        case "command":
            return [], [command_label(kernel, job["path"])]
        case "identity":
            found = walk.identity_at(job["path"])
            return [], [] if found is None else [found.dev, found.ino]
        case "connect":
            with socket.socket(fileno=passed[0]) as stream:
                connect(kernel, job["folder"], job["name"], job["label"], stream)
            return [], []
    raise ValueError(f"no such job: {job['do']!r}")


def _open(
    kernel: Kernel, resources: Sequence[Sequence[Any]], passed: Sequence[int]
) -> tuple[list[int], list[Any]]:
    """Take each resource: (path or None, index in passed or None, access, format, recursive)."""
    fds: list[int] = []
    told: list[Any] = []
    tops = []
    for number, (path, index, access, form, recursive) in enumerate(resources):
        fd = None if index is None else passed[index]
        terms = Terms(format=Format(form), recursive=recursive)
        request = ResourceRequest(path, fd, Access(access), terms)
        taken = opening.take(kernel, request)
        # Here rather than by the plan: the daemon may not get a descriptor of it.
        opening.refuse_odd(request, taken)
        told.append([taken.mount.kind, taken.mount.point, taken.mount.labels])
        if taken.fd is not None:
            fds.append(taken.fd)
        if request.terms.format is Format.QCOW2:
            top = opening.passed(request) if taken.fd is None else taken.fd
            tops.append((number, request, top))
    members = chains.follow_all(kernel, tops)
    return [*fds, *(one.fd for one in members)], [*told, *map(_told, members)]


def _told(member: Member) -> list[Any]:
    return [member.top, member.path, member.named, member.below]


def _below(
    kernel: Kernel, resources: Sequence[Sequence[Any]], passed: Sequence[int]
) -> tuple[list[int], list[Any]]:
    """Open what lies under images that are open: (place in the request, path or None, access), and
    a descriptor for each."""
    tops = []
    for (place, path, access), fd in zip(resources, passed, strict=True):
        terms = Terms(format=Format.QCOW2)
        request = ResourceRequest(path, None if path else fd, Access(access), terms)
        tops.append((place, request, fd))
    members = chains.follow_all(kernel, tops)
    return [one.fd for one in members], [_told(one) for one in members]


def command_label(kernel: Kernel, path: str) -> str | None:
    """Return the label of a program that this process may execute. Raises InvalidArgs."""
    held = -1
    try:
        held = walk.hold(path)
        # Whether it is executable for anybody is asked as well: root may always.
        what = walk.facts(held)
        if not stat.S_ISREG(what.mode) or not what.mode & 0o111:
            raise InvalidArgs(f"command {path!r} cannot be run: it is not an executable file")
        if not os.access(f"/proc/self/fd/{held}", os.X_OK):
            raise InvalidArgs(
                f"command {path!r} cannot be run: uid {os.geteuid()} may not execute it, or it "
                "lies on a file system that is mounted noexec"
            )
        # Without a policy there is nobody to judge by it.
        return kernel.read_label(f"/proc/self/fd/{held}") if kernel.enabled() else None
    except NoLabels:
        return None
    except OSError as error:
        refuse_scarcity(error)
        raise InvalidArgs(f"command {path!r} cannot be run: {why(error)}") from None
    finally:
        if held >= 0:
            os.close(held)


def connect(kernel: Kernel, folder: str, name: str, label: str, stream: socket.socket) -> None:
    """Connect a socket to one that a VM has made in its runtime folder. Raises ResourceRefused.

    The VM's socket is held and looked at before it is used: the VM could put a link to some
    service of the host under this name. `label` is the VM's image context.
    """
    where = f"{folder}/{name}"
    try:
        held = walk.hold(where, walk.Links.BUT_THE_LAST)
    except OSError as error:
        refuse_scarcity(error)
        raise ResourceRefused(
            f"there is no socket {name!r} in the VM's runtime folder ({error.strerror}); have its "
            "command make one at {runtime}/" + name
        ) from None
    try:
        refuse_odd_socket(kernel, held, where, folder, label)
        # A unix socket connects at once or not at all.
        stream.connect(f"/proc/self/fd/{held}")
    except OSError as error:
        raise ResourceRefused(f"{where} does not take a connection: {error.strerror}") from None
    finally:
        os.close(held)


def refuse_odd_socket(kernel: Kernel, held: int, where: str, folder: str, label: str) -> None:
    """Only a socket that this very VM has made is connected to. Raises ResourceRefused."""
    above = walk.hold(folder)
    info, owner = walk.facts(held), walk.facts(above)
    os.close(above)
    if not stat.S_ISSOCK(info.mode):
        raise ResourceRefused(f"{where} is not a socket")
    beside = info.identity.dev == owner.identity.dev
    if not beside or info.uid != owner.uid or info.links != 1:
        raise ResourceRefused(f"{where} is not a socket that this VM made itself")
    if not kernel.enabled():
        return
    try:
        found = kernel.read_label(f"/proc/self/fd/{held}")
    except (NoLabels, OSError) as error:
        raise ResourceRefused(f"the label of {where} cannot be read: {error}") from error
    if found != label:
        raise ResourceRefused(f"{where} carries {found}, not the VM's label {label}")
