# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM's resources are called, what leaves with what, and what Attach may say."""

from dataclasses import replace

import pytest

from svirtd.api import wire
from svirtd.core.goals import ISOLATED
from svirtd.core.ids import named
from svirtd.core.model import Access, Hold, Identity, Step
from svirtd.engine.apply import Fate, Outcome, last_word
from svirtd.engine.attached import with_parts
from svirtd.errors import InvalidArgs
from svirtd.host.bus import Variant
from tests.unit.test_overlays import seen

HOLD = Hold("1", "vm", Identity(1, 1), "/a", Access.EXCLUSIVE, "l", None)


def test_made_ids_give_way_to_given_ones() -> None:
    some = [seen(id_, Access.READONLY) for id_ in ("", "r1", "", "r4")]
    assert [name for name, _ in named(some)] == ["r2", "r1", "r3", "r4"]
    # Above the numbers that the VM has had, and not one that another resource has.
    assert [name for name, _ in named(some[:1], 3, ["r4"])] == ["r5"]


def test_a_part_is_of_its_top_by_whatever_name() -> None:
    top = replace(seen("", Access.READONLY), path="/top")
    part = replace(top, path="/base", terms=replace(top.terms, part_of="/top"))
    assert named([top, part]) == [("r1", ""), ("r2", "r1")]
    given = replace(top, terms=replace(top.terms, id="disk"))
    part = replace(part, terms=replace(part.terms, part_of="disk"))
    assert named([given, part]) == [("disk", ""), ("r1", "disk")]


def test_what_leaves_with_a_resource() -> None:
    top, base, below = (
        replace(HOLD, name=name, part_of=part_of, number=number)
        for number, (name, part_of) in enumerate([("top", ""), ("base", "top"), ("b", "base")])
    )
    own = replace(HOLD, name="own", number=3)
    assert with_parts([top, base, below, own], top) == (top, base, below)
    assert with_parts([top, base, below, own], base) == (base, below)
    # A book from before has resources without a name, which lie under nothing.
    nameless = replace(HOLD, number=4)
    assert with_parts([nameless, own], nameless) == (nameless,)


def test_of_two_labels_that_an_object_may_carry_one_counts() -> None:
    first = Outcome(Step(Identity(1, 1), "/a", "x", "o"), Fate.CHANGED, "y", "")
    second = Outcome(Step(Identity(1, 1), "/a", "y", "o"), Fate.DONE, "o", "")
    other = Outcome(Step(Identity(1, 2), "/b", "x", "o"), Fate.CHANGED, "z", "")
    assert last_word([first, second, other]) == (second, other)


def test_attach_reads() -> None:
    path = {"path": Variant("s", "/a")}
    asked, id_ = wire.read_attach(path, {"replaces": Variant("s", "r1")}, (), ISOLATED)
    assert (asked.replaces, asked.keeps, asked.alike, id_) == ("r1", False, True, "")
    named_ = path | {"access": Variant("s", "readonly")}
    options = {"replaces": Variant("s", "r1"), "keep": Variant("s", "readonly")}
    asked, _ = wire.read_attach(named_, options, (), ISOLATED)
    assert (asked.keeps, asked.alike, asked.resource.access) == (True, False, Access.READONLY)


@pytest.mark.parametrize(
    ("resource", "options"),
    [
        ({"overlay": Variant("s", "/b")}, {}),
        ({}, {"keep": Variant("s", "readonly")}),
        ({}, {"keep": Variant("s", "public"), "replaces": Variant("s", "r1")}),
        ({}, {"replaces": Variant("s", "../r1")}),
        ({}, {"override": Variant("as", ["everything"])}),
        ({}, {"goal": Variant("s", "isolated")}),
    ],
)
def test_attach_refuses(resource: dict[str, Variant], options: dict[str, Variant]) -> None:
    with pytest.raises(InvalidArgs):
        wire.read_attach({"path": Variant("s", "/a"), **resource}, options, (), ISOLATED)
