# SPDX-License-Identifier: LGPL-2.1-or-later
"""What counts as drift, and which label of somebody else's may be replaced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core import drift
from svirtd.core.findings import FindingKind, Look
from svirtd.core.model import Access, Hold, Identity
from svirtd.core.rules import Rules

OURS = "system_u:object_r:svirt_image_t:s0:c1,c2"
HOLD = Hold("id", "vm", Identity(1, 2), "/a.img", Access.EXCLUSIVE, OURS, "original")
PRIVATE = frozenset(range(768))
SHARED = frozenset(range(768, 1024))
RULES = Rules(frozenset({"virt_image_t", "unlabeled_t"}), PRIVATE, 2, SHARED)


def test_as_the_book_says() -> None:
    assert drift.judge(HOLD, Look(OURS), RULES) is None


@pytest.mark.parametrize("label", [None, "u:r:virt_image_t:s0", "u:r:unlabeled_t:s0"])
def test_what_restorecon_sets_may_be_replaced(label: str | None) -> None:
    found = drift.judge(HOLD, Look(label), RULES)
    assert found is not None
    assert (found.kind, found.vm_name, found.path) == (FindingKind.CHANGED, "vm", "/a.img")
    assert (found.expected, found.found) == (OURS, label or "")
    assert drift.may_put_back(found)


@pytest.mark.parametrize(
    "label",
    [
        "u:r:etc_t:s0",
        "u:r:svirt_image_t:s0",
        "u:r:virt_image_t:s0:c1",
        "u:r:virt_image_t:s0:c1,c2",
        "u:r:virt_image_t:s0-s0:c0.c1023",
        "u:r:svirt_image_t:s0:c1,c3",
        "",
        "nonsense",
    ],
)
def test_what_means_something_may_not(label: str) -> None:
    found = drift.judge(HOLD, Look(label), RULES)
    assert found is not None
    assert not drift.may_put_back(found)


def test_no_label_is_a_type_of_its_own() -> None:
    found = drift.judge(HOLD, Look(None), Rules(frozenset({"virt_image_t"}), PRIVATE, 2, SHARED))
    assert found is not None
    assert not drift.may_put_back(found)


@pytest.mark.parametrize("kind", [FindingKind.MISSING, FindingKind.REPLACED, FindingKind.FAILED])
@given(label=st.none() | st.just(OURS))
def test_what_is_not_there_is_never_labelled(kind: FindingKind, label: str | None) -> None:
    """Whatever is at the path, it is not what the VM was given."""
    found = drift.judge(HOLD, Look(label, kind, "why"), RULES)
    assert found is not None
    assert (found.kind, found.reason) == (kind, "why")
    assert not drift.may_put_back(found)
