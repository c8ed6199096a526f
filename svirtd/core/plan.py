# SPDX-License-Identifier: LGPL-2.1-or-later
"""Request and snapshot in, plan out: what will be labelled and what is refused. Pure.

This is the one place that decides whether an object may be labelled for a VM. The order of the
rules is part of the contract: whose an object is comes first, and who holds it is said before what
is wrong with it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svirtd.core.filesystems import problem
from svirtd.core.goals import Goal, resource_context
from svirtd.core.mcs import Context, format_categories, parse_context
from svirtd.core.model import (
    Access,
    Contexts,
    Hold,
    Identity,
    Kind,
    Labeller,
    Override,
    Seen,
    Snapshot,
    Step,
)
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs, ResourceBusy, ResourceRefused, SvirtError

# An object without a label is what the kernel shows as this type on a system with SELinux.
UNLABELLED_TYPE = "unlabeled_t"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about objects: the types that svirtd may take a file from.

    `private` are the categories that private sets of `size` are drawn from, `groups` those that
    groups may own.
    """

    relabel_from: frozenset[str]
    private: frozenset[int]
    size: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom a plan is made, and which rules somebody has lifted for it who may.

    `labeller` is who will set the labels.
    """

    uid: int
    overrides: frozenset[Override]
    labeller: Labeller = Labeller.SVIRTD


@dataclass(frozen=True, slots=True)
class Sets:
    """The categories of a VM: its own pair, and one for each group that it is in, by name."""

    pair: frozenset[int]
    groups: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one resource: a step (None if its label is right already), or a refusal."""

    seen: Seen
    target: str
    original: str | None
    step: Step | None
    refusal: SvirtError | None
    original_known: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions in the order of the request."""

    decisions: tuple[Decision, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The label changes, in order."""
        return tuple(d.step for d in self.decisions if d.step is not None)

    def refuse(self) -> None:
        """Raise the first refusal, if there is one."""
        for decision in self.decisions:
            if decision.refusal is not None:
                raise decision.refusal


def plan(
    vm_id: str,
    seen: Sequence[Seen],
    snapshot: Snapshot,
    contexts: Contexts,
    sets: Sets,
    goal: Goal,
    rules: Rules,
    asker: Asker,
) -> Plan:
    """Decide about each resource of a request.

    `vm_id` is the requesting VM, whose own holds are in the way of a second hold too. Raises
    InvalidArgs when the request names one object twice; every other refusal is in the plan.
    """
    _refuse_duplicates(seen)
    shared = {one.terms.group for one in seen} & sets.groups.keys()
    targets = {
        (access, group): str(resource_context(contexts, access, sets.pair, sets.groups.get(group)))
        for access in {one.access for one in seen}
        for group in ("", *shared)
        # A group goes with these two accesses alone; what has no target is refused.
        if access is Access.READONLY or (access is Access.GROUP) == bool(group)
    }
    holds = snapshot.holds
    return Plan(
        tuple(
            _decide(vm_id, one, holds.get(one.identity, ()), targets, goal, rules, asker)
            for one in seen
        )
    )


def _refuse_duplicates(seen: Sequence[Seen]) -> None:
    first: dict[Identity, Seen] = {}
    for one in seen:
        other = first.setdefault(one.identity, one)
        if other is not one:
            raise InvalidArgs(
                f"{one.named} and {other.named} are the same file; name each resource once"
            )


def _decide(
    vm_id: str,
    seen: Seen,
    holds: Sequence[Hold],
    targets: Mapping[tuple[Access, str], str],
    goal: Goal,
    rules: Rules,
    asker: Asker,
) -> Decision:
    target = targets.get((seen.access, seen.terms.group), "")
    try:
        if seen.access not in goal.accesses:
            raise ResourceRefused(
                f"{seen.named}: goal {goal.name!r} does not allow access {seen.access.value!r}"
            )
        _refuse_group(seen, target)
        if not _shared_in_group(seen, holds):
            _refuse_owner(seen, asker)
        if holds:
            _refuse_conflict(vm_id, asker.uid, seen, holds)
            # Shared with earlier holders: the label stays, the original is the first one's.
            _refuse_foreign_change(asker, seen, holds[0])
            # By today's configuration it might be another label: the last holder looks for the one
            # that is there, and gives the original back only from that.
            first = holds[0]
            return Decision(seen, first.label, first.original, None, None, first.original_known)
        refuse_kind(seen.named, seen.kind)
        _refuse_links(seen, asker)
        refuse_deleted(seen.named, seen.links)
        _refuse_setid(seen)
        _refuse_file_system(seen)
        _refuse_type(seen, rules)
        _refuse_carried(seen, rules)
    except SvirtError as error:
        return Decision(seen, target, seen.label, None, error)
    # The step is there even when the label is right by chance: the book must know the original.
    step = Step(seen.identity, seen.path, old=seen.label, new=target)
    return Decision(seen, target, seen.label, step, None)


def _refuse_conflict(vm_id: str, caller_uid: int, seen: Seen, holds: Sequence[Hold]) -> None:
    """Invariant 5: an exclusive object has one holder, under whatever name it is reached."""
    for hold in holds:
        if hold.vm_id == vm_id:
            raise ResourceBusy(
                f"{seen.named} is held by VM {hold.vm_name!r} already; release it first"
            )
        if not _shares(seen, hold):
            if caller_uid not in (0, hold.owner_uid):
                # What a VM holds is its owner's to know.
                raise ResourceBusy(
                    f"{seen.named} is held by a VM of another user; use another file, or have that "
                    "VM released"
                )
            raise ResourceBusy(
                f"{seen.named} is held by VM {hold.vm_name!r} with access "
                f"{_words(hold)} (as {hold.path}); release that VM first, {_advice(seen, hold)}"
            )


def _shares(seen: Seen, hold: Hold) -> bool:
    """Say whether an object may be held so beside this hold: by the same rule, so the same label.

    A label is one for all: what some members of a group may write, the label cannot have others
    only read. A domain that writes nothing can; such a member holds it with access 'group', too.
    """
    if seen.access is not hold.access:
        return False
    if seen.access is Access.PUBLIC:
        return True
    return bool(hold.group) and seen.terms.group == hold.group


def _shared_in_group(seen: Seen, holds: Sequence[Hold]) -> bool:
    """Say whether a group has the object already: it is labelled for its members, and stays so.

    Its owner has given it to the group; a member who can open it need not own it as well.
    """
    return bool(holds) and bool(seen.terms.group) and all(_shares(seen, hold) for hold in holds)


def _words(hold: Hold) -> str:
    return repr(hold.access.value) + (f" of group {hold.group!r}" if hold.group else "")


def _advice(seen: Seen, hold: Hold) -> str:
    if hold.group and seen.terms.group == hold.group:
        return (
            f"or ask for access {hold.access.value!r}: one label cannot let some members write "
            "and others only read; a goal whose domain writes nothing (view-only) reads with "
            "access 'group'"
        )
    return "or give both VMs access 'public' if they only read, or 'group' to share it"


def _refuse_group(seen: Seen, target: str) -> None:
    if not target:
        raise ResourceRefused(
            f"{seen.named}: the VM is not in group {seen.terms.group!r}; name it among the "
            "groups of the request, or join the VM to it first"
        )


def _refuse_foreign_change(asker: Asker, seen: Seen, hold: Hold) -> None:
    # Another VM of libvirt's may be about to start: libvirt labels it a moment from now.
    unlabelled = hold.original_known and seen.label == hold.original
    if asker.labeller is Labeller.LIBVIRT and unlabelled:
        return
    if seen.label != hold.label:
        if asker.uid not in (0, hold.owner_uid):
            raise ResourceRefused(
                f"{seen.named} is held by a VM of another user, and somebody changed its label "
                "since: have that VM released, or its label restored"
            )
        raise ResourceRefused(
            f"{seen.named} carries {seen.label or 'no label'} but VM {hold.vm_name!r} holds it as "
            f"{hold.label}; somebody changed it: restore that label or release the VM"
        )


def refuse_kind(named: str, kind: Kind) -> None:
    """Refuse what is neither a file nor a block device."""
    if kind is Kind.DIRECTORY:
        raise ResourceRefused(
            f"{named} is a directory; directory trees are not supported by this version: "
            "name the files in it"
        )
    if kind not in (Kind.FILE, Kind.BLOCK):
        raise ResourceRefused(
            f"{named} is a {kind.value}; only files and block devices are labelled"
        )


def _refuse_links(seen: Seen, asker: Asker) -> None:
    if seen.links > 1 and seen.kind is Kind.FILE and Override.LINKS not in asker.overrides:
        # Another name of the file may lie where its owner, or a service, expects the old label.
        raise ResourceRefused(
            f"{seen.named} has {seen.links} hard links; a file with other names is not relabelled: "
            "make a copy, or have the rule lifted (override 'links') by whoever may use any file"
        )


def refuse_deleted(named: str, links: int) -> None:
    """Refuse what no name is left of."""
    if links == 0:
        raise ResourceRefused(
            f"{named} is deleted; its label could not be given back: use a file with a name"
        )


def _refuse_setid(seen: Seen) -> None:
    if seen.setid:
        raise ResourceRefused(
            f"{seen.named} is a setuid or setgid file; such files are never labelled"
        )


def _refuse_owner(seen: Seen, asker: Asker) -> None:
    """Being able to write a file is not enough: its label decides who else can use it.

    Root is whoever owns a file, by CAP_FOWNER. Said first: who holds a file, and what it carries,
    is its owner's to know.
    """
    if asker.uid and seen.owner_uid != asker.uid and Override.OWNER not in asker.overrides:
        raise ResourceRefused(
            f"{seen.named} belongs to uid {seen.owner_uid}, and you are uid {asker.uid}; only its "
            "owner may have a file labelled: make a copy, or have the rule lifted (override "
            "'owner') by whoever may use any file"
        )


def _refuse_file_system(seen: Seen) -> None:
    """Only where a label stays, and where the kernel itself answers; for root as well."""
    found = problem(seen.file_system)
    if found:
        raise ResourceRefused(f"{seen.named} is {found}")


@functools.lru_cache(256)
def _context_of(label: str) -> Context:
    return parse_context(label)


def _refuse_type(seen: Seen, rules: Rules) -> None:
    """Only types of the list are taken: a host file must not become a VM's by anyone's slip."""
    try:
        found = UNLABELLED_TYPE if seen.label is None else _context_of(seen.label).type
    except ValueError as error:
        raise ResourceRefused(
            f"{seen.named} carries {shown(str(seen.label))}, which is not a context ({error}); "
            "restore its label first"
        ) from None
    if found not in rules.relabel_from:
        raise ResourceRefused(
            f"{seen.named} has type {found}, which is not in [labels] relabel-from "
            f"({', '.join(sorted(rules.relabel_from))}); if no other VM or service uses the file, "
            "give it one of these types (for a disk image: chcon -t virt_image_t FILE)"
        )


def _refuse_carried(seen: Seen, rules: Rules) -> None:
    """What VMs or a group had must not become an original: given back, it would let in others.

    Between the two, the set may have left quarantine, since nothing is seen to carry it.
    """
    if seen.label is None:
        return
    carried = _context_of(seen.label).categories
    for found, whose, enough in (
        (carried & rules.private, "of a VM", rules.size),
        (carried & rules.groups, "of a group", 1),
    ):
        if len(found) >= enough:
            raise ResourceRefused(
                f"{seen.named} carries the categories {format_categories(found)} {whose}, of today "
                "or of an earlier one; if no VM uses the file, have its label given back (svirtctl "
                "verify --repair), or take them off (chcon -l s0 FILE)"
            )
