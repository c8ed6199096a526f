# SPDX-License-Identifier: LGPL-2.1-or-later
"""Device numbers after a reboot: what is proof, and what must not be taken."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.devices import Found, Known, is_parked, renumber
from svirtd.core.model import Identity

PAIR, OTHER, ORIGINAL = "u:r:svirt_image_t:s0:c1,c2", "u:r:svirt_image_t:s0:c3,c4", "u:r:virt_t:s0"


def known(dev: int, ino: int, path: str, *labels: str | None) -> Known:
    return Known(Identity(dev, ino), path, frozenset(labels or (PAIR, ORIGINAL)))


def found(dev: int, ino: int, label: str | None = PAIR) -> Found:
    return Found(Identity(dev, ino), label)


def test_nothing_changed() -> None:
    result = renumber([known(1, 12, "/a/x")], {"/a/x": found(1, 12)})
    assert (result.moves, result.refused) == ({}, ())


@pytest.mark.parametrize("label", [PAIR, ORIGINAL])
def test_a_device_has_another_number(label: str) -> None:
    """The whole of it, an object that is missing or changed included."""
    objects = [known(1, 12, "/a/x"), known(1, 13, "/a/gone"), known(1, 14, "/a/changed")]
    there = {"/a/x": found(2, 12, label), "/a/changed": found(2, 14, "u:r:etc_t:s0")}
    result = renumber(objects, there)
    assert (result.moves, result.refused) == ({1: 2}, ())


def test_no_label_is_a_label_that_an_object_can_have_had() -> None:
    plain = known(1, 12, "/a/x", PAIR, None)
    assert renumber([plain], {"/a/x": found(2, 12, None)}).moves == {1: 2}
    assert renumber([known(1, 12, "/a/x")], {"/a/x": found(2, 12, None)}).moves == {1: -1}


@pytest.mark.parametrize(
    "there",
    [
        found(2, 12, OTHER),  # the same inode on another file system, another VM's
        found(2, 12, "u:r:etc_t:s0"),
        found(2, 12, None),
        found(2, 13, PAIR),  # another file of the same label
        found(2, 13, ORIGINAL),
        None,
    ],
)
def test_what_is_no_proof(there: Found | None) -> None:
    result = renumber([known(1, 12, "/a/x")], {} if there is None else {"/a/x": there})
    assert (result.moves, result.refused) == ({1: -1}, ())


def test_two_devices_have_swapped_their_numbers() -> None:
    objects = [known(1, 12, "/a/x"), known(2, 12, "/b/x", OTHER, ORIGINAL)]
    there = {"/a/x": found(2, 12), "/b/x": found(1, 12, OTHER)}
    assert renumber(objects, there).moves == {1: 2, 2: 1}


def test_one_device_cannot_be_in_two_places() -> None:
    """One file is where it was: what stands at the other's path is not it."""
    objects = [known(1, 12, "/a/x"), known(1, 13, "/a/y")]
    result = renumber(objects, {"/a/x": found(1, 12), "/a/y": found(2, 13)})
    assert result.moves == {}
    assert result.refused == ("device 0x1 cannot be 0x1 and 0x2 at once",)


def test_a_changed_file_that_is_where_it_was_speaks_against_a_move() -> None:
    objects = [known(1, 12, "/a/x"), known(1, 13, "/a/y")]
    there = {"/a/x": found(1, 12, "u:r:etc_t:s0"), "/a/y": found(2, 13, ORIGINAL)}
    result = renumber(objects, there)
    assert result.moves == {}
    assert len(result.refused) == 1


def test_two_devices_cannot_have_become_one() -> None:
    objects = [known(1, 12, "/a/x"), known(2, 13, "/b/x")]
    result = renumber(objects, {"/a/x": found(3, 12), "/b/x": found(3, 13)})
    assert result.moves == {1: -1, 2: -2}
    assert result.refused == ("devices 0x1 and 0x2 cannot both be 0x3",)


def test_a_changed_file_that_is_where_it_was_keeps_its_number() -> None:
    """Only its label is another: that is drift, and told as such."""
    there = {"/a/x": found(1, 12, "u:r:etc_t:s0")}
    assert renumber([known(1, 12, "/a/x")], there).moves == {}
    objects = [known(1, 12, "/a/x"), known(2, 12, "/b/x")]
    assert renumber(objects, there | {"/b/x": found(1, 12)}).moves == {1: -1, 2: 1}


def test_a_device_that_is_away_makes_way_for_the_one_that_has_its_number() -> None:
    """Else an object of it would be taken for one of the other device's."""
    objects = [known(1, 12, "/a/x"), known(2, 12, "/b/x", OTHER, ORIGINAL)]
    result = renumber(objects, {"/a/x": found(2, 12)})
    assert result.moves == {1: 2, 2: -1}
    assert is_parked(-1)
    assert not is_parked(2)


def test_a_parked_device_is_found_again_and_another_gets_a_number_of_its_own() -> None:
    away = known(-1, 12, "/b/x", OTHER, ORIGINAL)
    assert renumber([away], {"/b/x": found(5, 12, OTHER)}).moves == {-1: 5}
    objects = [away, known(1, 12, "/a/x"), known(2, 12, "/c/x")]
    assert renumber(objects, {"/a/x": found(2, 12)}).moves == {1: 2, 2: -2}


def test_a_parked_device_may_join_its_later_number_and_takes_nobodys_file() -> None:
    away = known(-1, 12, "/b/x")
    there = {"/b/x": found(5, 12)}
    assert renumber([away], there, [Identity(5, 13)]).moves == {-1: 5}
    result = renumber([away], there, [Identity(5, 12)])
    assert result.moves == {}
    assert result.refused == ("device -0x1 cannot be 0x5, whose files are known already",)
    later = known(7, 13, "/b/y")
    assert renumber([away, later], there | {"/b/y": found(5, 13)}).moves == {-1: 5, 7: 5}
    assert renumber([away], {}).moves == {}
    same = known(7, 12, "/b/z")
    assert renumber([away, same], there | {"/b/z": found(5, 12)}).moves == {7: 5}


identities = st.tuples(st.integers(1, 4), st.integers(1, 3))


@given(
    st.dictionaries(st.sampled_from("abcdef"), identities, max_size=6),
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(identities, st.sampled_from([PAIR, OTHER])), max_size=6
    ),
)
def test_what_was_different_stays_different(
    old: dict[str, tuple[int, int]], new: dict[str, tuple[tuple[int, int], str]]
) -> None:
    objects = [known(dev, ino, path) for path, (dev, ino) in old.items()]
    there = {path: found(*identity, label) for path, (identity, label) in new.items()}
    moves = renumber(objects, there).moves
    after = [moves.get(one.identity.dev, one.identity.dev) for one in objects]
    for (one, dev), (other, other_dev) in itertools.combinations(
        zip(objects, after, strict=True), 2
    ):
        assert (one.identity.dev == other.identity.dev) == (dev == other_dev)
    for dev, moved in moves.items():
        assert is_parked(moved) or any(
            one.identity.dev == dev and there.get(one.path) == found(moved, one.identity.ino, PAIR)
            for one in objects
        )


@given(st.permutations([1, 2, 3, 4]))
def test_any_exchange_of_numbers_is_found(order: list[int]) -> None:
    objects = [known(dev, 12, f"/{dev}") for dev in range(1, 5)]
    there = {f"/{dev}": found(now, 12) for dev, now in zip(range(1, 5), order, strict=True)}
    result = renumber(objects, there)
    assert [result.moves.get(dev, dev) for dev in range(1, 5)] == list(order)
    assert result.refused == ()
