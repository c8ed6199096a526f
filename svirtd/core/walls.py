# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chinese walls: whoever has held one side of a wall may never hold the other. Pure.

What has been held is remembered of *subjects*: of a VM by its Id and its UUID, and by choice of its
owner. A side is a class of names of groups, as the configuration has it today; what is remembered
is the group.
"""

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from svirtd.core.groups import moment
from svirtd.core.keys import Reader, one_of, read_keys
from svirtd.core.model import VM
from svirtd.core.names import check_group_name, check_uuid, shown
from svirtd.errors import ConfigError, InvalidArgs

_VM_ID: Final = re.compile(r"[0-9a-f]{16}")
_OWNER: Final = re.compile(r"uid:(0|[1-9][0-9]{0,9})")


class Scope(enum.StrEnum):
    """Of whom a wall remembers what was held."""

    VM = "vm"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Wall:
    """A wall of the configuration. No group is in two of its classes."""

    name: str
    classes: tuple[tuple[str, ...], ...]
    scope: Scope = Scope.VM

    def side(self, group: str) -> int | None:
        """Return which class a group belongs to, None if the wall does not concern it."""
        for number, groups in enumerate(self.classes):
            if group in groups:
                return number
        return None


@dataclass(frozen=True, slots=True)
class Who:
    """A VM, as walls know it."""

    vm_id: str
    uuid: str
    owner_uid: int
    vm_name: str

    @classmethod
    def of(cls, vm: VM) -> "Who":
        """Return what walls know of a VM."""
        return cls(vm.id, vm.uuid, vm.owner_uid, vm.name)

    def own(self) -> tuple[str, ...]:
        """Return the subjects that are this VM, whatever it is called and whoever owns it."""
        return (self.vm_id, self.uuid.lower()) if self.uuid else (self.vm_id,)

    def subjects(self) -> tuple[str, ...]:
        """Return every subject whose past may count for this VM."""
        return (*self.own(), owner_subject(self.owner_uid))


@dataclass(frozen=True, slots=True)
class Held:
    """A row of the history: since when a subject is one that has held a group, by which VM."""

    wall: str
    subject: str
    group: str
    vm_name: str
    since_us: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two sides of a wall. `held` is None where one request asks for both at once."""

    wall: str
    first: str
    asked: str
    held: Held | None = None

    @property
    def text(self) -> str:
        """What a caller is told: wall, both sides, who held the first and when, what to do."""
        between = f"wall '{self.wall}' separates group '{self.asked}' from group '{self.first}'"
        held = self.held
        if held is None:
            return f"{between}, and the VM would be in both: leave one of the two out"
        whose, other = "", "another VM"
        if is_owner(held.subject):
            whose, other = f" of the same owner ({held.subject})", "a VM of another owner"
        return (
            f"{between}, which VM {shown(held.vm_name)}{whose} has held since "
            f"{moment(held.since_us)}, and whoever held one side may never hold the other: use "
            f"{other}, or have an administrator end it with: "
            f"svirtctl wall clear {held.wall} {held.subject}"
        )


def owner_subject(uid: int) -> str:
    """Return the subject that an owner is."""
    return f"uid:{uid}"


def is_owner(subject: str) -> bool:
    """Say whether a subject is an owner, and not a VM."""
    return _OWNER.fullmatch(subject) is not None


def as_subject(text: str) -> str | None:
    """Return a subject that is written out (an Id, a UUID, uid:NUMBER) as it is kept, else None.

    What looks like one is one: a VM may be *named* "uid:0", and whoever clears that means root.
    """
    if _VM_ID.fullmatch(text) or _OWNER.fullmatch(text):
        return text
    try:
        return check_uuid(text)
    except InvalidArgs:
        return None


def judge(
    walls: Iterable[Wall], who: Who, history: Sequence[Held], groups: Iterable[str]
) -> Conflict | None:
    """Return the wall that stands against a VM's holding these groups, if one does.

    `history` is that of who.subjects(); `groups` are all that the VM would hold, those that it
    holds already among them.
    """
    walls, groups = tuple(walls), tuple(groups)
    known = {wall.name for wall in walls}
    for wall in walls:
        sides = {group: wall.side(group) for group in groups if wall.side(group) is not None}
        if len(set(sides.values())) > 1:
            first, *others = sides
            asked = next(group for group in others if sides[group] != sides[first])
            return Conflict(wall.name, first, asked)
        for held in sorted(_counting(wall, known, who, history), key=lambda one: one.since_us):
            side = wall.side(held.group)
            for group, other in sides.items():
                if side is not None and side != other:
                    return Conflict(wall.name, held.group, group, held)
    return None


def records(
    walls: Iterable[Wall],
    who: Who,
    history: Sequence[Held],
    groups: Iterable[str],
    now_us: int,
) -> tuple[Held, ...]:
    """Return what the history lacks once the VM holds these groups.

    What one of a VM's subjects has held, all of them have: a VM that takes another UUID takes its
    past along, and so does one whose wall looks at owners from now on. What its owner's other VMs
    have held is not the VM's own.
    """
    walls, groups = tuple(walls), tuple(groups)
    known = {wall.name for wall in walls}
    there = {(one.wall, one.subject, one.group) for one in history}
    missing = []
    for wall in walls:
        subjects = who.subjects() if wall.scope is Scope.OWNER else who.own()
        past = {group: (who.vm_name, now_us) for group in groups if wall.side(group) is not None}
        for one in sorted(history, key=lambda one: -one.since_us):
            counts = one.wall == wall.name or one.wall not in known
            if one.subject in who.own() and counts and wall.side(one.group) is not None:
                past[one.group] = (one.vm_name, one.since_us)
        missing += [
            Held(wall.name, subject, group, *past[group])
            for group in past
            for subject in subjects
            if (wall.name, subject, group) not in there
        ]
    return tuple(missing)


def _counting(wall: Wall, known: set[str], who: Who, history: Iterable[Held]) -> Iterable[Held]:
    """What of the history speaks in this wall.

    What was recorded under a wall that the configuration does not have any more counts for every
    wall of today: renaming one must not forget what was behind it.
    """
    subjects = who.subjects() if wall.scope is Scope.OWNER else who.own()
    return (
        one
        for one in history
        if one.subject in subjects and (one.wall == wall.name or one.wall not in known)
    )


def read_wall_keys(where: str, table: Any) -> dict[str, Any]:
    """Return the keys of a wall's section as the fields of Wall that they give.

    `where` comes before the key in errors. Raises ConfigError.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where}expected a section with keys")
    return read_keys(where, table, KEYS)


def check_wall_name(name: str) -> str:
    """Return `name` if it can be a wall's. Raises ValueError."""
    return _group(name, "the name of a wall")


def _classes(value: Any) -> tuple[tuple[str, ...], ...]:
    lists = isinstance(value, list) and all(isinstance(one, list) for one in value)
    if not lists or len(value) < 2 or not all(value):
        raise ValueError("two or more lists of names of groups, none of them empty")
    seen: dict[str, int] = {}
    for number, groups in enumerate(value):
        for group in groups:
            _group(group, "names of groups")
            if group in seen:
                where = "two classes" if seen[group] != number else "a class twice"
                raise ValueError(f"each group once; {group!r} is in {where}")
            seen[group] = number
    return tuple(map(tuple, value))


def _group(name: Any, what: str) -> str:
    try:
        return check_group_name(name if isinstance(name, str) else "")
    except InvalidArgs:
        raise ValueError(
            f"{what}: 1 to 32 ASCII letters, digits or . _ -, beginning with a letter or digit; "
            f"not {name!r}"
        ) from None


# Key → field of a Wall and how it is read.
KEYS: Final[Mapping[str, tuple[str, Reader]]] = {
    "classes": ("classes", _classes),
    "scope": ("scope", one_of(Scope)),
}
