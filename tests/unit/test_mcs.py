# SPDX-License-Identifier: LGPL-2.1-or-later
"""Categories, levels, ranges, contexts and the numbering of sets."""

from itertools import combinations, groupby
from math import comb
from random import Random

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from svirtd.core import mcs

# A loaded machine is slow, not wrong.
untimed = settings(deadline=None)

categories = st.integers(0, mcs.MAX_CATEGORY)
category_sets = st.frozensets(categories, max_size=40)
dense_sets = st.builds(
    lambda start, offsets: frozenset(start + offset for offset in offsets),
    st.integers(0, mcs.MAX_CATEGORY - 30),
    st.frozensets(st.integers(0, 30)),
)
any_sets = category_sets | dense_sets
levels = st.builds(mcs.Level, st.integers(0, 15), any_sets)
# Few sensitivities and categories, so that comparable levels are common.
small_levels = st.builds(mcs.Level, st.integers(0, 2), st.frozensets(st.integers(0, 3), max_size=4))
ranges = st.builds(
    lambda low, more, cats: mcs.Range(
        low, mcs.Level(low.sensitivity + more, low.categories | cats)
    ),
    levels,
    st.integers(0, 3),
    any_sets,
)
identifiers = st.text("abzAZ019_.", min_size=1, max_size=12)
contexts = st.builds(mcs.Context, identifiers, identifiers, identifiers, ranges)


def kernel_text(cats: frozenset[int]) -> str:
    """The kernel's printing, written down a second time and in another way."""
    runs = [
        [category for _, category in run]
        for _, run in groupby(enumerate(sorted(cats)), key=lambda pair: pair[1] - pair[0])
    ]
    return ",".join(
        f"c{run[0]}.c{run[-1]}" if len(run) > 2 else ",".join(f"c{c}" for c in run) for run in runs
    )


class TestCategories:
    @pytest.mark.parametrize(
        ("text", "cats"),
        [
            ("", set()),
            ("c0", {0}),
            ("c1023", {1023}),
            ("c17,c402", {17, 402}),
            ("c1,c2", {1, 2}),
            ("c1.c3", {1, 2, 3}),
            ("c0.c767", set(range(768))),
            ("c0.c1023", set(range(1024))),
            ("c1,c5.c9", {1, 5, 6, 7, 8, 9}),
            ("c0.c2,c4,c5,c7", {0, 1, 2, 4, 5, 7}),
            ("c1020,c1022,c1023", {1020, 1022, 1023}),
        ],
    )
    def test_known_texts_both_ways(self, text: str, cats: set[int]) -> None:
        assert mcs.parse_categories(text) == cats
        assert mcs.format_categories(frozenset(cats)) == text

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [("c1.c2", "c1,c2"), ("c9,c1", "c1,c9"), ("c1,c2,c3", "c1.c3"), ("c4.c6,c1.c3", "c1.c6")],
    )
    def test_what_the_kernel_reads_but_does_not_print(self, text: str, canonical: str) -> None:
        assert mcs.format_categories(mcs.parse_categories(text)) == canonical

    @untimed
    @given(any_sets)
    @example(frozenset(range(1024)))
    @example(frozenset(range(0, 1024, 2)))
    def test_round_trip_in_the_kernels_form(self, cats: frozenset[int]) -> None:
        text = mcs.format_categories(cats)
        assert text == kernel_text(cats)
        assert mcs.parse_categories(text) == cats

    @untimed
    @given(st.tuples(categories, categories))
    def test_the_fast_way_for_pairs_agrees(self, pair: tuple[int, int]) -> None:
        cats = frozenset(pair)
        assert mcs.format_categories(cats) == kernel_text(cats)

    @pytest.mark.parametrize(
        "text",
        [
            " ",
            "c",
            "1",
            "C1",
            "c01",
            "c00",
            "c1024",
            "c9999",
            "c10000",
            "c-1",
            "c+1",
            "c1_0",
            "c1.0",
            "c1e1",
            "c1 ",
            " c1",
            "c1\n",
            "c1\0",
            "c1, c2",
            "c1,",
            ",c1",
            "c1,,c2",
            ",",
            ".",
            "c1.",
            ".c1",
            "c1..c3",
            "c1.c2.c3",
            "c1.3",
            "c5.c5",
            "c5.c3",
            "c1.c1024",
            "c1024.c1025",
            "c1.c03",
            "c1,c1",
            "c1.c3,c2",
            "c2,c1.c3",
            "c1.c3,c3.c5",
            "c1-c3",
            "c1:c3",
            "c1;c3",
            "s0:c1",
            "c\u0661",
            "c\uff11",
            "c\u00b2",
            "\u0441" + "1",
            "c1\u200b",
        ],
    )
    def test_bad_text_is_refused_and_named(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected") as refused:
            mcs.parse_categories(text)
        assert str(refused.value).isascii()

    @untimed
    @given(st.text("c0123456789.,", max_size=12))
    def test_what_is_accepted_means_what_it_says(self, text: str) -> None:
        try:
            cats = mcs.parse_categories(text)
        except ValueError:
            return
        named: list[int] = []
        for item in text.split(",") if text else []:
            bounds = [int(number.removeprefix("c")) for number in item.split(".")]
            assert ".".join(f"c{bound}" for bound in bounds) == item
            named.extend(range(bounds[0], bounds[-1] + 1))
        assert sorted(cats) == sorted(named)

    def test_a_long_bad_text_makes_a_short_message(self) -> None:
        with pytest.raises(ValueError, match="bad category") as refused:
            mcs.parse_categories("x" * 100_000)
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize(
        "cats", [{-1}, {1024}, {-1, 5}, {5, 1024}, {1, 2, 1024}, {-1, 1, 2}, {-2, -1, 1024}]
    )
    def test_out_of_range_is_never_written(self, cats: set[int]) -> None:
        with pytest.raises(ValueError, match="out of range"):
            mcs.format_categories(cats)
        with pytest.raises(ValueError, match="out of range"):
            mcs.check_categories(cats)
        with pytest.raises(ValueError, match="out of range"):
            mcs.Level(0, frozenset(cats))


class TestLevel:
    @untimed
    @given(levels)
    def test_round_trip(self, level: mcs.Level) -> None:
        assert mcs.parse_level(str(level)) == level

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "s",
            "0",
            "S0",
            "s00",
            "s01",
            "s1024",
            "s-1",
            "s0:",
            "s0::c1",
            "s0 ",
            " s0",
            "s0\n",
            ":c1",
            "c1",
            "s0,c1",
            "s0:s1",
            "s0:c1-s0:c2",
            "s0:c1,",
            "s\u0660",
            "SystemLow",
        ],
    )
    def test_bad_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected"):
            mcs.parse_level(text)

    @pytest.mark.parametrize("sensitivity", [-1, 1024])
    def test_bad_sensitivity_is_refused(self, sensitivity: int) -> None:
        with pytest.raises(ValueError, match="sensitivity out of range"):
            mcs.Level(sensitivity, frozenset())

    @untimed
    @given(small_levels, small_levels, small_levels)
    def test_dominance_is_a_partial_order(self, a: mcs.Level, b: mcs.Level, c: mcs.Level) -> None:
        assert a.dominates(a)
        assert (a.dominates(b) and b.dominates(a)) == (a == b)
        if a.dominates(b) and b.dominates(c):
            assert a.dominates(c)

    @untimed
    @given(small_levels, small_levels)
    def test_the_join_is_the_least_level_above_both(self, a: mcs.Level, b: mcs.Level) -> None:
        join = mcs.Level(max(a.sensitivity, b.sensitivity), a.categories | b.categories)
        assert join.dominates(a)
        assert join.dominates(b)
        assert a.dominates(join) == a.dominates(b)

    def test_categories_alone_do_not_order_different_sensitivities(self) -> None:
        low = mcs.parse_level("s0:c1,c2")
        high = mcs.parse_level("s1:c1")
        assert not low.dominates(high)
        assert not high.dominates(low)


class TestRange:
    @untimed
    @given(ranges)
    def test_round_trip(self, both: mcs.Range) -> None:
        assert mcs.parse_range(str(both)) == both

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("s0", "s0"),
            ("s0-s0", "s0"),
            ("s0:c1,c2", "s0:c1,c2"),
            ("s0:c1,c2-s0:c1,c2", "s0:c1,c2"),
            ("s0-s0:c0.c1023", "s0-s0:c0.c1023"),
            ("s0:c3-s15:c0.c1023", "s0:c3-s15:c0.c1023"),
        ],
    )
    def test_known_texts(self, text: str, canonical: str) -> None:
        assert str(mcs.parse_range(text)) == canonical

    def test_a_single_level_is_low_and_high(self) -> None:
        both = mcs.parse_range("s0:c1,c2")
        assert both.low == both.high == mcs.Level(0, frozenset({1, 2}))

    @pytest.mark.parametrize(
        "text", ["", "-", "s0-", "-s0", "s0--s0", "s0-s0-s0", "s0 - s0", "s0-c1", "s0:-s0"]
    )
    def test_bad_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected"):
            mcs.parse_range(text)

    @pytest.mark.parametrize("text", ["s1-s0", "s0:c1-s0", "s0:c1-s0:c2", "s0:c1-s5"])
    def test_a_high_level_that_does_not_dominate_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="does not dominate"):
            mcs.parse_range(text)


class TestContext:
    @untimed
    @given(contexts)
    def test_round_trip(self, context: mcs.Context) -> None:
        assume(len(str(context)) <= mcs.MAX_CONTEXT_CHARS)
        assert mcs.parse_context(str(context)) == context

    def test_parts(self) -> None:
        context = mcs.parse_context("staff_u:staff_r:my.type_t:s0-s0:c0.c1023")
        assert (context.user, context.role, context.type) == ("staff_u", "staff_r", "my.type_t")
        assert str(context.range) == "s0-s0:c0.c1023"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            "a",
            "a:b",
            ":::",
            "a:b:c:",
            ":b:c:s0",
            "a::c:s0",
            "a:b::s0",
            "a:b:c:d:s0",
            "a:b:c:s0:c1:c2",
            " a:b:c:s0",
            "a :b:c:s0",
            "a:b:c:s0 ",
            "a:b:c:s0\n",
            "a:b:c\n:s0",
            "a:b:c:s0\0",
            "a:b:c\0:s0",
            "a/x:b:c:s0",
            "a:b:c,d:s0",
            "a:b:c%s:s0",
            "a:b:\u0441:s0",
            "a:b:\u00e9:s0",
            "a:b:c\u202e:s0",
            "<<none>>",
            "\udcff:b:c:s0",
        ],
    )
    def test_bad_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected") as refused:
            mcs.parse_context(text)
        assert str(refused.value).isascii()

    def test_a_context_without_range_says_that_the_policy_has_none(self) -> None:
        with pytest.raises(ValueError, match="must be an MCS or MLS policy"):
            mcs.parse_context("system_u:object_r:etc_t")

    def test_the_length_limit_is_exact(self) -> None:
        tail = ":b:c:s0"
        longest = "a" * (mcs.MAX_CONTEXT_CHARS - len(tail)) + tail
        assert str(mcs.parse_context(longest)) == longest
        with pytest.raises(ValueError, match="expected at most 4096"):
            mcs.parse_context("a" + longest)

    @untimed
    @given(contexts, any_sets)
    def test_with_categories_is_a_single_level_at_the_low_sensitivity(
        self, context: mcs.Context, cats: frozenset[int]
    ) -> None:
        changed = context.with_categories(cats)
        assert changed.categories == cats
        assert changed.range.low == changed.range.high
        assert changed.range.low.sensitivity == context.range.low.sensitivity
        assert (changed.user, changed.role, changed.type) == (
            context.user,
            context.role,
            context.type,
        )

    def test_with_type_changes_the_type_alone(self) -> None:
        context = mcs.parse_context("system_u:object_r:virt_image_t:s0:c1,c2")
        assert str(context.with_type("svirt_image_t")) == "system_u:object_r:svirt_image_t:s0:c1,c2"

    def test_categories_are_those_of_the_high_level(self) -> None:
        assert mcs.parse_context("u:r:t:s0:c1-s0:c1.c3").categories == {1, 2, 3}

    @pytest.mark.parametrize("name", ["", "a:b", "a b", "t:s0-s0", "t\n", "\u0442"])
    def test_no_way_to_make_a_context_accepts_a_bad_name(self, name: str) -> None:
        good = mcs.parse_context("u:r:t:s0")
        with pytest.raises(ValueError, match="bad type"):
            good.with_type(name)
        with pytest.raises(ValueError, match="bad user"):
            mcs.Context(name, "r", "t", good.range)
        with pytest.raises(ValueError, match="bad role"):
            mcs.Context("u", name, "t", good.range)


sizes = st.integers(1, mcs.MAX_SET_SIZE)
position_sets = sizes.flatmap(
    lambda size: st.frozensets(st.integers(0, 1023), min_size=size, max_size=size)
)


class TestRank:
    @pytest.mark.parametrize("size", range(1, mcs.MAX_SET_SIZE + 1))
    def test_exhaustive_over_small_pools(self, size: int) -> None:
        n = 14
        in_colex = sorted(combinations(range(n), size), key=lambda chosen: chosen[::-1])
        assert [mcs.rank(chosen) for chosen in in_colex] == list(range(comb(n, size)))
        assert [mcs.unrank(r, size) for r in range(comb(n, size))] == in_colex

    def test_exhaustive_pairs_of_the_default_pool(self) -> None:
        n = 768
        expected = ((low, high) for high in range(n) for low in range(high))
        number = -1
        for number, pair in enumerate(expected):
            assert mcs.unrank(number, 2) == pair
            assert mcs.rank(pair) == number
        assert number + 1 == mcs.count(n, 2) == 294_528

    @untimed
    @given(position_sets)
    def test_unrank_inverts_rank(self, chosen: frozenset[int]) -> None:
        number = mcs.rank(chosen)
        assert number < mcs.count(max(chosen) + 1, len(chosen))
        assert number >= mcs.count(max(chosen), len(chosen))
        assert mcs.unrank(number, len(chosen)) == tuple(sorted(chosen))

    @untimed
    @given(sizes, st.data())
    def test_rank_inverts_unrank_over_the_largest_pool(
        self, size: int, data: st.DataObject
    ) -> None:
        number = data.draw(st.integers(0, mcs.count(1024, size) - 1))
        chosen = mcs.unrank(number, size)
        assert len(set(chosen)) == size
        assert list(chosen) == sorted(chosen)
        assert 0 <= chosen[0] <= chosen[-1] <= 1023
        assert mcs.rank(chosen) == number

    @pytest.mark.parametrize("size", range(1, mcs.MAX_SET_SIZE + 1))
    def test_every_boundary_of_the_largest_member(self, size: int) -> None:
        for highest in range(size - 1, 1024):
            first = comb(highest, size)
            assert mcs.unrank(first, size) == (*range(size - 1), highest)
            if first:
                assert mcs.unrank(first - 1, size) == tuple(range(highest - size, highest))

    @untimed
    @given(st.integers(10**15, 10**40))
    def test_pairs_are_exact_where_floating_point_is_not(self, high: int) -> None:
        first = high * (high - 1) // 2
        assert mcs.unrank(first, 2) == (0, high)
        assert mcs.unrank(first - 1, 2) == (high - 2, high - 1)

    @untimed
    @given(st.integers(0, 10**40), sizes)
    def test_no_limit_from_the_pool(self, number: int, size: int) -> None:
        assert mcs.rank(mcs.unrank(number, size)) == number

    @untimed
    @given(position_sets, st.randoms())
    def test_the_order_in_which_members_are_named_does_not_matter(
        self, chosen: frozenset[int], random: Random
    ) -> None:
        shuffled = list(chosen)
        random.shuffle(shuffled)
        assert mcs.rank(shuffled) == mcs.rank(sorted(chosen))

    @pytest.mark.parametrize(
        "members",
        [[], [1, 1], [-1], [-1, 2], [1, -1], [1, 2, 2], [-1, 1, 2], [1, 2, 3, 4, 5, 6]],
    )
    def test_bad_members_are_refused(self, members: list[int]) -> None:
        with pytest.raises(ValueError, match="expected"):
            mcs.rank(members)

    @pytest.mark.parametrize(("number", "size"), [(-1, 1), (-1, 2), (-1, 3), (0, 0), (0, 6)])
    def test_bad_ranks_and_sizes_are_refused(self, number: int, size: int) -> None:
        with pytest.raises(ValueError, match="expected"):
            mcs.unrank(number, size)

    @pytest.mark.parametrize("size", [-1, 0, 6])
    def test_count_refuses_a_bad_size(self, size: int) -> None:
        with pytest.raises(ValueError, match="bad set size"):
            mcs.count(10, size)
