# SPDX-License-Identifier: LGPL-2.1-or-later
"""Groups for callers: made and deleted, granted and revoked, joined and left.

A process keeps the categories that it was started with: what changes for a VM that runs, it has
from its next start on, and a request that would have to change its label now is refused.
"""

import functools
import secrets
from dataclasses import dataclass

from svirtd.book import groups as rows
from svirtd.book import registry
from svirtd.book.store import Database
from svirtd.core.groups import AtEnd, Grant, Group, GroupView, Writers, refuse_member
from svirtd.core.model import VM, Caller, State
from svirtd.core.names import shown
from svirtd.engine import walls
from svirtd.engine.authorize import About, Action
from svirtd.engine.calendar import now_us
from svirtd.engine.decide import OtherSets, group_named, refuse_meeting
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.foreign import Foreign
from svirtd.errors import (
    AccessDenied,
    Failed,
    GroupExists,
    InvalidArgs,
    LimitsExceeded,
    NoSuchGroup,
    NoSuchVM,
    PoolExhausted,
    ResourceBusy,
)


@dataclass(frozen=True, slots=True)
class NewGroup:
    """What CreateGroup asks for."""

    name: str
    writers: Writers
    namespace: str


@dataclass(frozen=True, slots=True)
class NewGrant:
    """What Grant asks for. `owner_uid`: of a VM that is not there yet; None for the caller's."""

    vm_name: str
    owner_uid: int | None
    until_us: int
    at_end: AtEnd


class Groups:
    """Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors, events: Events, foreign: Foreign) -> None:
        self._doors = doors
        self._events = events
        self._foreign = foreign

    async def create(self, caller: Caller, new: NewGroup) -> Group:
        """Make a group of the caller's, with a category that nobody on the host has now."""
        if new.namespace and caller.uid != 0:
            # Root's, since a launched VM is put into it without anybody being asked again.
            raise AccessDenied(
                f"uid {caller.uid} may not make a zone: only root may say which network namespace "
                "VMs are put into; make a group without 'namespace', or run the command as root"
            )
        await self._doors.authority.authorize(
            caller, Action.MANAGE_GROUPS, about=About(group=new.name)
        )
        others = await self._foreign.sets()
        made = await self._doors.store.write(lambda db: self._create(db, caller, new, others))
        self._events.group_added(GroupView(made), Cause("create-group", caller.uid))
        return made

    async def delete(self, caller: Caller, name: str) -> None:
        """Delete a group that no VM is in and nothing is labelled for."""
        view = await self._managed(caller, name)

        def work(db: Database) -> None:
            group = _same(db, view.group)
            members = rows.members(db, name)
            holds = rows.holds_of(db, name)
            if members or holds:
                who = ", ".join(repr(vm.name) for vm in members[:4]) or repr(holds[0].vm_name)
                raise ResourceBusy(
                    f"group {name!r} has members ({who}); release them and have them leave it "
                    "(svirtctl group leave) before it is deleted"
                )
            rows.remove(db, group)

        await self._doors.store.write(work)
        self._events.group_removed(view, Cause("delete-group", caller.uid))

    async def grant(self, caller: Caller, name: str, new: NewGrant) -> None:
        """Allow a VM to be in a group, for good or until a time."""
        before = await self._managed(caller, name)
        if new.until_us and new.until_us <= now_us():
            raise InvalidArgs("options: 'until' is over already; give a time to come")

        def work(db: Database) -> GroupView:
            group = _same(db, before.group)
            rows.grant(db, _grant(db, caller, group, new))
            return view_of(db, group)

        after = await self._doors.store.write(work)
        self._events.group_changed(before, after, Cause("grant", caller.uid))

    async def revoke(self, caller: Caller, name: str, vm_name: str, *, next_start: bool) -> None:
        """Take a grant back; the VM is out of the group at once, or from its next start on."""
        before = await self._managed(caller, name)

        def work(db: Database) -> tuple[GroupView, VM | None, VM | None]:
            group = _same(db, before.group)
            vm = registry.vm_by_name(db, vm_name)
            granted = rows.grant_of(db, name, vm_name)
            member = vm is not None and (name in vm.groups or name in vm.lasting)
            if granted is None and not member:
                raise InvalidArgs(
                    f"nothing in group {name!r} was granted to a VM named {shown(vm_name)}; see "
                    f"svirtctl group show {name}"
                )
            if vm is not None and not next_start:
                _refuse_running(vm, name)
            rows.revoke(db, name, vm_name)
            if vm is not None:
                rows.leave(db, vm, name)
            return view_of(db, group), vm, registry.vm_by_name(db, vm_name)

        after, old, new = await self._doors.store.write(work)
        cause = Cause("revoke", caller.uid)
        self._events.group_changed(before, after, cause)
        await self._vm_changed(old, new, cause)

    async def join(self, caller: Caller, vm_name: str, name: str, *, next_start: bool) -> None:
        """Have a persistent VM be in a group at each of its starts."""
        vm = await self._vm(caller, vm_name)

        def work(db: Database) -> tuple[GroupView, GroupView, VM, VM]:
            group = group_named(db, name)
            now = _still(db, vm)
            before = view_of(db, group)
            granted = rows.grant_of(db, name, vm_name)
            by_root = caller.uid == 0
            refuse_member(group, vm_name, now.owner_uid, by_root, granted, now_us())
            # Judged already here: a wall would keep the VM from each of its starts.
            walls.refuse(db, self._doors, now, (*now.lasting, name))
            names = sorted({*now.lasting, name})
            refuse_meeting(db, vm_name, [group_named(db, one) for one in names])
            _refuse_fleeting(now, name)
            if not next_start and name not in now.lasting:
                _refuse_running(now, name, joining=True)
            rows.join(db, now, name)
            if granted is None and now.owner_uid != group.owner_uid:
                # By root. It is asked again at each start, which is then the VM's owner's.
                lasting = Grant(name, vm_name, now.owner_uid, 0, AtEnd.REPORT, now_us())
                rows.grant(db, lasting)
            return before, view_of(db, group), now, _still(db, vm)

        await self._member_changed(await self._doors.store.write(work), Cause("join", caller.uid))

    async def leave(self, caller: Caller, vm_name: str, name: str, *, next_start: bool) -> None:
        """Have a VM not be in a group any more."""
        vm = await self._vm(caller, vm_name)

        def work(db: Database) -> tuple[GroupView, GroupView, VM, VM]:
            group = group_named(db, name)
            now = _still(db, vm)
            before = view_of(db, group)
            if name not in now.lasting and name not in now.groups:
                raise InvalidArgs(f"VM {vm_name!r} is not in group {name!r}")
            if not next_start:
                _refuse_running(now, name)
            rows.leave(db, now, name)
            return before, view_of(db, group), now, _still(db, vm)

        await self._member_changed(await self._doors.store.write(work), Cause("leave", caller.uid))

    # -- reading ----------------------------------------------------------------------------

    async def all(self, caller: Caller) -> list[Group]:
        """Return every group, by name."""
        await self._doors.authority.authorize(caller, Action.READ)
        return await self._doors.store.read(rows.everything)

    async def views(self, caller: Caller) -> list[GroupView]:
        """Return every group with its members and grants, by name."""
        await self._doors.authority.authorize(caller, Action.READ)
        return await self._doors.store.read(
            lambda db: [view_of(db, group) for group in rows.everything(db)]
        )

    async def view(self, caller: Caller, name: str) -> GroupView:
        """Return a group with its members and grants. Raises NoSuchGroup."""
        await self._doors.authority.authorize(caller, Action.READ)
        return await self._doors.store.read(lambda db: view_of(db, group_named(db, name)))

    # -- parts ------------------------------------------------------------------------------

    def _create(self, db: Database, caller: Caller, new: NewGroup, others: OtherSets) -> Group:
        doors = self._doors
        if rows.by_name(db, new.name) is not None:
            raise GroupExists(f"a group is named {new.name!r}; take another name")
        limit = doors.config.limits.groups_per_user
        owned = rows.owned_by(db, caller.uid)
        if caller.uid and owned >= limit:
            # There are few categories for groups: one user could leave none to the others.
            raise LimitsExceeded(
                f"you have {owned} groups; [limits] groups-per-user allows {limit}: delete some"
            )
        # As with sets of VMs: one user could bring all into quarantine, by moving his files about.
        retired = rows.retired_of(db, caller.uid)
        if owned + retired >= limit and retired:
            raise LimitsExceeded(
                f"you have {owned} groups, and the categories of {retired} earlier ones are in "
                "quarantine, since files that were moved may still carry them; [limits] "
                f"groups-per-user allows {limit}: move the files back, or have root look for them "
                "(svirtctl verify --repair --scan)"
            )
        pool = doors.config.group_categories
        free = rows.free_categories(db, pool, lambda one: any(one in other for other in others))
        if not free:
            raise PoolExhausted(
                f"each of the {len(pool)} categories of [labels] groups has a group, is in "
                "quarantine since a file may carry it, or is used by another process of the host: "
                "delete groups, look for such files (svirtctl verify --scan), or widen it"
            )
        made = Group(
            name=new.name,
            category=secrets.choice(free),
            owner_uid=caller.uid,
            created_us=now_us(),
            writers=new.writers,
            namespace=new.namespace,
        )
        rows.add(db, made)
        return made

    async def _managed(self, caller: Caller, name: str) -> GroupView:
        """Return a group that the caller may manage: its owner, root, and whom polkit lets."""
        view = await self.view(caller, name)
        await self._doors.authority.authorize(
            caller,
            Action.MANAGE_GROUPS,
            owner_uid=view.group.owner_uid,
            about=About(group=name),
        )
        return view

    async def _vm(self, caller: Caller, name: str) -> VM:
        """Return a VM whose memberships the caller may change."""
        vm = await self._doors.store.read(lambda db: registry.vm_by_name(db, name))
        if vm is None:
            await self._doors.authority.authorize(caller, Action.READ)
            raise NoSuchVM(f"no VM is named {shown(name)}; see svirtctl list")
        await self._doors.authority.authorize(caller, Action.MANAGE_GROUPS, vm=vm)
        return vm

    async def _member_changed(
        self, changed: tuple[GroupView, GroupView, VM, VM], cause: Cause
    ) -> None:
        before, after, old, new = changed
        self._events.group_changed(before, after, cause)
        await self._vm_changed(old, new, cause)

    async def _vm_changed(self, old: VM | None, new: VM | None, cause: Cause) -> None:
        if old is not None and new is not None and old != new:
            held = functools.partial(registry.holds_of, vm=new)
            holds = tuple(await self._doors.store.read(held))
            self._events.changed(Entry(old, holds), Entry(new, holds), cause)


def view_of(db: Database, group: Group) -> GroupView:
    """Return a group with who is in it and may be."""
    members = tuple((vm.name, vm.owner_uid) for vm in rows.members(db, group.name))
    return GroupView(group, members, tuple(rows.grants(db, group.name)))


def _grant(db: Database, caller: Caller, group: Group, new: NewGrant) -> Grant:
    """By name and owner: a name alone would be whoever's takes it first."""
    known = registry.vm_by_name(db, new.vm_name)
    owner_uid = new.owner_uid if new.owner_uid is not None else caller.uid
    if known is not None:
        if new.owner_uid not in (None, known.owner_uid):
            raise InvalidArgs(
                f"options: VM {new.vm_name!r} belongs to uid {known.owner_uid}, not {new.owner_uid}"
            )
        owner_uid = known.owner_uid
    return Grant(group.name, new.vm_name, owner_uid, new.until_us, new.at_end, now_us())


def _same(db: Database, group: Group) -> Group:
    """Return the group that was looked at, as it is now; not another one of its name."""
    now = rows.by_name(db, group.name)
    if now is None or now != group:
        raise NoSuchGroup(f"group {group.name!r} was deleted meanwhile")
    return now


def _still(db: Database, vm: VM) -> VM:
    now = registry.current(db, vm)
    if now is None:
        raise NoSuchVM(f"VM {vm.name!r} has left the book meanwhile")
    return now


def _refuse_running(vm: VM, name: str, *, joining: bool = False) -> None:
    if vm.state is State.RESERVED or (not joining and name not in vm.groups):
        return
    raise Failed(
        f"VM {vm.name!r} is {vm.state.value}, and a process keeps the label that it was started "
        f"with, {'without' if joining else 'with'} the category of group {name!r}: release it "
        "first, or have this take effect at its next start ('when' is 'next-start')"
    )


def _refuse_fleeting(vm: VM, name: str) -> None:
    if not vm.persistent:
        raise Failed(
            f"VM {vm.name!r} is not persistent, and has no next start: name {name!r} among the "
            "groups of its launch, or make it persistent"
        )
