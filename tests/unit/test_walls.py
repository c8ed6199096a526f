# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walls: what stands against what, for whom, and what is remembered."""

import pytest

from svirtd.core.walls import (
    Held,
    Scope,
    Wall,
    Who,
    as_subject,
    judge,
    owner_subject,
    records,
)

BANKS = Wall("banks", (("a", "a-archive"), ("b",), ("c",)))
OWNERS = Wall("owners", (("a",), ("b",)), Scope.OWNER)
UUID = "0123abcd-0000-0000-0000-00000000abcd"
VM = Who("1" * 16, UUID, 1000, "one")
# Another VM of the same owner.
SECOND = Who("2" * 16, "", 1000, "two")


def held(subject: str, group: str, *, wall: str = "banks", since_us: int = 5) -> Held:
    return Held(wall, subject, group, "earlier", since_us)


def sides(who: Who, history: list[Held], *groups: str, walls: tuple[Wall, ...] = (BANKS,)) -> str:
    conflict = judge(walls, who, history, groups)
    return "" if conflict is None else f"{conflict.first} {conflict.asked}"


def test_without_history_one_side_is_free() -> None:
    assert sides(VM, [], "a") == sides(VM, [], "b") == sides(VM, []) == ""
    assert sides(VM, [], "a", "a-archive", "elsewhere") == ""


def test_both_sides_at_once() -> None:
    assert sides(VM, [], "elsewhere", "a-archive", "a", "c") == "a-archive c"
    conflict = judge([BANKS], VM, [], ["a", "b"])
    assert conflict is not None
    assert conflict.held is None
    text = conflict.text
    assert "wall 'banks'" in text
    assert "'a'" in text
    assert "'b'" in text
    assert "leave one of the two out" in text


@pytest.mark.parametrize("subject", VM.own())
def test_what_was_held_counts_by_id_and_by_uuid(subject: str) -> None:
    past = [held(subject, "a")]
    assert sides(VM, past, "b") == "a b"
    assert sides(VM, past, "a") == sides(VM, past, "a-archive") == sides(VM, past, "other") == ""
    assert sides(SECOND, past, "b") == ""


def test_a_uuid_is_the_same_in_capitals() -> None:
    shouting = Who("3" * 16, UUID.upper(), 7, "three")
    assert sides(shouting, [held(UUID, "a")], "b") == "a b"
    assert records([BANKS], shouting, [], ["a"], 1)[1].subject == UUID


def test_the_refusal_names_all() -> None:
    past = [held(VM.vm_id, "a-archive", since_us=7_000_000), held(UUID, "a", since_us=3_000_000)]
    conflict = judge([BANKS], VM, past, ["b"])
    assert conflict is not None
    text = conflict.text
    for word in (
        "'banks'",
        "'a'",
        "'b'",
        "'earlier'",
        "1970-01-01 00:00:03 UTC",
        f"svirtctl wall clear banks {UUID}",
    ):
        assert word in text
    assert "owner" not in text


def test_an_owner_counts_where_the_wall_says_so() -> None:
    past = [held(owner_subject(1000), "a"), held(owner_subject(1000), "a", wall="owners")]
    assert sides(SECOND, past, "b") == ""
    assert sides(SECOND, past, "b", walls=(BANKS, OWNERS)) == "a b"
    conflict = judge([OWNERS], SECOND, past, ["b"])
    assert conflict is not None
    assert "of the same owner (uid:1000)" in conflict.text
    assert "another owner" in conflict.text
    assert sides(Who("4" * 16, "", 0, "root's"), past, "b", walls=(OWNERS,)) == ""


def test_one_wall_says_nothing_about_another() -> None:
    other = Wall("other", (("a",), ("b",)))
    past = [held(VM.vm_id, "a", wall="other")]
    assert sides(VM, past, "b", walls=(BANKS, other)) == "a b"
    # As long as there is such a wall; what was behind one that is gone counts for all of today's.
    distant = Wall("other", (("x",), ("y",)))
    assert sides(VM, past, "b", walls=(BANKS, distant)) == ""
    assert sides(VM, past, "b", walls=(BANKS,)) == "a b"


def test_history_is_judged_by_the_classes_of_today() -> None:
    past = [held(VM.vm_id, "a")]
    moved = Wall("banks", (("a-archive",), ("a", "b")))
    assert sides(VM, past, "b", walls=(moved,)) == ""
    assert sides(VM, past, "a-archive", walls=(moved,)) == "a a-archive"
    assert sides(VM, past, "b", walls=(Wall("banks", (("x",), ("b",))),)) == ""


def test_what_is_recorded() -> None:
    assert records([BANKS], VM, [], ["a", "elsewhere"], 9) == (
        Held("banks", VM.vm_id, "a", "one", 9),
        Held("banks", UUID, "a", "one", 9),
    )
    assert records([OWNERS], SECOND, [], ["b"], 9) == (
        Held("owners", SECOND.vm_id, "b", "two", 9),
        Held("owners", "uid:1000", "b", "two", 9),
    )
    past = list(records([BANKS, OWNERS], VM, [], ["a"], 9))
    assert records([BANKS, OWNERS], VM, past, ["a"], 10) == ()
    assert records([BANKS, OWNERS], VM, past, [], 10) == ()


def test_a_new_uuid_takes_the_past_along() -> None:
    past = list(records([BANKS], VM, [], ["a"], 9))
    changed = Who(VM.vm_id, UUID.replace("0", "9"), 1000, "renamed")
    (row,) = records([BANKS], changed, past, [], 20)
    assert row == Held("banks", changed.uuid, "a", "one", 9)


def test_a_wall_that_looks_at_owners_from_now_on_takes_the_past_along() -> None:
    past = list(records([Wall("owners", OWNERS.classes)], VM, [], ["a"], 9))
    assert records([OWNERS], VM, past, [], 20) == (Held("owners", "uid:1000", "a", "one", 9),)
    # What another VM of the owner has held is his, and not this VM's own.
    past = [held("uid:1000", "a", wall="owners")]
    assert records([OWNERS], SECOND, past, [], 20) == ()


def test_a_renamed_wall_takes_the_past_along() -> None:
    past = list(records([BANKS], VM, [], ["a"], 9))
    renamed = Wall("houses", BANKS.classes)
    assert {one.wall for one in records([renamed], VM, past, [], 20)} == {"houses"}


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (UUID.upper(), UUID),
        ("0123456789abcdef", "0123456789abcdef"),
        ("uid:0", "uid:0"),
        ("uid:1000", "uid:1000"),
        ("uid:", None),
        ("uid:-1", None),
        ("uid:007", None),
        ("uid:99999999999", None),
        ("UID:0", None),
        ("web", None),
        ("0123456789ABCDEF", None),
        ("0123456789abcdef\n", None),
        ("", None),
    ],
)
def test_what_a_subject_looks_like(text: str, subject: str | None) -> None:
    assert as_subject(text) == subject
