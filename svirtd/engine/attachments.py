# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pipeline for a VM that is up: attach a resource, detach one.

As in engine/requests.py: who is it, may they · what will change · write it down · do it, or undo it
· say it happened.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from svirtd.book import registry
from svirtd.core.model import (
    VM,
    Access,
    Caller,
    Hold,
    Lifetime,
    Override,
    Request,
    ResourceRequest,
    Terms,
)
from svirtd.engine import attached, attaching, goals, levels, unknown
from svirtd.engine.attaching import Attaching, Replaced
from svirtd.engine.authorize import About, Action
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause
from svirtd.engine.foreign import Foreign
from svirtd.engine.holdings import Holdings
from svirtd.engine.meant import Meant
from svirtd.engine.openings import Held, Openings
from svirtd.engine.operations import Operations
from svirtd.errors import Failed, ResourceRefused
from svirtd.failpoints import Point, reach
from svirtd.host import files, opening
from svirtd.host.kernel import Kernel
from svirtd.host.opening import Opened, Taken


@dataclass(frozen=True, slots=True)
class Asked:
    """What Attach asks for. `replaces` is the id of a resource that is handed back in the same
    breath, or, with `keeps`, only read from then on. `alike`: with the access that that one has."""

    resource: ResourceRequest
    overrides: frozenset[Override] = frozenset()
    replaces: str = ""
    keeps: bool = False
    alike: bool = False


class Attachments:
    """What callers may ask for. Every method raises SvirtError for what it refuses."""

    def __init__(
        self, doors: Doors, operations: Operations, holdings: Holdings, foreign: Foreign
    ) -> None:
        self._doors = doors
        self._operations = operations
        self._holdings = holdings
        self._foreign = foreign
        self._openings = Openings(doors)
        self._meant = Meant(doors, operations.names)

    async def attach(self, caller: Caller, name: str, id_: str, asked: Asked) -> str:
        """Label a resource for a VM that is up; returns its id."""
        vm = await self._meant.vm(caller, name, id_)
        await self._may(caller, vm, asked)
        goal = self._doors.goals.named(vm.goal)
        request = goals.as_used(goal, self._doors.contexts, await self._request(vm, asked))
        await self._may_choose_level(caller, request)
        async with (
            self._openings.lifted(caller, request) as lifted,
            self._operations.names.hold(name),
        ):
            vm = await self._meant.vm(caller, name, vm.id)
            self._doors.enforcement.refuse_unprotected()
            self._doors.goals.refuse_unkept(goal)
            await self._operations.close_left(vm)
            old = await self._replaced(vm, asked, request.resources[0])
            async with self._opened(caller, request, lifted, old) as opened:
                return await self._attach(Attaching(caller, vm, request, goal, old), opened)

    async def detach(self, caller: Caller, name: str, id_: str, resource: str) -> None:
        """Give a resource of a VM that is up its earlier label back; the VM cannot use it then."""
        async with self._meant.owned(caller, Action.DETACH, name, id_) as vm:
            holds = await self._holds(vm)
            top = attached.hold_named(vm, holds, resource)
            leaving = attached.with_parts(holds, top)
            await self._holdings.detach(vm, leaving, Cause("detach", caller.uid))

    # -- the pipeline's own parts -----------------------------------------------------------

    async def _may(self, caller: Caller, vm: VM, asked: Asked) -> None:
        about = About(vm.name, [asked.resource.named])
        authority = self._doors.authority
        await authority.authorize(caller, Action.ATTACH_OTHERS, vm=vm, about=about)
        await authority.authorize(caller, Action.ATTACH, vm=vm, about=about)

    async def _may_choose_level(self, caller: Caller, request: Request) -> None:
        chosen = levels.chosen(self._doors, request)
        if chosen:
            about = About(request.name, [request.resources[0].named], level=chosen)
            await self._doors.authority.authorize(caller, Action.SET_LEVEL, about=about)

    async def _request(self, vm: VM, asked: Asked) -> Request:
        """Return what is asked for as a start would ask for it."""
        resource = asked.resource
        if asked.alike:
            old = attached.hold_named(vm, await self._holds(vm), asked.replaces)
            terms = replace(resource.terms, group=old.group)
            resource = replace(resource, access=old.access, terms=terms)
        return Request(
            name=vm.name,
            resources=(resource,),
            goal=vm.goal,
            uuid="",
            persistent=False,
            lifetime=Lifetime.RELEASE,
            overrides=asked.overrides,
        )

    async def _replaced(self, vm: VM, asked: Asked, resource: ResourceRequest) -> Replaced | None:
        if not asked.replaces:
            return None
        holds = await self._holds(vm)
        hold = attached.hold_named(vm, holds, asked.replaces)
        if asked.alike and (hold.access, hold.group) != (resource.access, resource.terms.group):
            raise Failed(f"{hold.path} was changed meanwhile; try again")
        return Replaced(hold, () if asked.keeps else attached.with_parts(holds, hold))

    @contextlib.asynccontextmanager
    async def _opened(
        self, caller: Caller, request: Request, lifted: Held, old: Replaced | None
    ) -> AsyncIterator[list[Opened]]:
        """Open what is asked for, and behind it what stays in another way; keep others from these
        objects, and from those that leave the VM, until it is done."""
        opened = await self._openings.open(caller, request, lifted)
        try:
            if old is not None and old.changes:
                work = functools.partial(_open_held, self._doors.kernel, old.hold)
                await self._doors.in_file_thread(lambda: opened.append(work()))
            objects = {one.seen.identity for one in opened}
            objects |= {one.identity for one in (old.leaving if old is not None else ())}
            async with self._operations.objects.hold_all(objects):
                yield opened
        finally:
            opening.close_all(opened)

    async def _attach(self, what: Attaching, opened: Sequence[Opened]) -> str:
        leaving = what.replaced.leaving if what.replaced is not None else ()
        others = await self._foreign.sets()
        guesses = await unknown.guesses(self._doors, leaving)
        seen = [one.seen for one in opened]
        reach(Point.BEGIN_BEFORE)
        changing, got = await self._doors.store.write(
            lambda db: attaching.begin(db, self._doors, what, seen, others, guesses)
        )
        reach(Point.BEGIN_AFTER)
        await self._holdings.attach(changing, opened, Cause("attach", what.caller.uid))
        return got.name

    async def _holds(self, vm: VM) -> list[Hold]:
        return await self._doors.store.read(lambda db: registry.holds_of(db, vm))


def _open_held(kernel: Kernel, hold: Hold) -> Opened:
    """Open what a VM holds and is only to read from now on. Raises ResourceRefused."""
    try:
        fd = files.find(hold.path, hold.identity)
    except (files.Missing, files.Replaced) as error:
        raise ResourceRefused(f"{hold.path} is not where VM {hold.vm_name!r} got it") from error
    except OSError as error:
        raise ResourceRefused(f"{hold.path} cannot be opened: {files.why(error)}") from error
    request = ResourceRequest(hold.path, None, Access.READONLY, Terms(id=hold.name))
    return opening.look(kernel, request, Taken(fd))
