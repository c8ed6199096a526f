# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levels against the reference policy's constraints, written down a second time. Whether the kernel
decides by these is asked of it in the guest (tests/guest/inside/mls)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core import levels
from svirtd.core.filesystems import Mount
from svirtd.core.goals import ISOLATED
from svirtd.core.levels import Sensitivities
from svirtd.core.mcs import Level, Range, parse_context, parse_range
from svirtd.core.model import Access, Identity, Kind, Seen, Step, Terms
from svirtd.core.plan import Decision, Plan
from svirtd.errors import InvalidArgs, ResourceRefused

PROCESS = parse_context("system_u:system_r:svirt_t:s0")
# Few sensitivities and categories, so that comparable levels are common.
small_levels = st.builds(Level, st.integers(0, 3), st.frozensets(st.integers(0, 3), max_size=3))
singles = small_levels.map(lambda level: Range(level, level))
processes = st.builds(
    lambda low, more: Range(low, Level(low.sensitivity + more, low.categories)),
    small_levels,
    st.integers(0, 2),
)
sensitivities = st.tuples(st.integers(0, 15), st.integers(0, 15)).map(
    lambda both: Sensitivities(min(both), max(both))
)


def contains(above: Level, below: Level) -> bool:
    return above.sensitivity >= below.sensitivity and not below.categories - above.categories


class TestText:
    @given(sensitivities)
    def test_round_trip(self, wanted: Sensitivities) -> None:
        assert levels.parse_sensitivities(str(wanted)) == wanted

    @pytest.mark.parametrize(
        ("text", "low", "high"), [("s0", 0, 0), ("s15", 15, 15), ("s0-s3", 0, 3), ("s2-s2", 2, 2)]
    )
    def test_known_texts(self, text: str, low: int, high: int) -> None:
        assert levels.parse_sensitivities(text) == Sensitivities(low, high)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "s", "0", "S0", "s01", "s-1", "s1024", "s0 ", " s0", "s0-", "-s0", "s0--s1"),
            *("s3-s1", "s0-s1-s2", "s0:", "systemlow", "s0\n", "s0,s1", "s\u0660"),
        ],
    )
    def test_bad_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"bad level|bad range|sensitivity"):
            levels.parse_sensitivities(text)

    @pytest.mark.parametrize(
        ("text", "advice"),
        [("s0:c1", "s0"), ("s1:c0.c1023", "s1"), ("s0-s0:c0.c1023", "s0"), ("s1-s3:c7", "s1-s3")],
    )
    def test_categories_are_not_the_callers(self, text: str, advice: str) -> None:
        with pytest.raises(ValueError, match=f"names categories.*such as {advice}$"):
            levels.parse_sensitivities(text)


@given(sensitivities, st.frozensets(st.integers(0, 1023), max_size=4))
def test_a_context_keeps_its_categories_at_both_ends(
    wanted: Sensitivities, cats: frozenset[int]
) -> None:
    context = levels.at(PROCESS.with_categories(cats), wanted)
    assert context.range == Range(Level(wanted.low, cats), Level(wanted.high, cats))
    assert (context.user, context.role, context.type) == ("system_u", "system_r", "svirt_t")
    assert levels.default(context) == Sensitivities(wanted.low, wanted.low)


@given(processes, singles)
def test_no_read_up(process: Range, resource: Range) -> None:
    assert levels.reads_down(process, resource) == contains(process.low, resource.low)
    # What it may read is never above it, its clearance included.
    assert not levels.reads_down(process, resource) or contains(process.high, resource.high)


@given(processes, singles)
def test_no_write_down_and_none_up(process: Range, resource: Range) -> None:
    if levels.writes_level(process, resource):
        assert contains(process.low, resource.low)
        assert contains(resource.low, process.low)


@given(processes, processes, singles)
def test_nothing_flows_down(writer: Range, reader: Range, resource: Range) -> None:
    """Bell and LaPadula in one sentence: what one writes and another reads goes up or stays."""
    if levels.writes_level(writer, resource) and levels.reads_down(reader, resource):
        assert contains(reader.low, writer.low)


@given(processes, singles, st.sampled_from(Access))
def test_what_is_refused_says_both_levels_and_the_rule(
    process: Range, resource: Range, access: Access
) -> None:
    found = levels.obstacle(process, resource, access)
    if not levels.reads_down(process, resource):
        assert "no read up" in found
    elif access.writes and not levels.writes_level(process, resource):
        assert "no write down" in found
    else:
        assert found == ""
    if found:
        assert str(process) in found
        assert str(resource) in found


@pytest.mark.parametrize(
    ("process", "resource", "access", "possible"),
    [
        ("s1:c1,c2", "s1:c1,c2", Access.EXCLUSIVE, True),
        ("s3:c1,c2", "s1:c1,c2", Access.EXCLUSIVE, False),
        ("s1:c1,c2", "s3:c1,c2", Access.EXCLUSIVE, False),
        ("s3:c1,c2", "s1:c1,c2", Access.READONLY, True),
        ("s1:c1,c2", "s3:c1,c2", Access.READONLY, False),
        ("s3:c1,c2", "s0", Access.PUBLIC, True),
        ("s1:c1,c2", "s2", Access.PUBLIC, False),
        # A clearance is not a level: the low one counts.
        ("s1:c1,c2-s3:c1,c2", "s2:c1,c2", Access.READONLY, False),
        ("s1:c1,c2-s3:c1,c2", "s1:c1,c2", Access.EXCLUSIVE, True),
    ],
)
def test_known_cases(process: str, resource: str, access: Access, possible: bool) -> None:
    found = levels.obstacle(parse_range(process), parse_range(resource), access)
    assert (found == "") is possible


# -- plans ---------------------------------------------------------------------------------------


def decided(label: str | None, target: str, access: Access, level: str, *, held: bool) -> Plan:
    seen = Seen(
        "/x",
        access,
        "/x",
        Identity(1, 2),
        Kind.FILE,
        1,
        False,
        label,
        0,
        Mount("ext4"),
        Terms(level=level),
    )
    step = None if held else Step(seen.identity, seen.path, label, target)
    return Plan((Decision(seen, target, label, step, None),))


IMAGE, CONTENT, ORIGINAL = (
    f"system_u:object_r:{kind}:" for kind in ("svirt_image_t", "virt_content_t", "virt_image_t")
)


@pytest.mark.parametrize(
    ("process", "original", "access", "level", "placed"),
    [
        ("s1:c1,c2", "s1", Access.EXCLUSIVE, "", "s1:c1,c2"),
        ("s1:c1,c2-s3:c1,c2", "s1", Access.EXCLUSIVE, "", "s1:c1,c2"),
        ("s0:c1,c2", "s0", Access.EXCLUSIVE, "", "s0:c1,c2"),
        ("s3:c1,c2", "s1", Access.READONLY, "s1", "s1:c1,c2"),
        # Up for reading only, it may come back down: nothing was written there.
        ("s3:c1,c2", "s1", Access.READONLY, "", "s3:c1,c2"),
        ("s3:c1,c2", None, Access.READONLY, "", "s3:c1,c2"),
    ],
)
def test_each_resource_is_at_its_level(
    process: str, original: str | None, access: Access, level: str, placed: str
) -> None:
    base = IMAGE if access is Access.EXCLUSIVE else CONTENT
    plan = decided(original and ORIGINAL + original, f"{base}s0:c1,c2", access, level, held=False)
    (found,) = levels.placed(
        plan, PROCESS.with_range(parse_range(process)), enforced=True
    ).decisions
    assert found.refusal is None
    assert found.step is not None
    assert found.target == found.step.new == base + placed


@pytest.mark.parametrize(
    ("process", "original", "access", "level", "rule"),
    [
        ("s1:c1,c2", "s3", Access.EXCLUSIVE, "", "takes nothing to a lower level"),
        ("s1:c1,c2", "s3", Access.READONLY, "", "takes nothing to a lower level"),
        ("s1:c1,c2", "s0-s3", Access.READONLY, "", "takes nothing to a lower level"),
        ("s3:c1,c2", "s1", Access.EXCLUSIVE, "", "when the label is given back"),
        ("s3:c1,c2", "s1", Access.EXCLUSIVE, "s1", "no write down"),
        ("s1:c1,c2", "s3", Access.READONLY, "s3", "no read up"),
    ],
)
def test_what_is_refused_is_not_labelled(
    process: str, original: str, access: Access, level: str, rule: str
) -> None:
    plan = decided(ORIGINAL + original, f"{IMAGE}s0:c1,c2", access, level, held=False)
    (found,) = levels.placed(
        plan, PROCESS.with_range(parse_range(process)), enforced=True
    ).decisions
    assert found.step is None
    assert isinstance(found.refusal, ResourceRefused)
    assert rule in str(found.refusal)


@pytest.mark.parametrize(
    ("process", "held_at", "level", "rule"),
    [
        ("s1:c1,c2", "s1", "", ""),
        ("s1:c1,c2", "s0", "", ""),
        ("s1:c1,c2", "s1", "s1", ""),
        ("s3:c1,c2", "s1", "s3", "cannot be at s3 as well"),
        ("s1:c1,c2", "s3", "", "no read up"),
    ],
)
def test_what_is_held_keeps_its_level(process: str, held_at: str, level: str, rule: str) -> None:
    plan = decided(CONTENT + held_at, CONTENT + held_at, Access.PUBLIC, level, held=True)
    (found,) = levels.placed(
        plan, PROCESS.with_range(parse_range(process)), enforced=True
    ).decisions
    assert found.target == CONTENT + held_at
    assert found.step is None
    assert (rule in str(found.refusal)) if rule else (found.refusal is None)


@given(processes, singles, singles, st.sampled_from([Access.EXCLUSIVE, Access.READONLY]))
def test_no_resource_moves_what_is_in_it_down(
    process: Range, original: Range, asked: Range, access: Access
) -> None:
    """Over a whole use: labelled, written by the VM if it may, and given back."""
    level = f"s{asked.low.sensitivity}"
    plan = decided(f"{ORIGINAL}{original}", f"{IMAGE}s0:c1,c2", access, level, held=False)
    (found,) = levels.placed(plan, PROCESS.with_range(process), enforced=True).decisions
    if found.refusal is None:
        target = parse_context(found.target).range.low.sensitivity
        assert target >= original.low.sensitivity
        if access.writes:
            assert process.low.sensitivity <= target <= original.low.sensitivity


def test_without_levels_nothing_changes() -> None:
    plan = decided(f"{ORIGINAL}s0", f"{IMAGE}s0:c900", Access.GROUP, "", held=False)
    found = levels.placed(plan, PROCESS.with_range(parse_range("s0:c1,c2,c900")), enforced=False)
    assert found == plan


@pytest.mark.parametrize(
    ("label", "held", "expected"),
    [("s0", "s0:c1,c2", "s0"), ("s0", "s3:c1,c2", "s3"), ("s5", "s3:c1,c2", "s5")],
)
def test_a_guessed_label_is_not_below_what_was_held(label: str, held: str, expected: str) -> None:
    assert levels.not_below(ORIGINAL + label, IMAGE + held) == ORIGINAL + expected


@given(processes)
def test_what_a_vm_makes_has_all_of_its_categories(process: Range) -> None:
    """Those of its groups, too: the kernel labels so what a member makes in its own folder."""
    folder = parse_context(f"{IMAGE}s0:c1,c2")
    found = levels.made_by(PROCESS.with_range(process), folder)
    assert found.range == Range(process.low, process.low)
    assert found.type == folder.type


@given(processes)
def test_what_is_a_vms_own_is_at_its_low_level(process: Range) -> None:
    own = parse_context(f"{IMAGE}s0").with_categories(process.low.categories)
    found = levels.beside(own, PROCESS.with_range(process))
    assert found.range == Range(process.low, process.low)
    assert levels.obstacle(process, found.range, Access.EXCLUSIVE) == ""


@pytest.mark.parametrize(
    ("allowed", "wanted", "fits"),
    [
        (None, (0, 15), True),
        ((0, 0), (0, 0), True),
        ((0, 3), (1, 2), True),
        ((0, 3), (1, 4), False),
        ((1, 3), (0, 0), False),
        ((1, 3), (0, 3), False),
    ],
)
def test_a_goal_has_its_levels(
    allowed: tuple[int, int] | None, wanted: tuple[int, int], fits: bool
) -> None:
    goal = replace(ISOLATED, name="site", levels=allowed)
    if fits:
        levels.refuse_outside(goal, Sensitivities(*wanted))
    else:
        with pytest.raises(InvalidArgs, match="goal 'site' is for VMs at s"):
            levels.refuse_outside(goal, Sensitivities(*wanted))
