# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each VM can do to each resource and to each other VM, against what was granted. Pure.

The loaded policy decides, and not what svirtd meant by a label: a type rule that an administrator's
module adds, or a domain that is not bound by categories, shows here as a surplus.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from svirtd.core.levels import reads_down
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import VM, Access, Contexts, Hold
from svirtd.core.nodes import is_character
from svirtd.core.separation import Ask, Decision

# Uses of a resource, and the permissions that each one is made of: one of them is the use.
_OF_FILES: Final[Mapping[str, frozenset[str]]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"write"}),
    "append": frozenset({"append"}),
    "execute": frozenset({"execute"}),
    "relabel": frozenset({"relabelfrom", "relabelto"}),
}
# The book does not say which of the two an object is. Their rules are apart in a policy, so that
# each is looked at: what either lets through is a surplus, what either keeps back a shortfall.
_FILES: Final = ("file", "blk_file")
_CHARACTER: Final = ("chr_file",)
_OF_PROCESSES: Final[Mapping[str, frozenset[str]]] = {
    "signal": frozenset({"signal", "sigkill", "sigstop"}),
    "ptrace": frozenset({"ptrace"}),
    "become": frozenset({"transition", "dyntransition"}),
}
_OF_SOCKETS: Final[Mapping[str, frozenset[str]]] = {"connect": frozenset({"connectto"})}
_WRITER: Final = frozenset({"read", "write", "append"})
_READER: Final = frozenset({"read"})


@dataclass(frozen=True, slots=True)
class Cell:
    """One VM and one thing: a resource by its path, or another VM by its name (`is_vm`).

    `granted` is by the book, `allowed` what happens; `surplus` and `shortfall` are the difference.
    `identity` is the resource's, since two of them may have been found under one path; `group` is
    whose category it carries.
    """

    vm_name: str
    what: str
    is_vm: bool
    granted: frozenset[str]
    allowed: frozenset[str]
    surplus: frozenset[str]
    shortfall: frozenset[str]
    identity: str = ""
    group: str = ""


def size(vms: int, resources: int) -> int:
    """Return how many cells the matrix of so many has."""
    return vms * resources + vms * max(0, vms - 1)


def resources_of(holds: Sequence[Hold]) -> list[list[Hold]]:
    """Return the holds, those on one object together."""
    found: dict[object, list[Hold]] = {}
    for hold in holds:
        found.setdefault(hold.identity, []).append(hold)
    return list(found.values())


def row(
    vm: VM, others: Sequence[VM], resources: Sequence[Sequence[Hold]], ask: Ask
) -> Iterator[Cell]:
    """Yield what `vm` can do to each resource and to each of `others`, itself excepted.

    `ask` returns what is decided for subject, object and class.
    """
    me = parse_context(vm.process_context)
    for holds in resources:
        label = parse_context(holds[0].label)
        kinds = _CHARACTER if is_character(holds[0].device) else _FILES
        decisions = [ask(me, label, kind) for kind in kinds]
        uses = [_uses(one, _OF_FILES) for one in decisions]
        cell = _cell(vm, holds[0].path, _granted(vm, me, holds), uses, is_vm=False)
        # Everybody who holds it has it as the group's, or nobody.
        yield replace(cell, identity=str(holds[0].identity), group=holds[0].group)
    for other in others:
        if other.id != vm.id:
            uses = [_uses_of_process(me, parse_context(other.process_context), ask)]
            yield _cell(vm, other.name, frozenset(), uses, is_vm=True)


def algebra(contexts: Contexts, image_types: Iterable[str] = ()) -> Ask:
    """Return the answers of a policy that does what labels mean, where no kernel can be asked.

    A VM uses what carries a subset of its categories: it reads and writes the image type and
    `image_types`, those of other goals, and only reads the content type.
    """
    by_type: Mapping[str, frozenset[str]] = {
        contexts.content.type: _READER,
        **dict.fromkeys((contexts.image.type, *image_types), _WRITER),
    }

    def ask(source: Context, target: Context, kind: str) -> Decision:
        inside = kind in (*_FILES, *_CHARACTER) and source.categories >= target.categories
        allowed = by_type.get(target.type, frozenset()) if inside else frozenset()
        return Decision(allowed, permissive=False)

    return ask


def _granted(vm: VM, me: Context, holds: Sequence[Hold]) -> frozenset[str]:
    for hold in holds:
        if hold.access is Access.PUBLIC:
            # Held so by one VM it is open to every VM of the host, by the design's label algebra,
            # if the level of that VM dominates its own.
            return _READER if reads_down(me.range, parse_context(hold.label).range) else frozenset()
        if hold.group and hold.group in vm.groups:
            # What a group has is granted to each of its members, whoever of them holds it: the
            # kernel asks for the group's category, and no book.
            # A VM with another type of what it writes only reads what other members write.
            own = parse_context(vm.image_context).type == parse_context(hold.label).type
            return _WRITER if hold.access.writes and own else _READER
        if hold.vm_id == vm.id:
            return _WRITER if hold.access.writes else _READER
    return frozenset()


def _uses(decision: Decision, uses: Mapping[str, frozenset[str]]) -> frozenset[str]:
    if decision.permissive:
        return frozenset(uses)  # nothing is denied to such a domain
    return frozenset(use for use, needed in uses.items() if needed & decision.allowed)


def _uses_of_process(me: Context, other: Context, ask: Ask) -> frozenset[str]:
    found = _uses(ask(me, other, "process"), _OF_PROCESSES)
    return found | _uses(ask(me, other, "unix_stream_socket"), _OF_SOCKETS)


def _cell(
    vm: VM, what: str, granted: frozenset[str], uses: Sequence[frozenset[str]], *, is_vm: bool
) -> Cell:
    either = frozenset().union(*uses)
    each = frozenset(either).intersection(*uses)
    return Cell(vm.name, what, is_vm, granted, either, either - granted, granted - each)
