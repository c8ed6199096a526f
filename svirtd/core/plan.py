# SPDX-License-Identifier: LGPL-2.1-or-later
"""Request and snapshot in, plan out: what will be labelled and what is refused. Pure.

This is the one place that decides whether an object may be labelled for a VM, by the rules of
core/rules.py. Their order is part of the contract: whose an object is comes first, and who holds it
is said before what is wrong with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from svirtd.core import rules as about
from svirtd.core.filesystems import Labels
from svirtd.core.goals import Goal, resource_context
from svirtd.core.model import Access, Contexts, Hold, Identity, Labeller, Seen, Snapshot, Step
from svirtd.core.rules import Asker, Rules
from svirtd.errors import InvalidArgs, ResourceBusy, ResourceRefused, SvirtError


@dataclass(frozen=True, slots=True)
class Sets:
    """The categories of a VM: its own pair, and one for each group that it is in, by name."""

    pair: frozenset[int]
    groups: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one resource: a step (None if its label is right already), or a refusal.

    `stays`: its label is right as it is, and nobody may change it for this VM.
    """

    seen: Seen
    target: str
    original: str | None
    step: Step | None
    refusal: SvirtError | None
    original_known: bool = True
    stays: bool = False


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
            _decide(
                vm_id,
                one,
                (holds.get(one.identity, ()), snapshot.devices.get(one.device, ())),
                snapshot,
                targets,
                goal,
                rules,
                asker,
            )
            for one in seen
        )
    )


def _refuse_duplicates(seen: Sequence[Seen]) -> None:
    first: dict[Identity | int, Seen] = {}
    for one in seen:
        # Two nodes of one device would carry two labels.
        for key in (one.identity, one.device) if one.device else (one.identity,):
            other = first.setdefault(key, one)
            if other is not one:
                what = "file" if key is one.identity else "device"
                raise InvalidArgs(
                    f"{one.named} and {other.named} are the same {what}; name each resource once"
                )
    for tree in (one for one in seen if one.terms.recursive):
        for one in seen:
            if one.identity.dev == tree.identity.dev and one.path.startswith(f"{tree.path}/"):
                raise InvalidArgs(f"{one.named} is in the tree {tree.named}; name only the tree")


def _decide(
    vm_id: str,
    seen: Seen,
    held: tuple[Sequence[Hold], Sequence[Hold]],
    snapshot: Snapshot,
    targets: Mapping[tuple[Access, str], str],
    goal: Goal,
    rules: Rules,
    asker: Asker,
) -> Decision:
    """Decide about one resource; `held` are the holds on the object, and on the device behind it by
    whatever node."""
    target = targets.get((seen.access, seen.terms.group), "")
    holds, by_device = held
    if seen.terms.below:
        # A rule is lifted for what somebody was shown, and never for what a header names.
        asker = replace(asker, overrides=frozenset())
    try:
        if seen.access not in goal.accesses:
            raise ResourceRefused(
                f"{seen.named}: goal {goal.name!r} does not allow access {seen.access.value!r}"
            )
        _refuse_group(seen, target)
        others = _is_public(seen, target, asker)
        if not others and not _shared_in_group(seen, holds):
            about.refuse_owner(seen, asker)
        _refuse_other_node(asker.uid, seen, by_device)
        if holds:
            _refuse_conflict(vm_id, asker.uid, seen, holds)
            # Shared with earlier holders: the label stays, the original is the first one's.
            _refuse_foreign_change(asker, seen, holds[0])
            # By today's configuration it might be another label: the last holder looks for the one
            # that is there, and gives the original back only from that.
            first = holds[0]
            return Decision(seen, first.label, first.original, None, None, first.original_known)
        about.refuse_kind(seen.named, seen.kind, recursive=seen.terms.recursive)
        _refuse_tree(asker, seen, snapshot)
        if _is_labelled(seen, target, asker):
            # What it was before, libvirt knows; here it is as of a VM that was entered again.
            return Decision(seen, target, None, None, None, original_known=False)
        about.refuse_shared_device(seen.named, seen.kind, seen.device)
        about.refuse_node_terms(seen, goal)
        about.refuse_links(seen, asker)
        about.refuse_deleted(seen.named, seen.links)
        about.refuse_setid(seen)
        about.refuse_file_system(seen, target)
        fixed = seen.mount.labels is Labels.FIXED
        if not fixed:
            about.refuse_type(seen, rules)
            about.refuse_carried(seen, rules)
    except SvirtError as error:
        return Decision(seen, target, seen.label, None, error)
    # The step is there even when the label is right by chance: the book must know the original.
    recursive = seen.terms.recursive
    step = Step(seen.identity, seen.path, old=seen.label, new=target, recursive=recursive)
    return Decision(seen, target, seen.label, step, None, stays=fixed or others)


def _is_labelled(seen: Seen, target: str, asker: Asker) -> bool:
    """Say whether libvirt has labelled for its VM already: what it plugs in while the VM runs.

    The label has the VM's own set in it, or its group's, and nobody in the book holds the object.
    """
    libvirts = asker.labeller is Labeller.LIBVIRT
    return libvirts and seen.access is not Access.PUBLIC and seen.label == target


def _refuse_tree(asker: Asker, seen: Seen, snapshot: Snapshot) -> None:
    """An object is held by itself or with the tree that it is in: never both, for two labels."""
    hold = snapshot.around.get(seen.identity)
    if hold is not None:
        if asker.uid not in (0, hold.owner_uid):
            raise ResourceBusy(
                f"{seen.named} is in, or has in it, what a VM of another user holds; use another "
                "one, or have that VM released"
            )
        raise ResourceBusy(
            f"{seen.named}: VM {hold.vm_name!r} holds {hold.path}"
            + (" with all that is in it" if hold.recursive else ", which is in it")
            + "; release that VM first"
        )
    if seen.terms.recursive and asker.labeller is Labeller.LIBVIRT:
        raise ResourceRefused(
            f"{seen.named}: libvirt labels no directory tree; have svirtd label it, for a VM that "
            "another service starts"
        )


def _is_public(seen: Seen, target: str, asker: Asker) -> bool:
    """Say whether somebody else's object carries already what every VM reads: a base image.

    Its label is not changed, so that its owner need not have asked for it; the caller has opened it
    by his own rights, and gets nothing that his VM could not read without svirtd. While it is held
    so, nobody else gets it otherwise: its owner who wants that is told which VM holds it, unless it
    is another user's, and root can release that one.
    """
    return (
        bool(asker.uid)
        and seen.owner_uid != asker.uid
        and seen.access is Access.PUBLIC
        and seen.label == target
    )


def _refuse_other_node(caller_uid: int, seen: Seen, holds: Sequence[Hold]) -> None:
    """Invariant 5 for devices: one device has one holder, whatever node it is reached by. Two nodes
    would carry two labels, so that not even access 'group' shares it by two of them."""
    for hold in holds if seen.device else ():
        if hold.identity == seen.identity:
            continue
        whose = (
            f"VM {hold.vm_name!r} (as {hold.path})"
            if caller_uid in (0, hold.owner_uid)
            else "a VM of another user"
        )
        raise ResourceBusy(
            f"{seen.named} is the same device as one that is held by {whose}; release that VM first"
        )


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
