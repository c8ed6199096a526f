# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers name is opened as the caller. The one place that decides by whose authority.

Root's own requests are served by the daemon's authority, which is root's, under the same rules.
Everybody else's are done by a child of the opener that has become them.
"""

import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from svirtd.core import levels
from svirtd.core.filesystems import Labels, Mount
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import (
    VM,
    Caller,
    Identity,
    Kind,
    Override,
    Request,
    ResourceRequest,
    Seen,
)
from svirtd.core.rules import UNLABELLED_TYPE
from svirtd.engine.authorize import About, Action
from svirtd.engine.doors import Doors
from svirtd.errors import Failed, InvalidArgs, LabelRefused, ResourceRefused
from svirtd.host import chains, opener_child, opening, walk
from svirtd.host.chains import Member
from svirtd.host.credentials import Account
from svirtd.host.files import why
from svirtd.host.kernel import Kernel
from svirtd.host.opening import Opened, Taken
from svirtd.host.scarcity import refuse_scarcity

# What a rule is lifted for: a descriptor of each resource, or None where none is.
Held = tuple[int, ...] | None

# What the policy calls each kind that is labelled.
_CLASSES: Final = {
    Kind.FILE: "file",
    Kind.BLOCK: "blk_file",
    Kind.CHARACTER: "chr_file",
    Kind.FIFO: "fifo_file",
    Kind.SOCKET: "sock_file",
    Kind.DIRECTORY: "dir",
}
_UNLABELLED = f"system_u:object_r:{UNLABELLED_TYPE}:s0"


class Openings:
    """Opens, holds and connects for callers. Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    @contextlib.asynccontextmanager
    async def lifted(self, caller: Caller, request: Request) -> AsyncIterator[Held]:
        """Have somebody allow that rules are lifted, for the very objects that he is shown.

        They are held before anybody is asked, and it is these that are used afterwards, whatever
        has become of their names meanwhile.
        """
        if not request.overrides or not request.resources:
            yield None
            return
        if caller.uid == 0:
            # Root opens by its own authority; the policy says whether its domain may lift rules.
            await self._doors.authority.authorize(caller, Action.USE_ANY_FILE)
            yield None
            return
        held, refused = await self._hold(caller, request)
        try:
            # Somebody is asked all the same where there is nothing: whether a file is there, in
            # folders that the caller cannot read, is not told by who is asked and who is not.
            paths = (
                tuple(one.named for one in request.resources)
                if refused
                else tuple(os.readlink(f"/proc/self/fd/{fd}") for fd in held)
            )
            about = About(request.name, paths)
            await self._doors.authority.authorize(caller, Action.USE_ANY_FILE, about=about)
            if refused is not None:
                raise refused
            yield tuple(held)
        finally:
            for fd in held:
                os.close(fd)

    async def _hold(
        self, caller: Caller, request: Request
    ) -> tuple[list[int], ResourceRefused | None]:
        """Hold each object that a request names; as root only where its owner's rule is lifted.

        Then a refusal is returned, and nothing is held.
        """
        if Override.OWNER not in request.overrides:
            return [one.fd for one in await self._open_as(caller, request)], None
        held: list[int] = []
        try:
            work = opening.hold_all
            await self._doors.in_file_thread(lambda: held.extend(work(request.resources)))
        except BaseException as error:
            for fd in held:
                os.close(fd)
            if isinstance(error, ResourceRefused):
                return [], error
            raise
        return held, None

    async def open(self, caller: Caller, request: Request, held: Held = None) -> list[Opened]:
        """Open every resource of a request; the caller of this closes them with close_all.

        `held` is what lifted() has given.
        """
        kernel, resources = self._doors.kernel, request.resources
        if held is not None and Override.OWNER in request.overrides:
            # Allowed by whoever may use any file; the policy has been asked about that permission.
            opened = await self._kept(lambda: opening.open_all_held(kernel, resources, held))
            # Nobody was shown what their headers name: that is opened as the caller all the same.
            return await self._with_chains(caller, request, opened)
        opened = await self._open_as(caller, request)
        try:
            _refuse_exchanged(opened, held)
            refuse_by_policy(kernel, caller, [one.seen for one in opened])
        except BaseException:
            opening.close_all(opened)
            raise
        return opened

    async def _open_as(self, caller: Caller, request: Request) -> list[Opened]:
        """Open by the caller's own rights, and look at what that gave."""
        kernel, resources = self._doors.kernel, request.resources
        if caller.uid == 0:
            return await self._kept(lambda: _open_by_root(kernel, resources))
        passed = [one.fd for one in resources if one.fd is not None]
        named = [
            (
                one.path,
                None if one.fd is None else passed.index(one.fd),
                one.opens.value,
                one.terms.format.value,
                one.terms.recursive,
            )
            for one in resources
        ]
        job = {"do": "open", "resources": named}
        answer = await self._doors.opener.do(account_of(caller), job, passed)
        fds = iter(answer.fds)
        mounts, below = answer.told[: len(resources)], answer.told[len(resources) :]
        taken = [
            Taken(next(fds)) if one.fd is None else Taken(None, _mount(told))
            for one, told in zip(resources, mounts, strict=True)
        ]
        members = [_member(told, next(fds)) for told in below]
        return await self._kept(lambda: _look_all(kernel, resources, taken, members))

    async def _with_chains(
        self, caller: Caller, request: Request, opened: list[Opened]
    ) -> list[Opened]:
        """Return what is open, and what the images among it lie over, opened as the caller."""
        kernel, tops = self._doors.kernel, chains.images(request.resources)
        if not tops:
            return opened
        try:
            named = [(place, one.path, one.opens.value) for place, one in tops]
            job = {"do": "below", "resources": named}
            fds = [opened[place].fd for place, _ in tops]
            answer = await self._doors.opener.do(account_of(caller), job, fds)
            pairs = zip(answer.told, answer.fds, strict=True)
            members = [_member(told, fd) for told, fd in pairs]
            work = functools.partial(chains.look_all, kernel, request.resources, opened, members)
            more = await self._kept(work)
        except BaseException:
            opening.close_all(opened)
            raise
        opened += more
        try:
            refuse_by_policy(kernel, caller, [one.seen for one in more])
        except BaseException:
            opening.close_all(opened)
            raise
        return opened

    async def _kept(self, work: Callable[[], list[Opened]]) -> list[Opened]:
        """Open in a file thread, and leave nothing open if the request is cancelled meanwhile."""
        opened: list[Opened] = []
        try:
            await self._doors.in_file_thread(lambda: opened.extend(work()))
        except BaseException:
            opening.close_all(opened)
            raise
        return opened

    async def check_command(self, account: Account, path: str, process_context: Context) -> None:
        """Refuse what this account could not execute, or what no VM may begin with."""
        kernel = self._doors.kernel
        if account.uid == 0:
            label = await self._doors.in_file_thread(opener_child.command_label, kernel, path)
        else:
            job = {"do": "command", "path": path}
            (label,) = (await self._doors.opener.do(account, job)).told
        refuse_entry(kernel, path, label, process_context)

    async def identity(self, caller: Caller, path: str) -> Identity | None:
        """Return what a path leads the caller to, None if nowhere."""
        if caller.uid == 0:
            return await self._doors.in_file_thread(walk.identity_at, path)
        job = {"do": "identity", "path": path}
        told = (await self._doors.opener.do(account_of(caller), job)).told
        return Identity(*told) if told else None

    async def connect(self, vm: VM, name: str, level_context: str) -> int:
        """Return a connection to a socket in a VM's runtime folder, made as the VM's own account.

        What the VM sees of its peer is then not root.
        """
        doors = self._doors
        account = await doors.in_file_thread(_owner_of, vm.runtime_dir)
        stream = await doors.in_file_thread(make_socket, doors.kernel, level_context)
        try:
            process, image = parse_context(vm.process_context), parse_context(vm.image_context)
            folder, label = vm.runtime_dir, str(levels.made_by(process, image))
            if account.uid == 0:
                work = opener_child.connect
                await doors.in_file_thread(work, doors.kernel, folder, name, label, stream)
            else:
                job = {"do": "connect", "folder": folder, "name": name, "label": label}
                await doors.opener.do(account, job, [stream.fileno()])
            stream.setblocking(True)
            return stream.detach()
        finally:
            stream.close()


def _open_by_root(kernel: Kernel, resources: Sequence[ResourceRequest]) -> list[Opened]:
    opened = opening.open_all(kernel, resources)
    tops = chains.images(resources)
    if tops:
        try:
            places = [(place, one, opened[place].fd) for place, one in tops]
            members = chains.follow_all(kernel, places)
            opened += chains.look_all(kernel, resources, opened, members)
        except BaseException:
            opening.close_all(opened)
            raise
    return opened


def _look_all(
    kernel: Kernel,
    resources: Sequence[ResourceRequest],
    taken: Sequence[Taken],
    members: Sequence[Member],
) -> list[Opened]:
    try:
        opened = opening.look_all(kernel, resources, taken)
    except BaseException:
        for one in members:
            os.close(one.fd)
        raise
    try:
        return opened + chains.look_all(kernel, resources, opened, members)
    except BaseException:
        opening.close_all(opened)
        raise


def _member(told: Sequence[Any], fd: int) -> Member:
    top, path, named, below = told
    return Member(top, path, named, below, fd)


def _mount(told: Sequence[str]) -> Mount:
    kind, point, labels = told
    return Mount(kind, point, Labels(labels))


def _refuse_exchanged(opened: Sequence[Opened], held: Held) -> None:
    # Behind what was named comes what lies under it, of which nobody was asked.
    for one, fd in zip(opened, held or (), strict=False):
        if walk.facts(fd).identity != one.seen.identity:
            raise ResourceRefused(
                f"{one.seen.named} is another file than the one that was allowed; try again"
            )


def account_of(caller: Caller) -> Account:
    """Return what a caller's child becomes. Raises Failed if the bus has not said all of it."""
    if not caller.groups:
        raise Failed(
            f"the bus does not say in which groups {caller.unique_name} is, and files are opened "
            "with these alone; a newer dbus-daemon or dbus-broker says it"
        )
    # All of them count the same for files; which one is the primary is not told.
    return Account(caller.uid, caller.groups[0], caller.groups)


def make_socket(kernel: Kernel, level_context: str) -> socket.socket:
    """Make a socket through which a VM of that level may talk. Raises LabelRefused."""
    with kernel.sockets_at(level_context):
        try:
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            refuse_scarcity(error)
            raise


def _owner_of(folder: str) -> Account:
    try:
        held = walk.hold(folder, walk.Links.BUT_THE_LAST)
    except OSError as error:
        refuse_scarcity(error)
        raise ResourceRefused(f"the VM's runtime folder {folder}: {why(error)}") from error
    try:
        found = walk.facts(held)
    finally:
        os.close(held)
    return Account(found.uid, found.gid, (found.gid,))


def refuse_by_policy(kernel: Kernel, caller: Caller, seen: Sequence[Seen]) -> None:
    """Refuse what the policy keeps from the caller's own context.

    The child that opened it runs in the daemon's domain, so the kernel has not been asked for the
    caller's. Root is asked as well: a confined service that runs as root is no less confined.
    """
    if not kernel.enabled() or not kernel.enforcing():
        return
    try:
        source = parse_context(caller.label)
    except ValueError:
        raise Failed(
            f"the bus does not say under which context {caller.unique_name} runs; without it "
            "nothing is opened on a host that enforces SELinux"
        ) from None
    for one in seen:
        class_ = _CLASSES.get(one.kind)
        if class_ is None:
            continue  # the plan refuses it
        # A socket is connected to, and never opened.
        needed = {"getattr"} if one.kind is Kind.SOCKET else {"getattr", "open", "read"}
        writes = one.access.writes and not one.terms.reads
        if writes:
            needed.add("write")
        if one.kind is Kind.DIRECTORY:
            needed |= {"search", "add_name", "remove_name"} if writes else {"search"}
        target = one.label or _UNLABELLED
        _refuse_missing(kernel, source, target, one, class_, needed)


def _refuse_missing(
    kernel: Kernel, source: Context, target: str, seen: Seen, kind: str, needed: set[str]
) -> None:
    try:
        decision = kernel.decide(source, parse_context(target), kind)
    except ValueError:
        return  # not a context: the plan refuses it
    except OSError as error:
        raise ResourceRefused(
            f"{seen.named}: the policy does not say what {source} may do with {target} ({error})"
        ) from error
    missing = needed - decision.allowed
    if missing and not decision.permissive:
        raise ResourceRefused(
            f"{seen.named} carries {target}, and the policy does not let your own context {source} "
            f"use such a file ({kind}: {', '.join(sorted(missing))}); nobody gets through svirtd "
            "what the policy keeps from him"
        )


def refuse_entry(kernel: Kernel, path: str, label: str | None, process_context: Context) -> None:
    """Refuse a program that the policy lets no VM begin with: better now than after labelling."""
    if not kernel.enabled():
        return
    try:
        context = parse_context(label or _UNLABELLED)
        decision = kernel.decide(process_context, context, "file")
    except (OSError, ValueError) as error:
        raise InvalidArgs(
            f"command {path!r} cannot be run: its label cannot be judged ({error})"
        ) from error
    missing = {"entrypoint", "execute"} - decision.allowed
    if missing and not decision.permissive and kernel.enforcing():
        raise LabelRefused(
            f"command {path!r} has type {context.type}, and the policy does not let a VM "
            f"({process_context.type}) begin with a program of that type ({', '.join(missing)}); "
            "it takes one such as qemu_exec_t (chcon -t qemu_exec_t FILE, or semanage fcontext)"
        )
