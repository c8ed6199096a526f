# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people type, turned into what the contract takes. Every refusal is a ValueError."""

import decimal
import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from typing import Final

from svirtd.core.model import Access
from svirtd.ctl.times import span_us, until_us

_U64_MAX: Final = 2**64 - 1
_I32_MAX: Final = 2**31 - 1
_CPU_MAX: Final = 8191

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]?)")
_SIZE_EXPONENT: Final = {unit: exponent for exponent, unit in enumerate(["", *"KMGTPE"])}
# Unit files say seconds, the bus says microseconds.
_SPANS: Final = {"RuntimeMaxSec": "RuntimeMaxUSec", "TimeoutStopSec": "TimeoutStopUSec"}
# The keys of a resource, see org.svirt1(5), that can be said behind its path.
_TERMS: Final = ("id", "group", "level", "until", "at-end", "overlay", "format", "backing")
_KEYS: Final = r"(?:,[a-z-]+=[^,]*)*"
_DISK = re.compile(rf"(.*):(?:({'|'.join(Access)})({_KEYS})|(group=[^,]*{_KEYS}))", re.S)
_CATEGORIES = re.compile(r"c\d+(?:[.,]c\d+)*")


@dataclass(frozen=True, slots=True)
class Disk:
    """A resource as the command line names it; `path` is absolute.

    `access` is None where the goal's default is meant. `terms` are further keys of the contract's,
    with what was said for each. `recursive`: a directory with all that is in it.
    """

    path: str
    access: Access | None
    terms: tuple[tuple[str, str | int], ...] = ()
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class Property:
    """A systemd property with its D-Bus signature."""

    name: str
    signature: str
    value: int | str | bytes


def carried(text: str) -> str:
    """Return `text` if D-Bus can carry it, which takes UTF-8 only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8; D-Bus cannot carry it") from None
    return text


def absolute(path: str) -> str:
    """Return `path` as an absolute one, from the working directory."""
    if not path:
        raise ValueError("an empty path names nothing")
    try:
        full = os.path.join(os.getcwd(), carried(path))
        if ".." not in full.split("/"):
            return os.path.normpath(full)
        # "link/../disk" lies where the link leads to: dropping the words would name another file.
        folder, name = os.path.split(full)
        if name in ("", ".", ".."):
            return carried(os.path.realpath(full))
        return carried(os.path.join(os.path.realpath(folder), name))
    except FileNotFoundError:
        raise ValueError(f"{path!r} is relative and the working directory is gone") from None


def parse_disk(text: str) -> Disk:
    """Read PATH, PATH:ACCESS or PATH:ACCESS,KEY=VALUE,…

    PATH:group=NAME is short for the access of a group. Only what stands at the end and begins with
    an access counts: a path may have colons.
    """
    found = _DISK.fullmatch(text)
    if found is None:
        return Disk(absolute(text), None)
    path, access, behind, short = found.groups()
    terms: dict[str, str | int] = {}
    for pair in filter(None, (behind or short or "").split(",")):
        key, _, value = pair.partition("=")
        if key not in _TERMS:
            raise ValueError(f"{key!r} is not known behind a path; known: {', '.join(_TERMS)}")
        if key in terms or not value:
            raise ValueError(f"{key} is {'given twice' if key in terms else 'empty'}")
        terms[key] = _term(key, value)
    how = Access(access) if access else Access.GROUP
    if how is Access.GROUP and "group" not in terms:
        raise ValueError("access 'group' takes the name of one: PATH:group=NAME")
    return Disk(absolute(path), how, tuple(terms.items()))


def parse_tree(text: str) -> Disk:
    """Read what parse_disk() does, for a directory with all that is in it."""
    return replace(parse_disk(text), recursive=True)


def _term(key: str, value: str) -> str | int:
    match key:
        case "until":
            return until_us(value, time.time_ns() // 1000)
        case "overlay":
            return absolute(value)
    return carried(value)


def parse_environment(text: str) -> str:
    """Read NAME=value."""
    name, equals, _ = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not NAME=value")
    return carried(text)


def parse_owners(text: str) -> str:
    """Read what `owners` asks for: categories and contexts as they are, else a path."""
    if _CATEGORIES.fullmatch(text) or ("/" not in text and text.count(":") > 1):
        return text
    return absolute(text)


def parse_command(command: tuple[str, ...]) -> list[str]:
    """Return the command with its program as an absolute path, looked up in PATH if bare."""
    words = [carried(word) for word in command]
    if not words or not words[0]:
        raise ValueError("the command is empty; put it behind --")
    program = words[0]
    if "/" in program:
        return [absolute(program), *words[1:]]
    found = shutil.which(program)
    if found is None:
        raise ValueError(f"{program!r} is not a program in PATH; give its path")
    return [absolute(found), *words[1:]]


def parse_property(text: str) -> Property:
    """Read NAME=VALUE as a unit file spells it.

    A name that is not known here goes to the daemon as a number if the value is one, which keeps
    the daemon's white list the only one.
    """
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    carried(text)
    try:
        return _typed(name, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _typed(name: str, value: str) -> Property:
    match name:
        case "Description":
            return Property(name, "s", value)
        case "OOMScoreAdjust":
            return Property(name, "i", _integer(value))
        case "AllowedCPUs":
            return Property(name, "ay", _cpu_mask(value))
        case "CPUQuota":
            return Property("CPUQuotaPerSecUSec", "t", _quota_us(value))
        case "RuntimeMaxSec" | "TimeoutStopSec":
            return Property(_SPANS[name], "t", _span_us(value))
    try:
        return Property(name, "t", _size(value))
    except ValueError:
        if value[0].isdigit() or name.startswith(("Memory", "Tasks", "CPU", "IO", "Limit")):
            raise
        return Property(name, "s", value)


def _size(value: str) -> int:
    if value == "infinity":
        return _U64_MAX
    found = _SIZE.fullmatch(value)
    if found is None or not value.isascii():
        raise ValueError(f"{value!r} is not a number, a size such as 512M or 2G, or infinity")
    return _u64(decimal.Decimal(found[1]) * 1024 ** _SIZE_EXPONENT[found[2]], value)


def _quota_us(value: str) -> int:
    if value == "infinity":
        return _U64_MAX
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", value, re.ASCII)
    if found is None:
        raise ValueError(f"{value!r} is not a share of one CPU such as 50% or 200%, or infinity")
    return _u64(decimal.Decimal(found[1]) * 10_000, value)


def _span_us(value: str) -> int:
    if value == "infinity":
        return _U64_MAX
    try:
        return _u64(span_us(value), value)
    except ValueError as error:
        raise ValueError(f"{error}, or infinity") from None


def _u64(number: decimal.Decimal | int, value: str) -> int:
    if number != int(number) or number > _U64_MAX:
        raise ValueError(f"{value!r} is not a whole number below 2^64 in the unit of the property")
    return int(number)


def _integer(value: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,10}", value, re.ASCII) or abs(int(value)) > _I32_MAX:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _cpu_mask(value: str) -> bytes:
    mask = 0
    for part in value.replace(",", " ").split():
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        first = int(found[1]) if found else 1
        last = int(found[2] or found[1]) if found else 0
        if not first <= last <= _CPU_MAX:
            raise ValueError(f"{value!r} is not a list of CPUs such as 0-3,8")
        mask |= (1 << last + 1) - (1 << first)
    if not mask:
        raise ValueError(f"{value!r} names no CPU")
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")
