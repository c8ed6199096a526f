# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which private category sets exist, and which one is handed out next.

Pure: the book keeps a key, a cursor and a FIFO of returned ranks, passes them in and writes down
what comes back, all inside one transaction of its own.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from math import comb, isqrt
from typing import Final

from svirtd.core import mcs
from svirtd.errors import PoolExhausted

MIN_KEY_BYTES: Final = 16
MAX_KEY_BYTES: Final = hashlib.blake2b.MAX_KEY_SIZE
# Four rounds already make a Feistel network look random to one who may ask both ways; six keep that
# up until nearly the whole (small) domain was seen. This hides the order of draws from neighbours,
# who see each other's labels anyway; it protects no secret, and isolation does not rest on it.
_ROUNDS: Final = 6


@dataclass(frozen=True, slots=True)
class Shape:
    """The private sets that exist: all `size`-subsets of the categories `private`.

    `private` ascends and holds no reserved category. `total` is how many sets there are.
    ValueError if the parts do not fit together. make_shape() builds one from a configuration.
    """

    private: tuple[int, ...]
    size: int
    total: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.private) != sorted(set(self.private)):
            raise ValueError("bad private pool: expected ascending, distinct categories")
        members = frozenset(self.private)
        mcs.check_categories(members)
        total = mcs.count(len(self.private), self.size)
        if total == 0:
            raise ValueError(
                f"private pool too small: found {len(self.private)} usable categories "
                f"({mcs.format_categories(members) or 'none'}), "
                f"expected at least {self.size}, the size of one set"
            )
        object.__setattr__(self, "total", total)

    def categories_of(self, rank: int) -> mcs.Categories:
        """Return the set with this rank. ValueError if the rank is not in range(total)."""
        if not 0 <= rank < self.total:
            raise ValueError(f"bad rank {rank}: expected 0..{self.total - 1}")
        private = self.private
        return frozenset([private[position] for position in mcs.unrank(rank, self.size)])

    def carried(self, key: int) -> mcs.Categories:
        """Return the set that a key of the quarantine means: a rank, or a group's category."""
        return frozenset({category_of(key)}) if key < 0 else self.categories_of(key)

    def rank_of(self, cats: Set[int]) -> int:
        """Return the rank of a set. ValueError if it is not one of this shape."""
        positions = self._positions(cats)
        if len(cats) != self.size or len(positions) != self.size:
            raise ValueError(
                f"not a private set: found {mcs.format_categories(cats) or 'no categories'}, "
                f"expected {self.size} categories of the private pool"
            )
        return mcs.rank(positions)

    def ranks_within(self, cats: Set[int], limit: int) -> tuple[int, ...]:
        """Return, ascending, the ranks of all private sets that are subsets of `cats`.

        Categories outside the private pool do not matter. ValueError if there are more than
        `limit` such sets.
        """
        positions = self._positions(cats)
        found = comb(len(positions), self.size)
        if found > limit:
            raise ValueError(
                f"{len(positions)} private categories hold {found} private sets: "
                f"expected at most {limit}; name fewer categories"
            )
        return tuple(sorted(mcs.rank(chosen) for chosen in combinations(positions, self.size)))

    def _positions(self, cats: Set[int]) -> list[int]:
        """Return, ascending, where in the pool those of `cats` stand that belong to it."""
        private = self.private
        positions = []
        for category in sorted(cats):
            position = bisect_left(private, category)
            if position < len(private) and private[position] == category:
                positions.append(position)
        return positions


def make_shape(
    private: mcs.Categories, groups: mcs.Categories, reserved: mcs.Categories, size: int
) -> Shape:
    """Return the shape of the private pool, with reserved categories taken out.

    ValueError if private and group pool overlap, the size is not 1..5, a category is out of range
    or fewer than `size` categories are left.
    """
    both = private & groups
    if both:
        raise ValueError(
            f"private pool and group pool overlap: found {mcs.format_categories(both)} in both, "
            "expected no common category"
        )
    mcs.check_categories(groups)
    return Shape(tuple(sorted(private - reserved)), size)


def key_of(category: int) -> int:
    """Return the number under which the quarantine has a group's category: below every rank."""
    return -1 - category


def category_of(key: int) -> int:
    """Return the category that key_of() made this of."""
    return -1 - key


def draw_category(
    pool: Set[int], issued: Set[int], returned: Sequence[int], is_blocked: Callable[[int], bool]
) -> list[int]:
    """Return the group categories of which any may be handed out next; empty if there is none.

    Never-used ones while there are such, then the one returned longest ago. `issued` have a group
    or are in quarantine, `returned` had one, oldest first. Blocked is what somebody else uses.
    """
    fresh = sorted(pool - issued - set(returned))
    free = [one for one in fresh if not is_blocked(one)]
    if free:
        return free
    again = (one for one in returned if one in pool and one not in issued and not is_blocked(one))
    return list(islice(again, 1))


@dataclass(frozen=True, slots=True)
class Permutation:
    """A keyed pseudo-random bijection of range(total), both ways in expected O(1).

    The book stores a cursor into it: for the same key and total it must stay the same for ever,
    or sets would be handed out twice. ValueError unless the key has 16..64 bytes and
    1 <= total < 2**64.
    """

    key: bytes = field(repr=False)
    total: int
    _left: int = field(init=False, repr=False, compare=False)
    _right: int = field(init=False, repr=False, compare=False)
    _person: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not MIN_KEY_BYTES <= len(self.key) <= MAX_KEY_BYTES:
            raise ValueError(
                f"bad permutation key of {len(self.key)} bytes: "
                f"expected {MIN_KEY_BYTES}..{MAX_KEY_BYTES}"
            )
        if not 1 <= self.total < 1 << 64:
            raise ValueError(f"bad permutation total {self.total}: expected 1..2**64-1")
        # The smallest near-square rectangle that holds range(total): fewer than `left` points lie
        # outside, so that walking past them is rare.
        left = isqrt(self.total - 1) + 1
        object.__setattr__(self, "_left", left)
        object.__setattr__(self, "_right", -(-self.total // left))
        # With the total in it, a pool of another shape under the same key has an unrelated order.
        object.__setattr__(self, "_person", b"svirtd-p" + self.total.to_bytes(8, "big"))

    def at(self, index: int) -> int:
        """Return the rank at this index. ValueError if the index is not in range(total)."""
        self._check(index, "index")
        point = self._forward(index)
        # Cycle walking (Black and Rogaway): on the cycle of a bijection one always comes back in.
        while point >= self.total:
            point = self._forward(point)
        return point

    def index_of(self, rank: int) -> int:
        """Return the index of this rank. ValueError if the rank is not in range(total)."""
        self._check(rank, "rank")
        point = self._backward(rank)
        while point >= self.total:
            point = self._backward(point)
        return point

    def _check(self, number: int, what: str) -> None:
        if not 0 <= number < self.total:
            raise ValueError(f"bad {what} {number}: expected 0..{self.total - 1}")

    def _forward(self, point: int) -> int:
        right, left = divmod(point, self._left)
        for turn in range(_ROUNDS):
            if turn % 2 == 0:
                left = (left + self._mix(turn, right)) % self._left
            else:
                right = (right + self._mix(turn, left)) % self._right
        return right * self._left + left

    def _backward(self, point: int) -> int:
        right, left = divmod(point, self._left)
        for turn in reversed(range(_ROUNDS)):
            if turn % 2 == 0:
                left = (left - self._mix(turn, right)) % self._left
            else:
                right = (right - self._mix(turn, left)) % self._right
        return right * self._left + left

    def _mix(self, turn: int, half: int) -> int:
        digest = hashlib.blake2b(
            half.to_bytes(8, "big"),
            digest_size=8,
            key=self.key,
            salt=turn.to_bytes(1, "big"),
            person=self._person,
        ).digest()
        return int.from_bytes(digest, "big")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a draw found, and what the book has to write down, in this order.

    Set the cursor to `cursor`; delete the `consumed_returned` oldest entries of the FIFO; append
    `put_back` to it; lower the number of ranks ahead by `passed`. This holds with `rank` None too,
    which says that every candidate overlapped a foreign label: a book that keeps the moves starts
    the next draw behind those candidates.
    """

    rank: int | None
    cursor: int
    consumed_returned: int
    put_back: tuple[int, ...]
    passed: int = 0

    def issued(self) -> int:
        """Return the rank; PoolExhausted if every candidate was blocked."""
        if self.rank is None:
            raise PoolExhausted(
                f"the {len(self.put_back)} free category sets that were tried all overlap labels "
                "in use on this host that svirtd did not give (libvirt, containers): stop their "
                "users, or give svirtd categories of its own with `[labels] private`"
            )
        return self.rank


@dataclass(frozen=True, slots=True)
class PoolState:
    """The book's counts. ValueError if they contradict each other.

    `cursor`: how far the permutation was walked; every rank before it is issued. `ahead`: ranks
    behind it that are issued all the same, since they were claimed and not drawn. `returned`: the
    FIFO's length. `quarantined`: ranks free but not yet proven clean. The rest of the issued ranks
    is in use.
    """

    cursor: int
    returned: int
    quarantined: int
    ahead: int = 0

    def __post_init__(self) -> None:
        if min(self.cursor, self.ahead, self.returned, self.quarantined, self.in_use) < 0:
            raise ValueError(
                f"the book's pool contradicts itself: {self.cursor} issued in order and "
                f"{self.ahead} ahead, {self.returned} returned, {self.quarantined} quarantined"
            )

    @property
    def issued(self) -> int:
        """How many ranks are not in the part of the permutation that is still to be walked."""
        return self.cursor + self.ahead

    @property
    def in_use(self) -> int:
        """How many ranks VMs hold now."""
        return self.issued - self.returned - self.quarantined

    def after(self, drawn: Drawn) -> "PoolState":
        """Return the counts once the book has written down this draw."""
        returned = self.returned - drawn.consumed_returned + len(drawn.put_back)
        return PoolState(drawn.cursor, returned, self.quarantined, self.ahead - drawn.passed)


class RankTaken(Exception):
    """A rank that was to be claimed is in use or in quarantine."""


def claim(
    permutation: Permutation, state: PoolState, rank: int, *, returned: bool, taken: bool
) -> PoolState:
    """Take this very rank out of the pool: return the counts that the book then has.

    For a set that runs on the host already, whatever the book says. The book tells where it has
    the rank: in the FIFO (`returned`, from which the caller deletes it) or with a VM or in
    quarantine (`taken`, which raises RankTaken). A rank that the permutation has still before it
    is counted as ahead, and the walk will pass it by: the cost does not depend on how far ahead.

    ValueError if the permutation has issued the rank and the book has it nowhere.
    """
    if taken:
        raise RankTaken(f"rank {rank} is in use or in quarantine")
    if returned:
        return replace(state, returned=state.returned - 1)
    if permutation.index_of(rank) < state.cursor:
        raise ValueError(f"the book has lost rank {rank}: it was issued and is nowhere")
    return replace(state, ahead=state.ahead + 1)


def draw(
    permutation: Permutation,
    state: PoolState,
    *,
    returned: Iterable[int],
    is_issued: Callable[[int], bool],
    is_blocked: Callable[[int], bool],
    blocked_limit: int,
) -> Drawn:
    """Choose the next rank: a never-used one while there is one, then the oldest returned one.

    `returned` is the FIFO, oldest first; it is read lazily, no further than needed, and never past
    `state.returned` entries. `is_issued` says whether the book has a rank with a VM, in quarantine
    or in the FIFO; it is asked only while ranks are ahead, which are passed by. A rank for which
    `is_blocked` is true goes to the FIFO's tail. At most `blocked_limit` candidates are looked at;
    if all are blocked, the result has no rank.

    Raises PoolExhausted if nothing is free, at once; ValueError if the book contradicts itself or
    `blocked_limit` is below 1.
    """
    total = permutation.total
    if blocked_limit < 1:
        raise ValueError(f"bad blocked limit {blocked_limit}: expected 1 or more")
    if state.issued > total:
        raise ValueError(
            f"the book's pool has issued {state.issued} of {total} sets: "
            "the private pool was changed under a live book"
        )
    if state.issued == total and state.returned == 0:
        raise PoolExhausted(
            f"the private pool is full: of {total} category sets, {state.in_use} are in use and "
            f"{state.quarantined} in quarantine; release or forget VMs, or widen "
            "`[labels] private`"
        )
    waiting = iter(returned)
    cursor, consumed, passed = state.cursor, 0, 0
    put_back: list[int] = []
    while len(put_back) < blocked_limit:
        if cursor < total:
            candidate = permutation.at(cursor)
            cursor += 1
            if passed < state.ahead and is_issued(candidate):
                passed += 1
                continue
        elif consumed < state.returned:
            candidate = _oldest(waiting, consumed, state, total)
            consumed += 1
        else:
            break
        if not is_blocked(candidate):
            return Drawn(candidate, cursor, consumed, tuple(put_back), passed)
        put_back.append(candidate)
    return Drawn(None, cursor, consumed, tuple(put_back), passed)


def _oldest(waiting: Iterator[int], consumed: int, state: PoolState, total: int) -> int:
    candidate = next(waiting, None)
    if candidate is None:
        raise ValueError(
            f"the book's FIFO ended after {consumed} ranks: expected {state.returned} of them"
        )
    if not 0 <= candidate < total:
        raise ValueError(f"the book's FIFO holds rank {candidate}: expected 0..{total - 1}")
    return candidate
