# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan: invariants of the label algebra over random requests and books, and every refusal."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core import goals
from svirtd.core.filesystems import Labels, Mount
from svirtd.core.goals import Goal
from svirtd.core.mcs import parse_context
from svirtd.core.model import (
    Access,
    Contexts,
    Hold,
    Identity,
    Kind,
    Override,
    Seen,
    Snapshot,
    Terms,
)
from svirtd.core.plan import Plan, Sets, plan
from svirtd.core.rules import Asker, Rules
from svirtd.errors import InvalidArgs, ResourceBusy, ResourceRefused

untimed = settings(deadline=None)
CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
PRIVATE = frozenset(range(768))
SHARED = frozenset(range(768, 1024))
RULES = Rules(frozenset({"virt_image_t", "user_home_t", "unlabeled_t"}), PRIVATE, 2, SHARED)
PAIR = frozenset({17, 402})
ROOT = Asker(0, frozenset())
OWNER = Asker(1000, frozenset())
GROUPS = {"g": 800, "h": 801}
SETS = Sets(PAIR, GROUPS)
GOOD = "system_u:object_r:virt_image_t:s0"


def one(**changes: object) -> Seen:
    """A file that may be labelled, with changes."""
    seen = Seen(
        "/a.img",
        Access.EXCLUSIVE,
        "/a.img",
        Identity(1, 2),
        Kind.FILE,
        1,
        setid=False,
        label=GOOD,
        owner_uid=1000,
        mount=Mount("ext4"),
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def hold(
    seen: Seen, access: Access, label: str, vm_id: str = "other", owner: int = 0, group: str = ""
) -> Hold:
    return Hold(
        vm_id, vm_id, seen.identity, "/held.img", access, label, None, owner_uid=owner, group=group
    )


def terms(access: Access) -> Terms:
    """What goes with an access: the group of what is shared in one."""
    return Terms(group="g") if access is Access.GROUP else Terms()


def decide(
    seen: Sequence[Seen],
    holds: Sequence[Hold] = (),
    goal: Goal = goals.ISOLATED,
    pair: frozenset[int] = PAIR,
    asker: Asker = OWNER,
) -> Plan:
    book: dict[Identity, list[Hold]] = {}
    for held in holds:
        book.setdefault(held.identity, []).append(held)
    return plan("me", seen, Snapshot(book), CONTEXTS, Sets(pair, GROUPS), goal, RULES, asker)


def refusal(
    seen: Seen, *holds: Hold, goal: Goal = goals.ISOLATED, asker: Asker = OWNER
) -> Exception:
    (decision,) = decide([seen], holds, goal, asker=asker).decisions
    assert decision.step is None
    assert decision.refusal is not None
    return decision.refusal


identities = st.builds(Identity, st.integers(1, 2), st.integers(1, 6))
accesses = st.sampled_from(Access)
pairs = st.frozensets(st.integers(0, 9), min_size=2, max_size=2)
labels = st.sampled_from(
    [None, GOOD, "u:object_r:user_home_t:s0", "u:object_r:shadow_t:s0", "nonsense", "a:b:c"]
)
# Each access, with a group where it has one.
shared_how = st.sampled_from(
    [
        (Access.EXCLUSIVE, ""),
        (Access.READONLY, ""),
        (Access.PUBLIC, ""),
        *((access, group) for access in (Access.GROUP, Access.READONLY) for group in GROUPS),
    ]
)
sights = st.builds(
    lambda how, **values: Seen(access=how[0], terms=Terms(group=how[1]), **values),
    shared_how,
    named=st.just("/named"),
    path=st.just("/path"),
    identity=identities,
    kind=st.sampled_from(Kind),
    links=st.integers(0, 2),
    setid=st.booleans(),
    label=labels,
    owner_uid=st.integers(),
    mount=st.builds(Mount, st.text(max_size=8), st.just("/mnt"), st.sampled_from(Labels)),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Seen], list[Hold], frozenset[int]]:
    """A request, and a book that an earlier plan could have written."""
    mine = draw(pairs)
    seen = draw(st.lists(sights, max_size=5, unique_by=lambda s: s.identity))
    book: list[Hold] = []
    for sight in seen:
        if not draw(st.booleans()):
            continue
        access, group = draw(shared_how)
        theirs = draw(pairs.filter(lambda pair: pair != mine))
        label = str(goals.resource_context(CONTEXTS, access, theirs, GROUPS.get(group)))
        many = access is Access.PUBLIC or bool(group)
        owners = ["v1", "v2"] if many and draw(st.booleans()) else ["v1"]
        book += [hold(sight, access, label, owner, group=group) for owner in owners]
        if draw(st.booleans()):
            seen[seen.index(sight)] = replace(sight, label=label)
    return seen, book, mine


@untimed
@given(situations())
def test_invariants_over_random_requests_and_books(
    situation: tuple[list[Seen], list[Hold], frozenset[int]],
) -> None:
    seen, book, mine = situation
    decided = decide(seen, book, pair=mine)
    assert [d.seen for d in decided.decisions] == seen
    process = goals.process_context(CONTEXTS, mine, frozenset(GROUPS.values()))
    for d in decided.decisions:
        holds = [h for h in book if h.identity == d.seen.identity]
        target = parse_context(d.target)
        # What is given to a VM is within its process's set, and private unless it is public.
        group = d.seen.terms.group
        own = frozenset({GROUPS[group]}) if group else mine
        assert target.categories == (frozenset() if d.seen.access is Access.PUBLIC else own)
        assert target.categories <= process.categories
        if d.refusal is not None:
            assert d.step is None
            continue
        if holds:
            # Invariants 2 and 5: only what everybody may read is shared, and what a group has
            # within it; by one rule for all, and as it is.
            assert d.seen.access is Access.PUBLIC or group
            assert {(h.access, h.group) for h in holds} == {(d.seen.access, group)}
            assert d.step is None
            assert d.seen.label == holds[0].label == d.target
            assert d.original == holds[0].original
        else:
            assert d.step is not None
            assert (d.step.identity, d.step.path) == (d.seen.identity, d.seen.path)
            assert (d.step.old, d.step.new) == (d.seen.label, d.target)
            assert d.original == d.seen.label
            assert d.seen.kind in (Kind.FILE, Kind.BLOCK)
            assert not d.seen.setid
            assert d.seen.links == 1 or (d.seen.kind is Kind.BLOCK and d.seen.links)
            assert d.seen.label in (None, GOOD, "u:object_r:user_home_t:s0")
    refusals = [d.refusal for d in decided.decisions if d.refusal is not None]
    if refusals:
        with pytest.raises(type(refusals[0])) as raised:
            decided.refuse()
        assert raised.value is refusals[0]
    else:
        decided.refuse()
        assert len(decided.steps) == len([d for d in decided.decisions if d.step])


@untimed
@given(shared_how, shared_how, pairs, pairs)
def test_two_plans_never_share_what_is_not_public_or_a_groups(
    first: tuple[Access, str],
    second: tuple[Access, str],
    mine: frozenset[int],
    theirs: frozenset[int],
) -> None:
    """Invariant 2 from one plan to the next: what the first wrote, the second meets."""
    before = one(access=first[0], terms=Terms(group=first[1]))
    (step,) = decide([before], pair=theirs).steps
    held = hold(before, first[0], str(step.new), group=first[1])
    after = one(access=second[0], label=step.new, terms=Terms(group=second[1]))
    again = decide([after], [held], pair=mine).decisions[0]
    shared = first == second and (first[0] is Access.PUBLIC or bool(first[1]))
    assert (again.refusal is None) == shared


@untimed
@given(st.lists(sights, min_size=1, max_size=4, unique_by=lambda s: s.identity), accesses)
def test_one_object_twice_is_refused_as_a_whole(seen: list[Seen], access: Access) -> None:
    again = replace(seen[0], named="/other", access=access)
    with pytest.raises(InvalidArgs, match="/other and /named are the same file"):
        decide([*seen, again])


REFUSALS: list[tuple[str, dict[str, object], str]] = [
    ("directory", {"kind": Kind.DIRECTORY}, "is a directory"),
    ("character device", {"kind": Kind.CHARACTER}, "is a character device"),
    (
        "link",
        {"kind": Kind.LINK},
        "is a symbolic link; files, devices, directories, fifos and sockets are",
    ),
    ("other", {"kind": Kind.OTHER}, "is a"),
    ("links", {"links": 2}, "has 2 hard links"),
    ("deleted", {"links": 0}, "is deleted"),
    ("setid", {"setid": True}, "is a setuid or setgid file"),
    ("host type", {"label": "u:object_r:shadow_t:s0"}, "type shadow_t, which is not in"),
    ("other VM's", {"label": "u:object_r:svirt_image_t:s0:c1,c2"}, "type svirt_image_t"),
    ("no context", {"label": "virt_image_t"}, "'virt_image_t', which is not a context"),
    ("no range", {"label": "u:object_r:virt_image_t"}, "which is not a context"),
    ("long", {"label": "a" * 4000}, "which is not a context"),
]


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize(
    ("changes", "text"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_refusals(changes: dict[str, object], text: str, access: Access) -> None:
    refused = refusal(one(access=access, terms=terms(access), **changes))
    assert isinstance(refused, ResourceRefused)
    assert text in str(refused)
    assert str(refused).startswith("/a.img ")
    assert len(str(refused)) < 1000


def test_no_label_counts_as_unlabelled() -> None:
    assert decide([one(label=None)]).steps
    narrow = Rules(frozenset({"virt_image_t"}), PRIVATE, 2, SHARED)
    decided = plan(
        "me", [one(label=None)], Snapshot(), CONTEXTS, SETS, goals.ISOLATED, narrow, ROOT
    )
    assert "unlabeled_t" in str(decided.decisions[0].refusal)


def test_a_right_label_by_chance_is_a_step_too() -> None:
    label = str(CONTEXTS.content)
    rules = Rules(frozenset({"virt_content_t"}), PRIVATE, 2, SHARED)
    seen = one(label=label, access=Access.PUBLIC)
    decided = plan("me", [seen], Snapshot(), CONTEXTS, SETS, goals.ISOLATED, rules, ROOT)
    assert [(s.old, s.new) for s in decided.steps] == [(label, label)]


@pytest.mark.parametrize("level", ["s0:c1,c2", "s0:c17,c402", "s0:c0.c1023", "s0-s0:c1,c2,c900"])
def test_a_vms_set_never_becomes_an_original(level: str) -> None:
    refused = refusal(one(label=f"system_u:object_r:virt_image_t:{level}"))
    assert isinstance(refused, ResourceRefused)
    assert "of a VM, of today or of an earlier one" in str(refused)


@pytest.mark.parametrize("level", ["s0:c800", "s0:c900,c901", "s0:c1,c900", "s0-s0:c768.c1023"])
@pytest.mark.parametrize("access", Access)
def test_a_groups_category_never_becomes_an_original(level: str, access: Access) -> None:
    label = f"system_u:object_r:virt_image_t:{level}"
    refused = refusal(one(label=label, access=access, terms=terms(access)))
    assert isinstance(refused, ResourceRefused)
    assert "of a group, of today or of an earlier one" in str(refused)


@pytest.mark.parametrize("level", ["s0", "s0:c1"])
def test_other_categories_are_an_original_like_any(level: str) -> None:
    label = f"system_u:object_r:virt_image_t:{level}"
    assert [step.old for step in decide([one(label=label)]).steps] == [label]


def test_a_block_device_may_have_many_names() -> None:
    assert decide([one(kind=Kind.BLOCK, links=3)]).steps


def test_a_holder_is_named_before_what_is_wrong_with_the_object() -> None:
    held = hold(one(), Access.EXCLUSIVE, "u:object_r:svirt_image_t:s0:c1,c2")
    refused = refusal(one(links=3, label=held.label), held, asker=ROOT)
    assert isinstance(refused, ResourceBusy)
    assert "held by VM 'other' with access 'exclusive' (as /held.img)" in str(refused)


@pytest.mark.parametrize("access", Access)
def test_a_vms_own_hold_is_in_the_way_too(access: Access) -> None:
    held = hold(one(), Access.PUBLIC, str(CONTEXTS.content), "me")
    refused = refusal(one(access=access, label=held.label, terms=terms(access)), held)
    assert isinstance(refused, ResourceBusy)
    assert "held by VM 'me' already" in str(refused)


def test_a_shared_object_keeps_the_label_that_it_has() -> None:
    """Also where the configuration would give another one today."""
    earlier = "system_u:object_r:virt_content_t:s0:c900"
    seen = one(access=Access.PUBLIC, label=earlier)
    (decision,) = decide([seen], [hold(seen, Access.PUBLIC, earlier)]).decisions
    assert (decision.target, decision.step, decision.refusal) == (earlier, None, None)


def test_a_shared_object_that_somebody_changed_is_refused() -> None:
    held = hold(one(), Access.PUBLIC, str(CONTEXTS.content))
    refused = refusal(one(access=Access.PUBLIC, label="u:object_r:etc_t:s0"), held)
    assert isinstance(refused, ResourceRefused)
    assert "somebody changed it" in str(refused)


def test_a_goal_can_forbid_an_access() -> None:
    looking = Goal("looking", frozenset({Access.READONLY}))
    refused = refusal(one(), goal=looking)
    assert isinstance(refused, ResourceRefused)
    assert "goal 'looking' does not allow access 'exclusive'" in str(refused)
    assert decide([one(access=Access.READONLY)], goal=looking).steps


def test_another_users_file_is_refused_first() -> None:
    """Who holds it, and what it carries, is not told either."""
    seen = one(owner_uid=0, label="system_u:object_r:shadow_t:s0", kind=Kind.FIFO, links=3)
    refused = refusal(seen, hold(seen, Access.EXCLUSIVE, GOOD))
    assert isinstance(refused, ResourceRefused)
    assert str(refused).startswith("/a.img belongs to uid 0, and you are uid 1000")
    assert "override 'owner'" in str(refused)
    assert "shadow_t" not in str(refused)


def test_root_and_whoever_may_use_any_file_take_another_users() -> None:
    seen = [one(owner_uid=4711)]
    assert decide(seen, asker=ROOT).steps
    assert decide(seen, asker=Asker(1000, frozenset({Override.OWNER}))).steps
    assert not decide(seen, asker=Asker(1000, frozenset({Override.LINKS}))).steps
    assert not decide([one(owner_uid=0)], asker=OWNER).steps


def test_links_alone_can_be_lifted() -> None:
    every = frozenset(Override)
    for uid in (0, 1000):
        assert decide([one(links=2)], asker=Asker(uid, frozenset({Override.LINKS}))).steps
        assert "has 2 hard links" in str(refusal(one(links=2), asker=Asker(uid, frozenset())))
        lifted = Asker(uid, every)
        for changes, text in (
            ({"kind": Kind.LINK}, "is a symbolic link"),
            ({"kind": Kind.DIRECTORY}, "is a directory"),
            ({"links": 0}, "is deleted"),
            ({"setid": True}, "setuid or setgid"),
            ({"mount": Mount("fuse.sshfs")}, "file system of kind fuse.sshfs"),
            ({"label": "system_u:object_r:shadow_t:s0"}, "type shadow_t"),
            ({"label": "system_u:object_r:virt_image_t:s0:c1,c2"}, "categories"),
        ):
            assert text in str(refusal(one(**changes), asker=lifted))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "nfs4", "devtmpfs"])
def test_file_systems_that_keep_labels(kind: str) -> None:
    assert decide([one(mount=Mount(kind))]).steps


@pytest.mark.parametrize(
    "kind", ["fuse", "fuseblk", "fuse.sshfs", "proc", "sysfs", "9p", "vfat", "unknown", "", "ext"]
)
def test_every_other_file_system_is_refused_by_name(kind: str) -> None:
    for asker in (OWNER, ROOT):
        refused = refusal(one(mount=Mount(kind)), asker=asker)
        assert isinstance(refused, ResourceRefused)
        assert f"file system of kind {kind}" in str(refused)
        assert "move the file" in str(refused)


# -- groups -------------------------------------------------------------------------------------


def in_group(access: Access = Access.GROUP, group: str = "g", **changes: object) -> Seen:
    return one(access=access, terms=Terms(group=group), **changes)


def test_a_groups_label_has_its_category_and_nothing_else() -> None:
    """A category of a member's own would keep the other members out, and no other member in."""
    (written,) = decide([in_group()]).steps
    assert written.new == "system_u:object_r:svirt_image_t:s0:c800"
    (read,) = decide([in_group(Access.READONLY)]).steps
    assert read.new == "system_u:object_r:virt_content_t:s0:c800"


@pytest.mark.parametrize("access", [Access.GROUP, Access.READONLY])
def test_a_group_that_the_vm_is_not_in(access: Access) -> None:
    refused = refusal(in_group(access, "other"))
    assert isinstance(refused, ResourceRefused)
    assert "the VM is not in group 'other'" in str(refused)


@pytest.mark.parametrize("access", [Access.EXCLUSIVE, Access.PUBLIC])
def test_a_group_where_none_belongs(access: Access) -> None:
    """No form of a request says so; if one did, no label would be made of it."""
    assert isinstance(refusal(in_group(access)), ResourceRefused)
    assert isinstance(refusal(one(access=Access.GROUP)), ResourceRefused)


def test_a_member_need_not_own_what_the_group_has() -> None:
    """Its owner has given it to the group; who is not in that group is refused as ever."""
    label = "system_u:object_r:svirt_image_t:s0:c800"
    seen = in_group(owner_uid=4711, label=label)
    held = hold(seen, Access.GROUP, label, owner=4711, group="g")
    (decision,) = decide([seen], [held]).decisions
    assert (decision.refusal, decision.step) == (None, None)
    for other in (
        in_group(group="h", owner_uid=4711, label=label),
        in_group(Access.READONLY, owner_uid=4711, label=label),
        one(owner_uid=4711, label=label),
        one(access=Access.PUBLIC, owner_uid=4711, label=label),
    ):
        assert "belongs to uid 4711, and you are uid 1000" in str(refusal(other, held))
    # Nobody holds it: then it is the first hold, which labels it, and that is its owner's to ask.
    assert "belongs to uid 4711" in str(refusal(in_group(owner_uid=4711)))


def test_one_label_cannot_let_some_write_and_others_only_read() -> None:
    label = "system_u:object_r:svirt_image_t:s0:c800"
    held = hold(one(), Access.GROUP, label, owner=1000, group="g")
    refused = refusal(in_group(Access.READONLY, label=label), held)
    assert isinstance(refused, ResourceBusy)
    assert "'group' of group 'g'" in str(refused)
    assert "or ask for access 'group': one label cannot" in str(refused)
