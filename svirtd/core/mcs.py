# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a label says: categories, levels, ranges, contexts, and the numbering of category sets.

Text is read strictly and written as the kernel writes it. Every value checks itself when it is
made, so that no context with a foreign character or a category out of range can exist, whatever
path it came by. All functions raise ValueError, which names what was found and what is expected.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Set
from dataclasses import dataclass, replace
from math import comb, factorial, isqrt
from typing import TypeAlias

Categories: TypeAlias = frozenset[int]

MAX_CATEGORY = 1023
# Policies define far fewer (the reference policy 16); the bound only keeps the number small.
MAX_SENSITIVITY = 1023
# The kernel takes a context in one write to selinuxfs or /proc/PID/attr, which is at most a page.
# A longer text could not be validated there, so it is no context that could be in use.
MAX_CONTEXT_CHARS = 4096
MAX_SET_SIZE = 5

_NUMBER = r"0|[1-9][0-9]{0,3}"
_CATEGORY_ITEM = re.compile(rf"c({_NUMBER})(?:\.c({_NUMBER}))?")
_SENSITIVITY = re.compile(rf"s({_NUMBER})")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.]+")
_SHOWN_CHARS = 80


def _shown(text: str) -> str:
    """Return `text` quoted, escaped to ASCII and cut, fit for an error message or a log line."""
    return ascii(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def parse_categories(text: str) -> Categories:
    """Read a category list such as `c1,c5.c9`; the empty text is the empty set.

    Items may stand in any order, as for the kernel. Refused are numbers above 1023 or with leading
    zeros, blanks, ranges that do not ascend, and a category that is named twice.
    """
    if not text:
        return frozenset()
    found: set[int] = set()
    for item in text.split(","):
        match = _CATEGORY_ITEM.fullmatch(item)
        if match is None:
            raise ValueError(
                f"bad category {_shown(item)} in {_shown(text)}: expected cN or cN.cM "
                f"with numbers 0..{MAX_CATEGORY}, no blanks and no leading zeros"
            )
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last > MAX_CATEGORY or first > MAX_CATEGORY:
            raise ValueError(
                f"category out of range in {_shown(item)}: expected at most c{MAX_CATEGORY}"
            )
        if match[2] is not None and first >= last:
            raise ValueError(f"bad category range {_shown(item)}: expected cN.cM with N below M")
        named = range(first, last + 1)
        if not found.isdisjoint(named):
            raise ValueError(
                f"{_shown(item)} names a category again in {_shown(text)}: expected each one once"
            )
        found.update(named)
    return frozenset(found)


def check_categories(cats: Set[int]) -> None:
    """Refuse, with ValueError, a set that holds a category outside 0..1023."""
    if cats and (min(cats) < 0 or max(cats) > MAX_CATEGORY):
        raise _category_out_of_range(min(cats), max(cats))


def format_categories(cats: Set[int]) -> str:
    """Return the kernel's text: ascending, runs of three or more as `cA.cB`, empty set as ``""``.

    ValueError if a category is outside 0..1023.
    """
    if len(cats) == 2:
        # Every private pair takes this way, often; the general way costs several times as much.
        low, high = cats
        if low > high:
            low, high = high, low
        if low < 0 or high > MAX_CATEGORY:
            raise _category_out_of_range(low, high)
        return f"c{low},c{high}"
    if not cats:
        return ""
    check_categories(cats)
    ordered = sorted(cats)
    items: list[str] = []
    first = last = ordered[0]
    for category in ordered[1:]:
        if category != last + 1:
            items.append(_format_run(first, last))
            first = category
        last = category
    items.append(_format_run(first, last))
    return ",".join(items)


def _format_run(first: int, last: int) -> str:
    match last - first:
        case 0:
            return f"c{first}"
        case 1:
            return f"c{first},c{last}"
        case _:
            return f"c{first}.c{last}"


def _category_out_of_range(lowest: int, highest: int) -> ValueError:
    return ValueError(
        f"category out of range: found {lowest}..{highest}, expected within 0..{MAX_CATEGORY}"
    )


@dataclass(frozen=True, slots=True)
class Level:
    """A sensitivity and a set of categories. ValueError if a number is out of range."""

    sensitivity: int
    categories: Categories

    def __post_init__(self) -> None:
        if not 0 <= self.sensitivity <= MAX_SENSITIVITY:
            raise ValueError(
                f"sensitivity out of range: found {self.sensitivity}, expected 0..{MAX_SENSITIVITY}"
            )
        check_categories(self.categories)

    def __str__(self) -> str:
        if not self.categories:
            return f"s{self.sensitivity}"
        return f"s{self.sensitivity}:{format_categories(self.categories)}"

    def dominates(self, other: "Level") -> bool:
        """Return whether this level has at least the sensitivity and every category of `other`."""
        return self.sensitivity >= other.sensitivity and self.categories >= other.categories


def parse_level(text: str) -> Level:
    """Read a level such as `s0` or `s0:c1,c2`."""
    head, colon, tail = text.partition(":")
    match = _SENSITIVITY.fullmatch(head)
    if match is None:
        raise ValueError(f"bad level {_shown(text)}: expected sN or sN:categories")
    if colon and not tail:
        raise ValueError(f"bad level {_shown(text)}: expected categories after the colon")
    return Level(int(match[1]), parse_categories(tail))


@dataclass(frozen=True, slots=True)
class Range:
    """Two levels, of which the high one dominates the low one; ValueError otherwise."""

    low: Level
    high: Level

    def __post_init__(self) -> None:
        if not self.high.dominates(self.low):
            raise ValueError(
                f"bad range: high level {_shown(str(self.high))} does not dominate "
                f"low level {_shown(str(self.low))}"
            )

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def parse_range(text: str) -> Range:
    """Read a range such as `s0-s0:c0.c1023`; a single level is both low and high."""
    low_text, dash, high_text = text.partition("-")
    low = parse_level(low_text)
    return Range(low, parse_level(high_text) if dash else low)


@dataclass(frozen=True, slots=True)
class Context:
    """A security context. ValueError if a name holds a character that no identifier has."""

    user: str
    role: str
    type: str
    range: Range

    def __post_init__(self) -> None:
        for part, name in (("user", self.user), ("role", self.role), ("type", self.type)):
            if _IDENTIFIER.fullmatch(name) is None:
                raise ValueError(
                    f"bad {part} {_shown(name)} in a context: expected one or more of A-Za-z0-9_."
                )

    def __str__(self) -> str:
        return f"{self.user}:{self.role}:{self.type}:{self.range}"

    @property
    def categories(self) -> Categories:
        """The categories of the high level: all that a process with this context may use."""
        return self.range.high.categories

    def with_type(self, new_type: str) -> "Context":
        """Return this context with another type."""
        return replace(self, type=new_type)

    def with_range(self, new_range: Range) -> "Context":
        """Return this context with another range."""
        return replace(self, range=new_range)

    def with_categories(self, cats: Categories) -> "Context":
        """Return this context with a single level: the low sensitivity and exactly `cats`."""
        level = Level(self.range.low.sensitivity, cats)
        return replace(self, range=Range(level, level))


def parse_context(text: str) -> Context:
    """Read `user:role:type:range`, without a trailing NUL. A context without range is refused."""
    if len(text) > MAX_CONTEXT_CHARS:
        raise ValueError(
            f"context of {len(text)} characters: expected at most {MAX_CONTEXT_CHARS}, "
            "the most that the kernel takes"
        )
    parts = text.split(":", 3)
    if len(parts) == 3:
        raise ValueError(
            f"context {_shown(text)} has no range: the loaded policy must be an MCS or MLS policy"
        )
    if len(parts) != 4:
        raise ValueError(f"bad context {_shown(text)}: expected user:role:type:range")
    user, role, kind, range_text = parts
    return Context(user, role, kind, parse_range(range_text))


def count(n: int, size: int) -> int:
    """Return how many sets of `size` members n positions have. ValueError on a bad size."""
    _check_size(size)
    return comb(n, size)


def rank(members: Collection[int]) -> int:
    """Return the number of a set of 1 to 5 distinct positions (from 0 up) in colex order.

    Colex order compares the largest member first. A set's number therefore does not depend on how
    many positions there are: the sets over n positions are exactly the numbers below count(n).
    """
    if len(members) == 2:
        low, high = members
        if low > high:
            low, high = high, low
        if low < 0 or low == high:
            raise _bad_members(members)
        return high * (high - 1) // 2 + low
    _check_size(len(members))
    ordered = sorted(members)
    if ordered[0] < 0 or len(set(ordered)) != len(ordered):
        raise _bad_members(members)
    return sum(comb(member, place) for place, member in enumerate(ordered, start=1))


def unrank(rank: int, size: int) -> tuple[int, ...]:
    """Return the set of `size` positions that has this number, ascending. Inverse of rank()."""
    _check_size(size)
    if rank < 0:
        raise ValueError(f"bad rank {rank}: expected 0 or more")
    if size == 2:
        # high(high-1)/2 <= rank means (2 high - 1)^2 <= 8 rank + 1. As isqrt is exact, so is this.
        high = (1 + isqrt(8 * rank + 1)) // 2
        return rank - high * (high - 1) // 2, high
    rest = rank
    members: list[int] = []
    for place in range(size, 0, -1):
        member = _largest_below(rest, place)
        rest -= comb(member, place)
        members.append(member)
    return tuple(reversed(members))


def _largest_below(limit: int, place: int) -> int:
    """Return the largest c with comb(c, place) <= limit."""
    if place == 1:
        return limit
    if limit == 0:
        return place - 1
    # (c-place+1)^place <= comb(c, place) * place! <= c^place: the root of limit * place!, taken up
    # and down to a power of two, leaves a window that bisection closes in a few steps.
    bits = (limit * factorial(place)).bit_length()
    floor = 1 << ((bits - 1) // place)
    ceiling = (1 << -(-bits // place)) + place - 1
    return bisect_right(range(ceiling), limit, lo=floor, key=lambda c: comb(c, place)) - 1


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_SET_SIZE:
        raise ValueError(f"bad set size {size}: expected 1..{MAX_SET_SIZE}")


def _bad_members(members: Collection[int]) -> ValueError:
    return ValueError(f"bad positions {sorted(members)}: expected distinct numbers from 0 up")
