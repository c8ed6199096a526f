# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of trees: reports that add up, originals that are kept and forgotten."""

from array import array
from pathlib import Path

import pytest

from svirtd.book import schema, trees
from svirtd.core.model import Identity
from svirtd.core.trees import EXAMPLES, Report, Rule, Tally
from svirtd.host.tree_entries import Others
from tests import books

ROOT = Identity(64768, 190)
OTHER = "system_u:object_r:user_home_t:s0"


def test_reports_add_up() -> None:
    one = Report(
        done=3,
        labels={"a": Tally(2, ("1", "2")), None: Tally(1, ("3",))},
        faults={Rule.OWNER: Tally(1, ("1",))},
        reasons={Rule.OWNER: "1001"},
        mounts=Tally(1, ("m",)),
    )
    two = Report(
        done=4,
        labels={"a": Tally(4, ("4", "5", "6"))},
        faults={Rule.OWNER: Tally(2, ("5", "6")), Rule.LINKS: Tally(1, ("7",))},
        reasons={Rule.OWNER: "1002", Rule.LINKS: "2"},
    )
    both = one.plus(two)
    assert both.done == 7
    assert both.labels == {"a": Tally(6, ("1", "2", "4")), None: Tally(1, ("3",))}
    assert both.faults[Rule.OWNER] == Tally(3, ("1", "5", "6"))
    # The reason is that of the first example.
    assert both.reasons == {Rule.OWNER: "1001", Rule.LINKS: "2"}
    assert both.mounts == Tally(1, ("m",))
    assert str(both.labels["a"]) == "6 ('1', '2', '4', …)"
    assert len(both.labels["a"].examples) == EXAMPLES


def test_what_entries_carried_is_kept_until_nobody_holds_the_tree(tmp_path: Path) -> None:
    db = books.load("0010-trees", str(tmp_path / "book"))
    assert schema.is_current(db)
    assert trees.remembered(db, ROOT) == {OTHER: array("Q", [151]), None: array("Q", [152])}
    trees.remember(db, ROOT, [(OTHER, array("Q", [160, 170]).tobytes())])
    assert trees.remembered(db, ROOT)[OTHER] == array("Q", [151, 160, 170])
    trees.tidy(db)
    assert trees.is_tree(db, ROOT)
    db.execute("DELETE FROM hold WHERE dev = 64768 AND ino = 190")
    trees.tidy(db)
    assert not trees.is_tree(db, ROOT)
    assert trees.remembered(db, ROOT) == {}
    db.close()


@pytest.mark.parametrize("inodes", [[5, 9, 2**63], [9, 5, 2**63], []])
def test_an_inode_had_what_was_remembered_of_it(inodes: list[int]) -> None:
    others = Others()
    others.add(b"x\0", array("Q", inodes).tobytes())
    others.add(None, array("Q", [7]).tobytes())
    for inode in (4, 5, 6, 9, 2**63, 2**64 - 1):
        assert others.of(inode, b"root\0") == (b"x\0" if inode in inodes else b"root\0")
    assert others.of(7, b"root\0") is None
