# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of power cuts: it sees each kind of loss, and nothing where nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.guest.promises import Machine, booted, changed, judge, left, told, world

A, B, SHARED = "/srv/vm/a", "/srv/vm/b", "/srv/vm/shared"
ORIGINALS = {A: "u:object_r:virt_image_t:s0", B: "u:object_r:user_home_t:s0", SHARED: "u:o:i:s0"}
PAIR, OTHER = "c1,c2", "c3,c4"
IMAGE = "u:object_r:svirt_image_t:s0:"
CONTENT = "u:object_r:virt_content_t:s0"
State = dict[str, Any]


def vm(name: str, categories: str, *, persistent: bool = False, state: str = "labelled") -> State:
    return {
        "name": name, "id": f"id-{name}", "state": state, "reason": "", "unit": "",
        "persistent": persistent, "categories": categories,
    }  # fmt: skip


def hold(name: str, path: str, label: str, access: str = "exclusive") -> State:
    return {"vm": name, "path": path, "access": access, "label": label, "original": ORIGINALS[path]}


def good() -> State:
    """One VM holds a file and shares another with a second one, a third is only reserved."""
    return {
        "vms": [
            vm("one", PAIR),
            vm("two", OTHER),
            vm("kept", "c5,c6", persistent=True, state="reserved"),
        ],
        "holds": [
            hold("one", A, IMAGE + PAIR),
            hold("one", SHARED, CONTENT, "public"),
            hold("two", SHARED, CONTENT, "public"),
        ],
        "operations": [],
        "quarantine": [],
        "files": {**ORIGINALS, A: IMAGE + PAIR, SHARED: CONTENT},
        "units": [],
        "folders": [],
    }


FACTS: list[State] = [
    {"vm": name, "what": what, "phase": "did", "files": files, "persistent": persistent,
     "id": f"id-{name}", "categories": categories}
    for name, what, files, persistent, categories in (
        ("one", "acquire", {A: "exclusive", SHARED: "public"}, False, PAIR),
        ("two", "acquire", {SHARED: "public"}, False, OTHER),
        ("kept", "launch", {B: "exclusive"}, True, "c5,c6"),
        ("gone", "launch", {B: "exclusive"}, False, "c7,c8"),
    )
]  # fmt: skip


def trying(facts: list[State]) -> list[State]:
    return [{**fact, "phase": phase} for fact in facts for phase in ("try", fact["phase"])]


def problems(state: State, facts: list[State] | None = None) -> str:
    possible = told({}, trying(FACTS if facts is None else facts))
    return "\n".join(judge(state, possible, ORIGINALS).problems)


def test_nothing_is_lost() -> None:
    report = judge(good(), told({}, trying(FACTS)), ORIGINALS)
    assert report.problems == ()
    assert (report.promises, report.unsynced) == (4, 0)


def test_a_label_that_had_not_reached_the_disk_is_counted() -> None:
    state = good()
    state["files"][A] = ORIGINALS[A]
    report = judge(state, told({}, trying(FACTS)), ORIGINALS)
    assert (report.problems, report.unsynced) == ((), 1)


def _without(name: str) -> Callable[[State], None]:
    def lie(state: State) -> None:
        state["vms"] = [one for one in state["vms"] if one["name"] != name]
        state["holds"] = [one for one in state["holds"] if one["vm"] != name]

    return lie


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda s: s["files"].update({A: None}), "/srv/vm/a carries None"),
        (lambda s: s["files"].update({A: IMAGE + OTHER}), f"/srv/vm/a carries {IMAGE}c3,c4"),
        (lambda s: s["files"].update({B: IMAGE + PAIR}), f"/srv/vm/b carries {IMAGE}c1,c2"),
        (lambda s: s["files"].update({B: IMAGE + "c7,c8"}), "c7,c8, which no VM has"),
        (lambda s: s["files"].update({B: None}), "/srv/vm/b carries None"),
        (lambda s: s["files"].update({B: CONTENT}), f"/srv/vm/b carries {CONTENT}"),
        (lambda s: s["files"].pop(B), "/srv/vm/b carries None"),
        (lambda s: s["files"].update({"/srv/vm/x": IMAGE + "c9,c10"}), "c9,c10, which no VM has"),
        (_without("one"), "VM one is None"),
        (_without("kept"), "VM kept is None"),
        (lambda s: s["vms"][2].update(categories="c9,c10"), "VM kept is Machine(id='id-kept'"),
        (lambda s: s["vms"][2].update(id="another"), "VM kept is Machine(id='another'"),
        (lambda s: s["vms"][0].update(categories=OTHER), "two and one have the same categories"),
        (lambda s: s["vms"][0].update(state="failed", reason="stuck"), "VM one is failed: stuck"),
        (lambda s: s["vms"][0].update(state="releasing"), "VM one is releasing"),
        (lambda s: s["vms"].append(vm("gone", "c7,c8")), "VM gone is Machine"),
        (lambda s: s["vms"].append(vm("never", "c7,c8")), "VM never is Machine"),
        (lambda s: s["holds"].pop(0), "VM one is Machine"),
        (lambda s: s["holds"][0].update(original="u:o:t:s0"), "its original label is"),
        (lambda s: s["holds"].append(hold("two", A, IMAGE + OTHER)), "is held by one and two"),
        (lambda s: s["holds"][1].update(path="/x", original=""), "/x is held and was never told"),
        (lambda s: s["units"].append("svirt-kept.service"), "svirt-kept.service runs"),
        (lambda s: s["folders"].append("/run/svirtd/vm/1"), "/run/svirtd/vm/1 is left"),
        (lambda s: s["operations"].append({"id": 1}), "operation {'id': 1} is still open"),
        (
            lambda s: s["quarantine"].append({"categories": "c7,c8", "path": B, "reason": "moved"}),
            "c7,c8 is in quarantine for /srv/vm/b: moved",
        ),
    ],
)
def test_a_lie_is_seen(lie: Callable[[State], None], said: str) -> None:
    state = good()
    lie(state)
    assert said in problems(state)


@pytest.mark.parametrize(
    ("what", "persistent", "before", "allowed"),
    [
        # Tried and not answered: all or nothing, and a unit is gone in any case.
        ("acquire", False, None, {"absent", "held"}),
        ("acquire", True, None, {"absent", "held", "reserved"}),
        ("acquire", True, "reserved", {"held", "reserved"}),
        ("launch", False, None, {"absent"}),
        ("launch", True, None, {"absent", "reserved"}),
        ("launch", True, "reserved", {"reserved"}),
        ("release", False, "held", {"held", "absent"}),
        ("release", True, "held", {"held", "reserved"}),
        ("release", False, "launched", {"absent"}),
        ("release", True, "launched", {"reserved"}),
        ("end", False, "launched", {"absent"}),
        ("forget", True, "reserved", {"reserved", "absent"}),
    ],
)
def test_what_was_only_tried(
    what: str, persistent: bool, before: str | None, allowed: set[str]
) -> None:
    files = frozenset({(A, "exclusive")})
    shapes: dict[str, Machine | None] = {
        "absent": None,
        "reserved": Machine("i", PAIR, persistent, launched=False, files=frozenset()),
        "held": Machine("i", PAIR, persistent, launched=False, files=files),
        "launched": Machine("i", PAIR, persistent, launched=True, files=files),
    }
    start = shapes[before] if before else None
    facts = [
        {"vm": "v", "what": what, "phase": "try", "files": dict(files), "persistent": persistent}
    ]
    possible = told({} if start is None else {"v": start}, facts)["v"]
    fitting = {
        name
        for name, shape in shapes.items()
        if any(one is shape or (one and shape and one.fits(shape)) for one in possible)
    }
    assert fitting == allowed


@pytest.mark.parametrize(
    ("what", "persistent", "after"),
    [
        ("release", False, None),
        ("release", True, "reserved"),
        ("end", False, None),
        ("end", True, "reserved"),
    ],
)
def test_what_was_answered_holds(what: str, persistent: bool, after: str | None) -> None:
    facts: list[State] = [
        {"vm": "v", "what": "launch", "phase": "did", "files": {A: "exclusive"}, "id": "i",
         "categories": PAIR, "persistent": persistent},
        {"vm": "v", "what": what, "phase": "did"},
        {"vm": "v", "what": "acquire", "phase": "refused", "files": {}, "persistent": persistent},
    ]  # fmt: skip
    reserved = Machine("i", PAIR, persistent, launched=False, files=frozenset())
    assert told({}, trying(facts)) == {"v": [reserved if after else None]}
    forgotten = [*facts, {"vm": "v", "what": "forget", "phase": "did"}]
    assert told({}, trying(forgotten)) == {"v": [None]}


def test_what_was_seen_once_is_promised_from_then_on() -> None:
    before = world(good())
    assert judge(good(), told(before, []), ORIGINALS).problems == ()
    state = good()
    _without("two")(state)
    assert "VM two is None" in "\n".join(judge(state, told(before, []), ORIGINALS).problems)


def test_a_restart_changes_nothing() -> None:
    assert changed(good(), good()) == []
    for path in (A, B, SHARED):
        state = good()
        state["files"][path] = "u:object_r:etc_t:s0"
        assert changed(good(), state) != []
        assert changed(state, good()) != []


def test_a_label_that_had_not_reached_the_disk_must_be_back_after_it() -> None:
    state = good()
    state["files"][A] = ORIGINALS[A]
    assert changed(state, good()) == []
    assert changed(state, state) != []


def test_nothing_is_left_at_the_end() -> None:
    end = {**good(), "vms": [], "holds": [], "files": dict(ORIGINALS)}
    assert left(end, ORIGINALS) == []
    assert any("VM one is left" in one for one in left(good(), ORIGINALS))
    assert any(A in one for one in left({**end, "files": {**ORIGINALS, A: CONTENT}}, ORIGINALS))
    stale = left({**end, "files": {**ORIGINALS, A: IMAGE + PAIR}}, ORIGINALS)
    assert any("which no VM has" in one for one in stale)


WEB = {"id": "i", "categories": "c8,c9", "process": "u:r:v_t:s0:c8,c9", "disk": f"{IMAGE}c8,c9"}


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({}, ""),
        ({"web": None}, "web, which the boot starts, is None"),
        ({"more": WEB}, "more, which the boot starts, is {"),
        ({"web": {**WEB, "id": "j"}}, "has id j instead of i"),
        ({"web": {**WEB, "disk": ORIGINALS[A]}}, f"has disk {ORIGINALS[A]} instead of"),
        ({"web": {**WEB, "process": "u:r:v_t:s0"}}, "u:r:v_t:s0 without its own c8,c9"),
        ({"web": {**WEB, "categories": PAIR}}, f"two VMs have {PAIR}"),
    ],
)
def test_vms_that_a_boot_starts_are_what_they_were(lie: State, said: str) -> None:
    now = {"web": WEB, **lie}
    now = {name: vm for name, vm in now.items() if vm is not None}
    found = "\n".join(booted({"web": WEB}, {**good(), "booted": now}))
    assert said in found
    assert bool(said) is bool(found)
