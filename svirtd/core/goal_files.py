# SPDX-License-Identifier: LGPL-2.1-or-later
"""A site's own goals: the tables [goal.NAME] of parsed TOML files become Goals. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from svirtd.core.goals import (
    BUILT_INS,
    ISOLATED,
    Goal,
    Goals,
    GroupRule,
    Network,
    Written,
)
from svirtd.core.keys import Reader, boolean, one_of, read_keys
from svirtd.core.model import Access
from svirtd.core.names import check_vm_name
from svirtd.errors import ConfigError, InvalidArgs

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_TYPE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DEVICE: Final = re.compile(r"/dev(?:/[A-Za-z0-9_:+-][A-Za-z0-9_.:+-]{0,63}){1,8}")
_LEVELS: Final = re.compile(r"s(0|[1-9]\d{0,3})(?:-s(0|[1-9]\d{0,3}))?")
_DESCRIPTION_MAX: Final = 512
_BASE: Final = "based-on"


def _description(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _DESCRIPTION_MAX or not value.isprintable():
        raise ValueError(f"a string of at most {_DESCRIPTION_MAX} printable characters")
    return value


def _type(value: Any) -> str:
    if not isinstance(value, str) or not _TYPE.fullmatch(value):
        raise ValueError('the name of a type of the policy, such as "svirt_t"')
    return value


def _accesses(value: Any) -> frozenset[Access]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"a list of accesses, each {_named(Access)}")
    return frozenset(map(one_of(Access), value))


def _groups(value: Any) -> GroupRule | frozenset[str]:
    expected = f"{_named(GroupRule)}, or a list of names of groups"
    if isinstance(value, str) and value in tuple(GroupRule):
        return GroupRule(value)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ValueError(expected)
    try:
        return frozenset(check_vm_name(one) for one in value)
    except InvalidArgs as error:
        raise ValueError(f"{expected} ({error})") from None


def _devices(value: Any) -> tuple[str, ...] | None:
    if value == "host":
        return None
    if not isinstance(value, list) or not all(
        isinstance(one, str) and _DEVICE.fullmatch(one) for one in value
    ):
        raise ValueError('"host", or a list of device nodes such as "/dev/kvm"')
    return tuple(dict.fromkeys(value))


def _levels(value: Any) -> tuple[int, int]:
    found = _LEVELS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('a sensitivity such as "s0", or two of them such as "s0-s3"')
    low, high = int(found[1]), int(found[2] or found[1])
    if low > high:
        raise ValueError("the lower sensitivity first")
    return low, high


def _named(values: Any) -> str:
    return " or ".join(f'"{one}"' for one in values)


# Key → field of a Goal and how it is read. A reader's ValueError says what was expected.
KEYS: Final[Mapping[str, tuple[str, Reader]]] = {
    "description": ("description", _description),
    "process-type": ("process_type", _type),
    "image-type": ("image_type", _type),
    "accesses": ("accesses", _accesses),
    "default-access": ("default_access", one_of(Access)),
    "groups": ("groups", _groups),
    "network": ("network", one_of(Network)),
    "devices": ("devices", _devices),
    "levels": ("levels", _levels),
    "written": ("written", one_of(Written)),
    "digest": ("digest", boolean),
}


def read_all(files: Sequence[tuple[str, Mapping[str, Any]]]) -> Goals:
    """Return the built-in goals and those of these files, each a path and its tables.

    A goal may be based on one that stands before it. Raises ConfigError.
    """
    known = dict(BUILT_INS)
    for path, tables in files:
        for section, table in tables.items():
            if section != "goal" or not isinstance(table, dict):
                raise ConfigError(
                    f"{path}: {section}: unknown; expected sections [goal.NAME], with keys"
                )
            for name, keys in table.items():
                known[name] = _read(path, name, keys, known)
    return known


def _read(path: str, name: str, keys: Any, known: Goals) -> Goal:
    where = f"{path}: [goal.{name}]"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {name!r} cannot be a goal's name; expected 1 to 32 lower-case letters, "
            "digits or _ . -, of which the first is a letter or digit"
        )
    if not isinstance(keys, dict):
        raise ConfigError(f"{where}: {keys!r} cannot be used; expected a section with keys")
    if name in known:
        raise ConfigError(
            f"{where}: there is a goal of this name already, in {known[name].source}; expected "
            "another name"
        )
    values = read_keys(f"{where} ", keys, KEYS, [_BASE])
    base = _base(where, keys.get(_BASE, ISOLATED.name), known)
    found = replace(base, **{"description": "", **values}, name=name, source=path)
    _refuse_contradictions(where, found)
    return found


def _base(where: str, base: Any, known: Goals) -> Goal:
    if not isinstance(base, str) or base not in known:
        raise ConfigError(
            f"{where} {_BASE}: {base!r} cannot be used; expected a goal that stands before this "
            f"one: {', '.join(known)}"
        )
    return known[base]


def _refuse_contradictions(where: str, goal: Goal) -> None:
    allowed = ", ".join(sorted(goal.accesses))
    only_read = goal.accesses & {Access.READONLY, Access.PUBLIC}
    if goal.default_access not in goal.accesses:
        raise ConfigError(
            f"{where} default-access: {goal.default_access.value!r} is not among accesses; "
            f"expected one of {allowed}"
        )
    if goal.network is Network.ZONE and goal.groups is GroupRule.NONE:
        raise ConfigError(
            f'{where} network: "zone" takes a group that is a zone, and groups is "none"; expected '
            'groups "required", "any" or a list'
        )
    if goal.written is Written.OVERLAY and not only_read:
        raise ConfigError(
            f'{where} written: "overlay" is about what is only read, and accesses is {allowed}; '
            'expected "readonly" or "public" among accesses'
        )
    if goal.digest and Access.READONLY not in goal.accesses:
        raise ConfigError(
            f"{where} digest: it is taken of what is held with access 'readonly', and accesses is "
            f'{allowed}; expected "readonly" among accesses'
        )
