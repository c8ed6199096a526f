# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules about one object: what may be labelled for whom. Pure.

Each refuses with the rule, what was found and what to do. Their order is core/plan.py's, which is
the one place that decides.
"""

import functools
from dataclasses import dataclass
from typing import Final

from svirtd.core import filesystems, nodes
from svirtd.core.filesystems import Labels
from svirtd.core.goals import Goal, Network
from svirtd.core.mcs import Context, format_categories, parse_context
from svirtd.core.model import Access, Kind, Labeller, Override, Seen
from svirtd.core.names import shown
from svirtd.errors import ResourceRefused

# An object without a label is what the kernel shows as this type on a system with SELinux.
UNLABELLED_TYPE = "unlabeled_t"
# What is used through a node, by whoever may write it, and never opened by svirtd itself.
NODES: Final = (Kind.CHARACTER, Kind.FIFO, Kind.SOCKET)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about objects: the types that svirtd may take a file from, and
    those that it may take a character device from.

    `private` are the categories that private sets of `size` are drawn from, `groups` those that
    groups may own.
    """

    relabel_from: frozenset[str]
    private: frozenset[int]
    size: int
    groups: frozenset[int]
    relabel_devices_from: frozenset[str] = frozenset()

    def may_take(self, type_: str, *, character: bool) -> bool:
        """Say whether an object of this type may be taken for a VM."""
        return type_ in (self.relabel_devices_from if character else self.relabel_from)


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom a plan is made, and which rules somebody has lifted for it who may.

    `labeller` is who will set the labels.
    """

    uid: int
    overrides: frozenset[Override]
    labeller: Labeller = Labeller.SVIRTD


def refuse_kind(named: str, kind: Kind, *, recursive: bool = False) -> None:
    """Refuse what is never labelled; `recursive` asks for a directory with all that is in it."""
    if recursive and kind is not Kind.DIRECTORY:
        raise ResourceRefused(
            f"{named} is a {kind.value}, and 'recursive' is for directories: leave it out"
        )
    if kind is Kind.DIRECTORY and not recursive:
        raise ResourceRefused(
            f"{named} is a directory; ask for it with all that is in it (recursive, or svirtctl "
            "--tree), or name the files in it"
        )
    if kind is Kind.DIRECTORY:
        return
    if kind not in (Kind.FILE, Kind.BLOCK, *NODES):
        raise ResourceRefused(
            f"{named} is a {kind.value}; files, devices, directories, fifos and sockets are "
            "labelled"
        )


def refuse_shared_device(named: str, kind: Kind, device: int) -> None:
    """Refuse a character device that is the whole host's."""
    why = nodes.shared_by_all(device) if kind is Kind.CHARACTER else ""
    if why:
        raise ResourceRefused(f"{named} is {why}")


def refuse_node_terms(seen: Seen, goal: Goal) -> None:
    """Refuse what a node cannot be held with."""
    if seen.kind not in NODES:
        return
    if not seen.access.writes:
        raise ResourceRefused(
            f"{seen.named} is a {seen.kind.value}, and the policy lets a VM only use one that it "
            "may write: ask for access 'exclusive'"
        )
    if seen.kind is Kind.CHARACTER and seen.access is not Access.EXCLUSIVE:
        raise ResourceRefused(
            f"{seen.named} is a character device, which one VM has at a time: ask for access "
            "'exclusive'"
        )
    if seen.kind is Kind.CHARACTER and goal.network is not Network.HOST:
        # A tap device, a network card or a telephone on a USB port: a node says nothing of where
        # what is behind it leads to.
        raise ResourceRefused(
            f"{seen.named} is a character device, and goal {goal.name!r} keeps the VM from the "
            "host's network, which a device may lead to: use another goal, or leave the device out"
        )


def refuse_links(seen: Seen, asker: Asker) -> None:
    """Refuse what has other names: one may lie where its owner, or a service, expects the old
    label."""
    if seen.links > 1 and seen.kind is Kind.FILE and Override.LINKS not in asker.overrides:
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


def refuse_setid(seen: Seen) -> None:
    """Refuse what gives whoever runs it another account."""
    if seen.setid:
        raise ResourceRefused(
            f"{seen.named} is a setuid or setgid file; such files are never labelled"
        )


def refuse_owner(seen: Seen, asker: Asker) -> None:
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


def refuse_file_system(seen: Seen, target: str) -> None:
    """Only where a label stays, and where the kernel itself answers; for root as well.

    Where the mount says the label, it must be the very one that the object is to have: then it is
    as good as set, and nothing else ever is.
    """
    found = filesystems.problem(seen.mount, target)
    if found:
        raise ResourceRefused(f"{seen.named} is {found}")
    if seen.mount.labels is Labels.FIXED and seen.label != target:
        raise ResourceRefused(
            f"{seen.named} is on {seen.mount.point}, mounted with the option context=, so that it "
            f"carries {seen.label} and can carry nothing else; to be used so it needs {target}: "
            f"mount it with context={filesystems.quoted(target)} (a VM keeps its categories if it "
            "is persistent), use access 'public' with a mount of the content type, or move the file"
        )


@functools.lru_cache(256)
def context_of(label: str) -> Context:
    """Return the context that an object carries. Raises ValueError."""
    return parse_context(label)


def refuse_type(seen: Seen, rules: Rules) -> None:
    """Only types of the lists are taken: a host file must not become a VM's by anyone's slip."""
    try:
        found = UNLABELLED_TYPE if seen.label is None else context_of(seen.label).type
    except ValueError as error:
        raise ResourceRefused(
            f"{seen.named} carries {shown(str(seen.label))}, which is not a context ({error}); "
            "restore its label first"
        ) from None
    if seen.kind is Kind.CHARACTER:
        if found not in rules.relabel_devices_from:
            raise ResourceRefused(
                f"{seen.named} is a character device of type {found}, which is not in [labels] "
                f"relabel-devices-from ({', '.join(sorted(rules.relabel_devices_from))}); devices "
                "of other types are the host's own"
            )
    elif found not in rules.relabel_from:
        hint = (
            "; what every VM may read by its type already (firmware below /usr/share) takes no "
            "label: leave it out of the request"
            if seen.access is Access.PUBLIC
            else ""
        )
        raise ResourceRefused(
            f"{seen.named} has type {found}, which is not in [labels] relabel-from "
            f"({', '.join(sorted(rules.relabel_from))}); if no other VM or service uses the file, "
            f"give it one of these types (for a disk image: chcon -t virt_image_t FILE){hint}"
        )


def refuse_carried(seen: Seen, rules: Rules) -> None:
    """What VMs or a group had must not become an original: given back, it would let in others.

    Between the two, the set may have left quarantine, since nothing is seen to carry it.
    """
    if seen.label is None:
        return
    carried = context_of(seen.label).categories
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
