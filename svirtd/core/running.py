# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a running unit tells of the VM that it is: its name, its set, its files. Pure."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import Access, Contexts
from svirtd.core.names import UNIT_PREFIX, check_vm_name, unit_name
from svirtd.core.pool import Shape
from svirtd.errors import InvalidArgs

RUNTIME_VARIABLE: Final = "SVIRT_RUNTIME_DIR"
_ID: Final = re.compile(r"[0-9a-f]{16}")
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")
_PATH_MAX: Final = 4096
# A command has some dozen; more is not a command that svirtd has started.
_PATHS_MAX: Final = 4096
# What a path may stand behind, in the languages of QEMU and its like.
_STARTS: Final = re.compile(r"(?:^|(?<=[,=:]))(?=/)")
# QEMU spells a comma in a name as two.
_LONE_COMMA: Final = re.compile(r"(?<!,)(?:,,)*(,)(?!,)")


@dataclass(frozen=True, slots=True)
class Claim:
    """The private set that a unit runs under, and the categories of its groups."""

    context: Context
    rank: int
    groups: frozenset[int]


def vm_of_unit(unit: str) -> str | None:
    """Return the VM whose unit this is, None if no VM's unit has such a name."""
    if not unit.startswith(UNIT_PREFIX) or not unit.endswith(".service"):
        return None
    escaped = unit.removeprefix(UNIT_PREFIX).removesuffix(".service")
    name = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), escaped)
    try:
        check_vm_name(name)
    except InvalidArgs:
        return None
    # One spelling only: two units must not be one VM.
    return name if unit_name(name) == unit else None


def claim_of(
    context: str, contexts: Contexts, shape: Shape, group_pool: frozenset[int]
) -> Claim | None:
    """Return the set of a VM's process context, None if the context is not a VM's of ours."""
    try:
        found = parse_context(context)
        groups = found.categories & group_pool
        rank = shape.rank_of(found.categories - groups)
    except ValueError:
        return None
    return Claim(found, rank, groups) if found.type == contexts.process.type else None


def id_of(environment: Sequence[str], folder: str) -> str | None:
    """Return the Id that a unit's environment names by a runtime folder below `folder`."""
    prefix = f"{RUNTIME_VARIABLE}={folder}/"
    # Of two assignments the later one holds, and svirtd's own is the last.
    for assignment in reversed(environment):
        if assignment.startswith(f"{RUNTIME_VARIABLE}="):
            id_ = assignment.removeprefix(prefix)
            return id_ if _ID.fullmatch(id_) else None
    return None


def access_of(
    label: str | None, contexts: Contexts, pair: frozenset[int], groups: frozenset[int]
) -> tuple[Access, int | None] | None:
    """Return how a VM of this pair and these groups holds an object of this label, and by which
    group's category; None if it cannot be told.

    An object without categories may be anybody's.
    """
    try:
        found = None if label is None else parse_context(label)
    except ValueError:
        return None
    if found is None:
        return None
    group = next((one for one in groups if found.categories == {one}), None)
    if group is None and found.categories != pair:
        return None
    if found.type == contexts.content.type:
        return Access.READONLY, group
    if found.type == contexts.image.type:
        return (Access.EXCLUSIVE if group is None else Access.GROUP), group
    return None


def named_paths(argv: Sequence[str]) -> tuple[str, ...]:
    """Return every text in a command that may be the path of a file, each once.

    What is not one is harmless: an object is known by its label.
    """
    texts = (text for argument in argv for text in _texts(argument))
    candidates = (path for text in texts for path in _paths(text))
    return tuple(dict.fromkeys(itertools.islice(candidates, _PATHS_MAX)))


def _texts(argument: str) -> Iterator[str]:
    yield argument
    start = argument.find("{")
    if start >= 0:
        try:
            yield from _strings(json.loads(argument[start:]))
        except (ValueError, RecursionError):
            return  # it has a brace and is not JSON


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)


def _paths(text: str) -> Iterator[str]:
    for start in _STARTS.finditer(text):
        rest = text[start.start() : start.start() + _PATH_MAX]
        comma = _LONE_COMMA.search(rest)
        for path in (rest, rest[: comma.start(1)] if comma else rest, rest.partition(":")[0]):
            for spelt in (path, path.replace(",,", ",")):
                if "\0" not in spelt:
                    yield spelt
