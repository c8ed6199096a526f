# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which private sets exist, the order of their first use, and draws over random histories."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from svirtd.core import mcs
from svirtd.core.pool import (
    Drawn,
    Permutation,
    PoolState,
    RankTaken,
    Shape,
    claim,
    draw,
    make_shape,
)
from svirtd.errors import PoolExhausted

# A loaded machine is slow, not wrong.
untimed = settings(deadline=None)

KEY = bytes(range(32))
NONE: frozenset[int] = frozenset()

shapes = st.integers(1, mcs.MAX_SET_SIZE).flatmap(
    lambda size: st.builds(
        lambda private: Shape(tuple(sorted(private)), size),
        st.frozensets(st.integers(0, mcs.MAX_CATEGORY), min_size=size, max_size=40),
    )
)


def never(_rank: int) -> bool:
    return False


def always(_rank: int) -> bool:
    return True


def untouched() -> Iterator[int]:
    """A FIFO that must not be read."""
    return (pytest.fail("the FIFO was read") for _ in range(1))


class TestShape:
    def test_the_default_pool(self) -> None:
        shape = make_shape(frozenset(range(768)), frozenset(range(768, 1024)), NONE, 2)
        assert shape.total == 294_528
        assert shape.categories_of(0) == {0, 1}
        assert shape.categories_of(shape.total - 1) == {766, 767}

    def test_reserved_categories_are_taken_out(self) -> None:
        shape = make_shape(frozenset(range(6)), NONE, frozenset({0, 3, 900}), 2)
        assert shape == Shape((1, 2, 4, 5), 2)
        held = {category for r in range(shape.total) for category in shape.categories_of(r)}
        assert held == {1, 2, 4, 5}

    @pytest.mark.parametrize("size", range(1, mcs.MAX_SET_SIZE + 1))
    def test_ranks_are_exactly_the_subsets(self, size: int) -> None:
        private = (2, 3, 5, 7, 11, 13, 17, 1023)
        shape = Shape(private, size)
        every = [shape.categories_of(r) for r in range(shape.total)]
        assert shape.total == comb(len(private), size)
        assert set(every) == {frozenset(chosen) for chosen in combinations(private, size)}
        assert [shape.rank_of(cats) for cats in every] == list(range(shape.total))
        assert not any(a <= b for a, b in permutations(every, 2))

    @untimed
    @given(shapes, st.data())
    def test_round_trip(self, shape: Shape, data: st.DataObject) -> None:
        rank = data.draw(st.integers(0, shape.total - 1))
        cats = shape.categories_of(rank)
        assert len(cats) == shape.size
        assert cats <= set(shape.private)
        assert shape.rank_of(cats) == rank

    @untimed
    @given(shapes, st.frozensets(st.integers(0, mcs.MAX_CATEGORY), max_size=3), st.data())
    def test_sets_are_private_whatever_groups_the_other_is_in(
        self, shape: Shape, others: frozenset[int], data: st.DataObject
    ) -> None:
        groups = others - frozenset(shape.private)
        ranks = st.integers(0, shape.total - 1)
        mine, other = data.draw(ranks), data.draw(ranks)
        within = shape.categories_of(mine) <= shape.categories_of(other) | groups
        assert within == (mine == other)

    @untimed
    @given(shapes, st.data())
    def test_ranks_within_against_the_definition(self, shape: Shape, data: st.DataObject) -> None:
        chosen = data.draw(st.frozensets(st.sampled_from(shape.private), max_size=8))
        foreign = data.draw(st.frozensets(st.integers(0, mcs.MAX_CATEGORY), max_size=4))
        cats = chosen | (foreign - frozenset(shape.private))
        found = shape.ranks_within(cats, limit=1000)
        expected = sorted(shape.rank_of(set(c)) for c in combinations(chosen, shape.size))
        assert list(found) == expected
        assert all(shape.categories_of(rank) <= cats for rank in found)

    def test_ranks_within_limit_is_exact(self) -> None:
        shape = Shape(tuple(range(768)), 2)
        cats = frozenset(range(10)) | {900}
        assert len(shape.ranks_within(cats, limit=45)) == 45
        with pytest.raises(ValueError, match="hold 45 private sets: expected at most 44"):
            shape.ranks_within(cats, limit=44)

    def test_ranks_within_refuses_before_it_works(self) -> None:
        shape = Shape(tuple(range(1024)), 5)
        with pytest.raises(ValueError, match="name fewer categories"):
            shape.ranks_within(frozenset(range(1024)), limit=1000)

    def test_ranks_within_too_few_categories_is_nobody(self) -> None:
        shape = Shape((1, 2, 3), 2)
        assert shape.ranks_within(frozenset({1, 900}), limit=0) == ()
        assert shape.ranks_within(NONE, limit=0) == ()

    @pytest.mark.parametrize("cats", [set(), {1}, {1, 9}, {8, 9}, {1, 2, 3}, {1, 2, 9}, {-1, 1}])
    def test_rank_of_refuses_what_is_no_private_set(self, cats: set[int]) -> None:
        with pytest.raises(ValueError, match="expected"):
            Shape((1, 2, 3), 2).rank_of(cats)

    @pytest.mark.parametrize("rank", [-1, 3, 10**9])
    def test_categories_of_refuses_a_rank_that_does_not_exist(self, rank: int) -> None:
        with pytest.raises(ValueError, match=r"bad rank .* expected 0\.\.2"):
            Shape((1, 2, 3), 2).categories_of(rank)

    def test_overlapping_pools_are_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match=r"overlap: found c5\.c7 in both"):
            make_shape(frozenset(range(8)), frozenset(range(5, 20)), NONE, 2)

    def test_overlap_is_refused_even_where_it_is_reserved(self) -> None:
        with pytest.raises(ValueError, match="overlap: found c7 in both"):
            make_shape(frozenset(range(8)), frozenset({7}), frozenset({7}), 2)

    @pytest.mark.parametrize("size", [-1, 0, 6])
    def test_a_bad_size_is_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"bad set size {size}: expected 1..5"):
            make_shape(frozenset(range(20)), NONE, NONE, size)

    def test_a_pool_that_reservations_make_too_small_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"found 1 usable categories \(c2\).* at least 2"):
            make_shape(frozenset({1, 2, 3}), NONE, frozenset({1, 3}), 2)
        with pytest.raises(ValueError, match=r"found 0 usable categories \(none\)"):
            make_shape(NONE, NONE, NONE, 1)

    @pytest.mark.parametrize("bad", [-1, 1024])
    def test_categories_that_no_label_has_are_refused(self, bad: int) -> None:
        with pytest.raises(ValueError, match="out of range"):
            make_shape(frozenset({1, 2, bad}), NONE, NONE, 2)
        with pytest.raises(ValueError, match="out of range"):
            make_shape(frozenset({1, 2}), frozenset({bad}), NONE, 2)

    @pytest.mark.parametrize("private", [(2, 1), (1, 1, 2)])
    def test_a_pool_out_of_order_is_refused(self, private: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="ascending"):
            Shape(private, 1)


class TestPermutation:
    @pytest.mark.parametrize("total", [*range(1, 130), 255, 256, 257, 999, 1000, 1001, 4096, 5000])
    def test_bijective(self, total: int) -> None:
        order = Permutation(KEY, total)
        issued = [order.at(index) for index in range(total)]
        assert sorted(issued) == list(range(total))
        assert [order.index_of(rank) for rank in issued] == list(range(total))

    def test_bijective_over_a_middle_pool(self) -> None:
        order = Permutation(KEY, comb(200, 2))
        assert len({order.at(index) for index in range(order.total)}) == order.total

    @untimed
    @given(st.binary(min_size=16, max_size=64), st.integers(1, 2**64 - 1), st.data())
    def test_the_inverse_at_any_total(self, key: bytes, total: int, data: st.DataObject) -> None:
        order = Permutation(key, total)
        index = data.draw(st.integers(0, total - 1))
        rank = order.at(index)
        assert 0 <= rank < total
        assert order.index_of(rank) == index
        assert order.at(order.index_of(index)) == index

    @pytest.mark.parametrize(
        ("total", "first"),
        [
            (10, [3, 0, 6, 4, 1, 2, 7, 8, 9, 5]),
            (294_528, [201058, 251969, 110043, 189221, 287224, 58352]),
        ],
    )
    def test_the_order_is_frozen(self, total: int, first: list[int]) -> None:
        # Books hold a cursor into this order. A change hands out sets that are in use.
        order = Permutation(KEY, total)
        assert [order.at(index) for index in range(len(first))] == first

    def test_key_and_total_choose_the_order(self) -> None:
        base = Permutation(KEY, 294_528)
        other_key = Permutation(bytes(32), 294_528)
        other_total = Permutation(KEY, 294_527)
        span = range(500)
        for other in (other_key, other_total):
            assert sum(base.at(index) == other.at(index) for index in span) < 5

    def test_every_first_rank_is_possible(self) -> None:
        firsts = {Permutation(n.to_bytes(16, "big"), 7).at(0) for n in range(400)}
        assert firsts == set(range(7))

    def test_successive_draws_are_no_neighbours(self) -> None:
        # Private sets with a common category, in 2,000 successive draws: chance gives about 10.
        shape = Shape(tuple(range(768)), 2)
        order = Permutation(KEY, shape.total)
        drawn = [shape.categories_of(order.at(index)) for index in range(2001)]
        common = sum(bool(a & b) for a, b in pairwise(drawn))
        assert common < 40

    def test_the_key_is_not_shown(self) -> None:
        key = b"0123456789abcdef"
        assert "0123456789abcdef" not in repr(Permutation(key, 10))

    @pytest.mark.parametrize("length", [0, 15, 65])
    def test_a_bad_key_is_refused(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"of {length} bytes: expected 16..64"):
            Permutation(bytes(length), 10)

    @pytest.mark.parametrize("total", [-1, 0, 2**64])
    def test_a_bad_total_is_refused(self, total: int) -> None:
        with pytest.raises(ValueError, match="bad permutation total"):
            Permutation(KEY, total)

    @pytest.mark.parametrize("number", [-1, 10])
    def test_numbers_outside_are_refused(self, number: int) -> None:
        order = Permutation(KEY, 10)
        with pytest.raises(ValueError, match="bad index"):
            order.at(number)
        with pytest.raises(ValueError, match="bad rank"):
            order.index_of(number)


class TestPoolState:
    def test_in_use_is_what_is_left(self) -> None:
        assert PoolState(10, 3, 2).in_use == 5
        assert PoolState(0, 0, 0).in_use == 0
        assert PoolState(5, 3, 2).in_use == 0

    def test_what_was_claimed_ahead_counts_as_issued(self) -> None:
        assert PoolState(10, 3, 2, 4).in_use == 9
        assert PoolState(10, 3, 2, 4).issued == 14

    @pytest.mark.parametrize(
        "counts",
        [(-1, 0, 0), (5, -1, 0), (5, 0, -1), (5, 3, 3), (0, 1, 0), (5, 0, 0, -1), (-1, 0, 0, 2)],
    )
    def test_counts_that_contradict_each_other_are_refused(self, counts: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="contradicts itself"):
            PoolState(*counts)


class TestDraw:
    order = Permutation(KEY, 10)

    def test_never_used_first_and_the_fifo_is_left_alone(self) -> None:
        drawn = draw(
            self.order,
            PoolState(4, 3, 0),
            returned=untouched(),
            is_issued=never,
            is_blocked=never,
            blocked_limit=1,
        )
        assert drawn == Drawn(self.order.at(4), 5, 0, ())

    def test_the_oldest_returned_when_all_were_issued(self) -> None:
        fifo = iter([7, 2, 5])
        drawn = draw(
            self.order,
            PoolState(10, 3, 0),
            returned=fifo,
            is_issued=never,
            is_blocked=never,
            blocked_limit=1,
        )
        assert drawn == Drawn(7, 10, 1, ())
        assert list(fifo) == [2, 5], "the FIFO was read further than needed"

    def test_blocked_candidates_go_to_the_tail_in_order(self) -> None:
        fresh = [self.order.at(8), self.order.at(9)]
        fifo = [rank for rank in range(10) if rank not in fresh][:3]
        blocked = {*fresh, fifo[0]}
        drawn = draw(
            self.order,
            PoolState(8, 3, 0),
            returned=fifo,
            is_issued=never,
            is_blocked=blocked.__contains__,
            blocked_limit=4,
        )
        assert drawn == Drawn(fifo[1], 10, 2, (*fresh, fifo[0]))
        assert PoolState(8, 3, 0).after(drawn) == PoolState(10, 4, 0)

    def test_the_limit_stops_the_search_and_keeps_the_progress(self) -> None:
        asked: list[int] = []

        def blocked(rank: int) -> bool:
            asked.append(rank)
            return True

        state = PoolState(2, 0, 0)
        drawn = draw(
            self.order,
            state,
            returned=untouched(),
            is_issued=never,
            is_blocked=blocked,
            blocked_limit=3,
        )
        assert asked == [self.order.at(index) for index in (2, 3, 4)]
        assert drawn == Drawn(None, 5, 0, tuple(asked))
        after = state.after(drawn)
        assert after.in_use == state.in_use
        following = draw(
            self.order,
            after,
            returned=untouched(),
            is_issued=never,
            is_blocked=never,
            blocked_limit=3,
        )
        assert following.rank == self.order.at(5)
        with pytest.raises(PoolExhausted, match=r"the 3 free category sets .* did not give"):
            drawn.issued()

    def test_progress_reaches_a_free_rank_behind_many_blocked_ones(self) -> None:
        fifo = deque(range(10))
        state = PoolState(10, 10, 0)
        for _ in range(10):
            drawn = draw(
                self.order,
                state,
                returned=fifo,
                is_issued=never,
                is_blocked=lambda r: r != 9,
                blocked_limit=3,
            )
            for _ in range(drawn.consumed_returned):
                fifo.popleft()
            fifo.extend(drawn.put_back)
            state = state.after(drawn)
            if drawn.rank is not None:
                break
        assert drawn.issued() == 9
        assert sorted(fifo) == list(range(9))

    def test_each_candidate_is_looked_at_once_when_all_are_blocked(self) -> None:
        fifo = [7, 2, 5]
        drawn = draw(
            self.order,
            PoolState(10, 3, 0),
            returned=fifo,
            is_issued=never,
            is_blocked=always,
            blocked_limit=1000,
        )
        assert drawn == Drawn(None, 10, 3, (7, 2, 5))

    def test_the_last_free_rank_is_given(self) -> None:
        drawn = draw(
            self.order,
            PoolState(9, 0, 4),
            returned=untouched(),
            is_issued=never,
            is_blocked=never,
            blocked_limit=1,
        )
        assert drawn.issued() == self.order.at(9)

    def test_a_full_pool_says_so_at_once(self) -> None:
        with pytest.raises(PoolExhausted) as full:
            draw(
                self.order,
                PoolState(10, 0, 4),
                returned=untouched(),
                is_issued=never,
                is_blocked=lambda _: pytest.fail("a candidate was looked at"),
                blocked_limit=1,
            )
        text = full.value.text
        assert "of 10 category sets, 6 are in use and 4 in quarantine" in text
        assert "release" in text
        assert "widen `[labels] private`" in text

    def test_a_pool_of_one(self) -> None:
        order = Permutation(KEY, 1)
        drawn = draw(
            order,
            PoolState(0, 0, 0),
            returned=(),
            is_issued=never,
            is_blocked=never,
            blocked_limit=1,
        )
        assert drawn == Drawn(0, 1, 0, ())

    @pytest.mark.parametrize("limit", [-1, 0])
    def test_a_limit_that_allows_no_candidate_is_refused(self, limit: int) -> None:
        with pytest.raises(ValueError, match="bad blocked limit"):
            draw(
                self.order,
                PoolState(0, 0, 0),
                returned=(),
                is_issued=never,
                is_blocked=never,
                blocked_limit=limit,
            )

    def test_a_cursor_past_the_pool_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has issued 11 of 10 sets"):
            draw(
                self.order,
                PoolState(11, 1, 0),
                returned=[1],
                is_issued=never,
                is_blocked=never,
                blocked_limit=1,
            )

    def test_a_fifo_shorter_than_the_book_says_is_refused(self) -> None:
        with pytest.raises(ValueError, match="ended after 1 ranks: expected 2"):
            draw(
                self.order,
                PoolState(10, 2, 0),
                returned=[1],
                is_issued=never,
                is_blocked=always,
                blocked_limit=9,
            )

    def test_a_fifo_longer_than_the_book_says_is_not_read_on(self) -> None:
        drawn = draw(
            self.order,
            PoolState(10, 1, 0),
            returned=[1, 2],
            is_issued=never,
            is_blocked=always,
            blocked_limit=9,
        )
        assert drawn == Drawn(None, 10, 1, (1,))

    @pytest.mark.parametrize("rank", [-1, 10])
    def test_a_rank_in_the_fifo_that_does_not_exist_is_refused(self, rank: int) -> None:
        with pytest.raises(ValueError, match=f"holds rank {rank}"):
            draw(
                self.order,
                PoolState(10, 1, 0),
                returned=[rank],
                is_issued=never,
                is_blocked=never,
                blocked_limit=1,
            )


class TestClaim:
    order = Permutation(KEY, 10)

    def test_one_that_is_still_to_be_drawn_is_passed_by(self) -> None:
        far = self.order.at(4)
        state = claim(self.order, PoolState(3, 0, 0), far, returned=False, taken=False)
        assert state == PoolState(3, 0, 0, 1)
        ranks = []
        for _ in range(6):
            drawn = draw(
                self.order,
                state,
                returned=untouched(),
                is_issued=far.__eq__,
                is_blocked=never,
                blocked_limit=1,
            )
            state = state.after(drawn)
            ranks.append(drawn.rank)
        assert ranks == [self.order.at(index) for index in (3, 5, 6, 7, 8, 9)]
        assert state == PoolState(10, 0, 0)

    def test_one_that_waits_in_the_fifo_leaves_it(self) -> None:
        rank = self.order.at(0)
        state = claim(self.order, PoolState(3, 2, 0), rank, returned=True, taken=False)
        assert state == PoolState(3, 1, 0)

    def test_one_that_somebody_has_is_refused(self) -> None:
        with pytest.raises(RankTaken, match="rank 7 is in use or in quarantine"):
            claim(self.order, PoolState(3, 2, 0), 7, returned=False, taken=True)

    def test_one_that_was_issued_and_is_nowhere_is_a_contradiction(self) -> None:
        with pytest.raises(ValueError, match="lost rank"):
            claim(self.order, PoolState(3, 0, 0), self.order.at(2), returned=False, taken=False)

    def test_a_pool_whose_rest_is_claimed_is_full(self) -> None:
        with pytest.raises(PoolExhausted, match="10 are in use"):
            draw(
                self.order,
                PoolState(3, 0, 0, 7),
                returned=untouched(),
                is_issued=lambda _: pytest.fail("a candidate was looked at"),
                is_blocked=never,
                blocked_limit=1,
            )

    def test_more_claimed_than_there_are_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has issued 11 of 10 sets"):
            draw(
                self.order,
                PoolState(3, 0, 0, 8),
                returned=(),
                is_issued=never,
                is_blocked=never,
                blocked_limit=1,
            )


class Histories(RuleBasedStateMachine):
    """Draws, releases and foreign labels in any order, against a plain model of the promises."""

    @initialize(
        n=st.integers(2, 6),
        size=st.integers(1, 3),
        limit=st.integers(1, 20),
        key=st.binary(min_size=16, max_size=16),
    )
    def begin(self, n: int, size: int, limit: int, key: bytes) -> None:
        self.shape = Shape(tuple(range(10, 10 + max(n, size))), size)
        self.permutation = Permutation(key, self.shape.total)
        self.limit = limit
        # What the book would store.
        self.state = PoolState(0, 0, 0)
        self.fifo: deque[int] = deque()
        # The model: plain sets, and one queue in which every free rank waits, never-used first.
        self.queue = deque(self.permutation.at(index) for index in range(self.shape.total))
        self.in_use: set[int] = set()
        self.quarantine: set[int] = set()
        self.foreign: set[int] = set()

    def _blocked(self, rank: int) -> bool:
        return not self.foreign.isdisjoint(self.shape.categories_of(rank))

    def _issued(self, rank: int) -> bool:
        return rank in self.in_use or rank in self.quarantine or rank in self.fifo

    def _draw(self) -> Drawn:
        return draw(
            self.permutation,
            self.state,
            returned=iter(self.fifo),
            is_issued=self._issued,
            is_blocked=self._blocked,
            blocked_limit=self.limit,
        )

    @precondition(lambda self: self.queue)
    @rule()
    def take(self) -> None:
        expected: int | None = None
        free = len(self.queue)
        for _ in range(min(self.limit, free)):
            candidate = self.queue.popleft()
            if not self._blocked(candidate):
                expected = candidate
                break
            self.queue.append(candidate)

        drawn = self._draw()
        for _ in range(drawn.consumed_returned):
            self.fifo.popleft()
        self.fifo.extend(drawn.put_back)
        self.state = self.state.after(drawn)

        assert drawn.rank == expected
        if expected is None:
            with pytest.raises(PoolExhausted):
                drawn.issued()
            return
        rank = drawn.issued()
        assert rank not in self.in_use | self.quarantine
        assert not self._blocked(rank)
        self.in_use.add(rank)

    @precondition(lambda self: not self.queue)
    @rule()
    def full(self) -> None:
        with pytest.raises(PoolExhausted, match="is full"):
            self._draw()

    @precondition(lambda self: self.in_use)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.in_use)))
        self.in_use.remove(rank)
        self.quarantine.add(rank)
        self.state = replace(self.state, quarantined=self.state.quarantined + 1)

    @precondition(lambda self: self.quarantine)
    @rule(data=st.data())
    def seen_clean(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.quarantine)))
        self.quarantine.remove(rank)
        self.queue.append(rank)
        self.fifo.append(rank)
        self.state = replace(
            self.state,
            returned=self.state.returned + 1,
            quarantined=self.state.quarantined - 1,
        )

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def claim_a_free_one(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.queue)))
        returned = rank in self.fifo
        self.state = claim(self.permutation, self.state, rank, returned=returned, taken=False)
        if returned:
            self.fifo.remove(rank)
        self.queue.remove(rank)
        self.in_use.add(rank)

    @precondition(lambda self: self.in_use | self.quarantine)
    @rule(data=st.data())
    def claim_a_taken_one(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.in_use | self.quarantine)))
        with pytest.raises(RankTaken):
            claim(self.permutation, self.state, rank, returned=False, taken=True)

    @rule(key=st.binary(min_size=16, max_size=16))
    def another_order(self, key: bytes) -> None:
        """What the book does when a copy takes its place."""
        self.permutation = Permutation(key, self.shape.total)
        self.fifo.clear()
        kept = self.in_use | self.quarantine
        self.state = PoolState(0, 0, len(self.quarantine), len(kept))
        order = (self.permutation.at(index) for index in range(self.shape.total))
        self.queue = deque(rank for rank in order if rank not in kept)

    @rule(category=st.integers(10, 16))
    def foreign_label_comes_or_goes(self, category: int) -> None:
        self.foreign ^= {category}

    @invariant()
    def counts_agree(self) -> None:
        assert self.state.in_use == len(self.in_use)
        assert self.state.quarantined == len(self.quarantine)
        assert self.state.returned == len(self.fifo)

    @invariant()
    def every_rank_is_in_one_place(self) -> None:
        rest = [self.permutation.at(i) for i in range(self.state.cursor, self.shape.total)]
        unused = [rank for rank in rest if not self._issued(rank)]
        assert len(rest) - len(unused) == self.state.ahead
        places = [*unused, *self.fifo, *self.in_use, *self.quarantine]
        assert sorted(places) == list(range(self.shape.total))

    @invariant()
    def no_set_in_use_contains_another(self) -> None:
        held = [self.shape.categories_of(rank) for rank in self.in_use]
        assert not any(a <= b for a, b in permutations(held, 2))


TestHistories = Histories.TestCase
TestHistories.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)


def test_a_pool_is_used_up_before_anything_comes_back() -> None:
    """Late reuse over the whole life of a pool: each lap repeats the order of the returns."""
    shape = Shape(tuple(range(24)), 2)
    permutation = Permutation(KEY, shape.total)
    state = PoolState(0, 0, 0)
    fifo: deque[int] = deque()
    drawn_ranks: list[int] = []
    for _ in range(3 * shape.total):
        drawn = draw(
            permutation, state, returned=fifo, is_issued=never, is_blocked=never, blocked_limit=1
        )
        state = state.after(drawn)
        for _ in range(drawn.consumed_returned):
            fifo.popleft()
        fifo.append(drawn.issued())
        state = PoolState(state.cursor, state.returned + 1, 0)
        drawn_ranks.append(drawn.issued())
    first_lap = [permutation.at(index) for index in range(shape.total)]
    assert drawn_ranks == first_lap * 3
