# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may be in a group, which category a new one gets, and both in a real book."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlite_utils import Database

from svirtd.book import groups, health, pool, registry, schema
from svirtd.book.pool import PoolText, Suspect
from svirtd.core.groups import (
    AtEnd,
    Grant,
    Group,
    Writers,
    moment,
    over,
    refuse_member,
    refuse_second_writer,
)
from svirtd.core.mcs import format_categories, parse_categories
from svirtd.core.model import VM, Identity, Lifetime, State
from svirtd.core.pool import category_of, draw_category, key_of, make_shape
from svirtd.errors import AccessDenied, ResourceBusy

untimed = settings(deadline=None)
CATEGORIES = range(768, 1024)
uids = st.sampled_from([0, 1000, 1001, 1002])
times = st.integers(0, 6)


def group_of(owner_uid: int, writers: Writers = Writers.ALL) -> Group:
    return Group("g", 800, owner_uid, 1, writers)


def refused(*asked: Any) -> bool:
    try:
        refuse_member(*asked)
    except AccessDenied as error:
        return "'g'" in str(error) and "svirtctl group grant" in str(error)
    return False


# -- who may be in it -----------------------------------------------------------------------------


@untimed
@given(owner=uids, vm_owner=uids, granted_to=st.none() | uids, until=times, now=times,
       by_root=st.booleans())  # fmt: skip
def test_who_may_be_in_a_group(
    owner: int, vm_owner: int, granted_to: int | None, until: int, now: int, by_root: bool
) -> None:
    """The owner's own, what was granted to this very owner and is not over, and what root does."""
    grant = None if granted_to is None else Grant("g", "vm", granted_to, until, AtEnd.REPORT, 1)
    bound = granted_to == vm_owner
    ended = until != 0 and until <= now
    may = not ended if bound else vm_owner == owner or by_root
    assert refused(group_of(owner), "vm", vm_owner, by_root, grant, now) is not may
    assert grant is None or over(grant, now) is ended


def test_the_end_of_a_grant_is_told() -> None:
    us = 1_800_000_000_000_000
    ended = Grant("g", "vm", 1001, us, AtEnd.STOP, 1)
    with pytest.raises(AccessDenied, match="ended at 2027-01-15 08:00:00 UTC"):
        refuse_member(group_of(1000), "vm", 1001, False, ended, us)
    refuse_member(group_of(1000), "vm", 1001, False, ended, us - 1)
    assert moment(us) == "2027-01-15 08:00:00 UTC"


members = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.booleans()), max_size=4)


@untimed
@given(writers=st.sampled_from(Writers), writes=st.booleans(), others=members)
def test_one_writer_is_one(writers: Writers, writes: bool, others: list[tuple[str, bool]]) -> None:
    group = group_of(1000, writers)
    first = next((name for name, other in others if other), None)
    if writers is Writers.ONE and writes and first is not None:
        with pytest.raises(ResourceBusy, match=f"has one writer, VM '{first}'"):
            refuse_second_writer(group, "vm", writes=writes, others=others)
    else:
        refuse_second_writer(group, "vm", writes=writes, others=others)


@untimed
@given(asked=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_one_writer_over_a_history(asked: list[tuple[bool, bool]]) -> None:
    """Whoever comes and goes, two that write are never in it together."""
    there: list[tuple[str, bool]] = []
    for number, (writes, leaves) in enumerate(asked):
        if leaves and there:
            there.pop(0)
        try:
            refuse_second_writer(
                group_of(0, Writers.ONE), f"v{number}", writes=writes, others=there
            )
        except ResourceBusy:
            assert any(other for _, other in there)
        else:
            there.append((f"v{number}", writes))
        assert sum(other for _, other in there) <= 1


# -- which category -------------------------------------------------------------------------------


@given(category=st.integers(0, 1023))
def test_a_category_is_below_every_rank(category: int) -> None:
    assert key_of(category) < 0
    assert category_of(key_of(category)) == category
    shape = make_shape(frozenset(range(4)), frozenset(), frozenset(), 2)
    assert shape.carried(key_of(category)) == {category}


some = st.frozensets(st.integers(768, 780))


@untimed
@given(pool_=some, issued=some, returned=st.lists(st.integers(768, 780), unique=True), blocked=some)
def test_what_may_be_drawn(
    pool_: frozenset[int], issued: frozenset[int], returned: list[int], blocked: frozenset[int]
) -> None:
    drawn = draw_category(pool_, issued, returned, blocked.__contains__)
    usable = pool_ - issued - blocked
    assert set(drawn) <= usable
    assert len(set(drawn)) == len(drawn)
    # There is one whenever there can be one; a used one only where none is left that never was.
    assert bool(drawn) == bool(usable)
    fresh = usable - set(returned)
    if fresh:
        assert set(drawn) == fresh
    else:
        assert drawn == [one for one in returned if one in usable][:1]


# -- in the book ----------------------------------------------------------------------------

TEXT = PoolText("c0.c9", "c800.c803", "", 2)
POOL = parse_categories(TEXT.groups)
SHAPE = make_shape(parse_categories(TEXT.private), POOL, frozenset(), 2)


def new_book() -> Database:
    made = Database(sqlite3.connect(":memory:", isolation_level=None), execute_plugins=False)
    schema.migrate(made)
    pool.prepare(made, TEXT, SHAPE)
    return made


@pytest.fixture
def db() -> Iterator[Database]:
    made = new_book()
    yield made
    made.close()


def free(db: Database) -> list[int]:
    return groups.free_categories(db, POOL, lambda _: False)


def add_vm(db: Database, name: str, owner_uid: int = 0, *in_groups: str, **more: Any) -> VM:
    permutation = pool.prepare(db, TEXT, SHAPE)
    rank = pool.draw_rank(db, permutation, lambda _: False, 8)
    pair = format_categories(SHAPE.categories_of(rank))
    state = more.get("state", State.LABELLED if in_groups else State.RESERVED)
    made = VM(
        f"{rank:016x}", name, owner_uid, state, "", "isolated", "", rank, pair, f"u:r:p:s0:{pair}",
        f"u:r:i:s0:{pair}", "", 0, "", True, Lifetime.RELEASE, "", 1, groups=in_groups,
    )  # fmt: skip
    registry.add_vm(db, made)
    return made


def suspect_of(category: int, number: int = 1) -> Suspect:
    return Suspect(0, key_of(category), "vm", Identity(1, number), f"/{number}", "label", "why")


def test_a_suspected_category_waits_until_every_object_is_clean(db: Database) -> None:
    group = Group("g", 800, 1000, 1)
    groups.add(db, group)
    pool.suspect(db, [suspect_of(800, number) for number in (1, 2)])
    assert groups.retired_of(db, 1000) == 0  # it has its group still
    groups.remove(db, group)
    assert groups.retired_of(db, 1000) == 1
    assert groups.retired_of(db, 1001) == groups.retired_of(db, 0) == 0
    for left in (1, 0):
        assert 800 not in free(db)
        assert groups.quarantined(db) == {800}
        (one, *_) = pool.suspects(db, 10)
        pool.seen_clean(db, one)
        assert len(pool.suspects(db, 10)) == left
    # Back, behind those that nobody had.
    assert free(db) == [801, 802, 803]
    for number, category in enumerate((801, 802, 803)):
        groups.add(db, Group(f"g{number}", category, 0, 1))
    assert free(db) == [800]
    assert groups.retired_of(db, 1000) == 0
    health.whole("book", db)


def test_a_category_seen_clean_while_its_group_is_there_is_not_free(db: Database) -> None:
    group = Group("g", 800, 0, 1)
    groups.add(db, group)
    pool.suspect(db, [suspect_of(800)])
    (one,) = pool.suspects(db, 10)
    pool.seen_clean(db, one)
    assert free(db) == [801, 802, 803]
    groups.remove(db, group)
    # Once, however often it is given back.
    groups.give_back(db, 800)
    (count,) = db.execute("SELECT count(*) FROM group_returned").fetchone()
    assert count == 1


def test_members_of_now_and_of_later(db: Database) -> None:
    groups.add(db, Group("g", 800, 0, 1))
    now, later, both = add_vm(db, "now", 0, "g"), add_vm(db, "later"), add_vm(db, "both", 0, "g")
    for one in (later, both, later):  # again: nothing changes
        groups.join(db, one, "g")
    assert [vm.name for vm in groups.members(db, "g")] == ["both", "later", "now"]
    assert {vm.name for vm in groups.members_now(db, "g")} == {"now", "both"}
    known = registry.vm_by_name(db, later.name)
    assert known is not None
    assert known.lasting == ("g",)
    assert [vm.lasting for vm in groups.members(db, "g")] == [("g",), ("g",), ()]
    groups.leave(db, both, "g")
    groups.leave(db, now, "g")
    assert [vm.name for vm in groups.lasting_members(db, "g")] == ["later"]
    registry.remove_vm(db, later)
    pool.retire(db, later.rank)
    assert [vm.name for vm in groups.members(db, "g")] == ["both", "now"]
    health.whole("book", db)


def test_grants_end_with_their_group(db: Database) -> None:
    group = Group("g", 800, 0, 1)
    groups.add(db, group)
    first = Grant("g", "vm", 1000, 0, AtEnd.REPORT, 1)
    later = Grant("g", "vm", 1001, 50, AtEnd.STOP, 2)
    other = Grant("g", "web", 1000, 60, AtEnd.REPORT, 3)
    for one in (first, later, other):
        groups.grant(db, one)
    assert groups.grants(db, "g") == [later, other]
    assert groups.grant_of(db, "g", "vm") == later
    assert groups.ended_grants(db, 49) == []
    assert groups.ended_grants(db, 50) == [later]
    groups.revoke(db, "g", "web")
    groups.remove(db, group)
    groups.add(db, Group("g", 801, 0, 2))
    assert groups.grants(db, "g") == []


def test_the_pool_of_sets_does_not_count_groups(db: Database) -> None:
    """Their keys are in the quarantine beside ranks, and belong to none."""
    gone = add_vm(db, "gone")
    pool.suspect(db, [Suspect(0, gone.rank, "gone", Identity(1, 9), "/9", "label", "why")])
    registry.remove_vm(db, gone)
    pool.retire(db, gone.rank)
    pool.suspect(db, [suspect_of(800), suspect_of(801)])
    counts = pool.counts(db)
    assert (counts.pairs_in_use, counts.pairs_quarantined) == (0, 1)
    assert pool.retired_of(db, 0) == 0
    health.at_start("book", db)
    health.whole("book", db)
    pool.rekey(db)
    health.whole("book", db)
    for one in pool.suspects(db, 10):
        pool.seen_clean(db, one)
    assert pool.counts(db).pairs_quarantined == 0
    health.whole("book", db)


@dataclass
class Model:
    """Categories: of a group (with its owner), suspected, or returned in this order."""

    owned: dict[str, int] = field(default_factory=dict)
    suspected: dict[int, int] = field(default_factory=dict)
    returned: list[int] = field(default_factory=list)


class Categories(RuleBasedStateMachine):
    """The book against the model: what is suspected or owned is never given."""

    def __init__(self) -> None:
        super().__init__()
        self.db = new_book()
        self.model = Model()
        self.made = 0

    def teardown(self) -> None:
        health.whole("book", self.db)
        self.db.close()

    def _give_back(self, category: int) -> None:
        known = {*self.model.owned.values(), *self.model.suspected, *self.model.returned}
        if category not in known:
            self.model.returned.append(category)

    @rule(pick=st.integers(0, 99))
    def create(self, pick: int) -> None:
        found = free(self.db)
        usable = POOL - set(self.model.owned.values()) - set(self.model.suspected)
        assert set(found) <= usable
        assert bool(found) == bool(usable)
        if found:
            category = found[pick % len(found)]
            if category in self.model.returned:
                waiting = [one for one in self.model.returned if one in usable]
                assert category == waiting[0]
                self.model.returned.remove(category)
            self.made += 1
            groups.add(self.db, Group(f"g{self.made}", category, 1000, 1))
            self.model.owned[f"g{self.made}"] = category

    @precondition(lambda self: self.model.owned)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.owned)))
        group = groups.by_name(self.db, name)
        assert group is not None
        groups.remove(self.db, group)
        self._give_back(self.model.owned.pop(name))

    @rule(category=st.sampled_from(sorted(POOL)))
    def a_file_carries_it(self, category: int) -> None:
        """After a release, or seen by a scan, of whatever category."""
        self.made += 1
        pool.suspect(self.db, [suspect_of(category, self.made)])
        groups.keep(self.db, category)
        self.model.suspected[category] = self.model.suspected.get(category, 0) + 1
        if category in self.model.returned:
            self.model.returned.remove(category)

    @precondition(lambda self: self.model.suspected)
    @rule(data=st.data())
    def it_is_clean(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(pool.suspects(self.db, 100)))
        category = category_of(one.rank)
        pool.seen_clean(self.db, one)
        pool.seen_clean(self.db, one)  # somebody else has seen it, too
        self.model.suspected[category] -= 1
        if not self.model.suspected[category]:
            del self.model.suspected[category]
            self._give_back(category)

    @invariant()
    def the_book_says_the_same(self) -> None:
        assert groups.quarantined(self.db) == set(self.model.suspected)
        assert {g.name: g.category for g in groups.everything(self.db)} == self.model.owned
        rows = self.db.execute("SELECT category FROM group_returned ORDER BY seq")
        assert [one for (one,) in rows] == self.model.returned
        retired = set(self.model.suspected) - set(self.model.owned.values())
        assert groups.retired_of(self.db, 1000) <= len(retired)


TestCategories = Categories.TestCase
TestCategories.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
