# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors of file systems at every place of a step: the request fails, and nothing is lost."""

import pytest

from svirtd.failpoints import Point
from svirtd.host.bus import BusError
from tests.crash.errors import ERRNOS, FIRST_MIDDLE_LAST, OWN, SIZE, Errors, fail, reason
from tests.crash.scenarios import ACQUIRED, LAUNCHED, RELEASED, Fate, Step

BEGINNINGS = [pytest.param(ACQUIRED, id="acquire"), pytest.param(LAUNCHED, id="launch")]
SETTLINGS = ["release", "restart"]
every_errno = pytest.mark.parametrize("name", ERRNOS)
every_position = pytest.mark.parametrize("position", FIRST_MIDDLE_LAST)


def settle(errors: Errors, how: str) -> None:
    """Have what was left open finished, by a release or by the next start."""
    if how == "release":
        errors.world.client.release(errors.run.name)
    else:
        errors.restart()
    errors.stands(Fate.GONE)


@every_errno
@every_position
@pytest.mark.parametrize("point", [Point.LABEL_WRITE, Point.STEP_READ])
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_label_is_refused(
    errors: Errors, begin: Step, point: Point, position: int, name: str
) -> None:
    errors.start(fail(point, position, name))
    refused = errors.refused(begin.ask)
    assert refused.name == OWN + "LabelRefused"
    assert str(errors.resources[position - 1].path) in refused.text
    assert reason(name) in refused.text.lower()
    errors.stands(Fate.GONE)
    # Nothing is in the way of another try.
    begin.ask(errors.run)
    errors.stands(begin.fate)
    errors.world.client.release(errors.run.name)
    errors.stands(Fate.GONE)


@every_errno
@every_position
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_label_cannot_be_read_when_it_is_opened(
    errors: Errors, begin: Step, position: int, name: str
) -> None:
    # Without the bystander there is nothing else to look at.
    errors.start(fail(Point.LABEL_READ, position, name), with_book=False)
    refused = errors.refused(begin.ask)
    assert refused.name == OWN + "ResourceRefused"
    assert str(errors.resources[position - 1].path) in refused.text
    assert reason(name) in refused.text.lower()
    errors.stands(Fate.GONE)


@every_errno
def test_a_runtime_folder_cannot_be_labelled(errors: Errors, name: str) -> None:
    errors.start(fail(Point.LABEL_WRITE, SIZE + 1, name))
    refused = errors.refused(LAUNCHED.ask)
    assert refused.name == OWN + "Failed"
    assert "runtime folder" in refused.text
    errors.stands(Fate.GONE)


@every_errno
@every_position
@pytest.mark.parametrize("point", [Point.LABEL_WRITE, Point.STEP_READ])
@pytest.mark.parametrize("how", SETTLINGS)
def test_a_way_back_is_refused(
    errors: Errors, how: str, point: Point, position: int, name: str
) -> None:
    """The last label is refused, and one of those that were set cannot be taken back."""
    # Taken back in reverse: the first that is undone is the last that was set.
    undone = (position + 1) // 2 if position < SIZE else SIZE - 1
    stuck = errors.world.resources[SIZE - 1 - undone]
    number = SIZE + undone
    errors.start(fail(Point.LABEL_WRITE, SIZE, "EIO"), fail(point, number, name))
    errors.count()
    refused = errors.refused(ACQUIRED.ask)
    assert refused.name == OWN + "Drift"
    assert str(stuck.path) in refused.text
    assert reason(name) in refused.text.lower()
    assert "release the VM" in refused.text
    errors.failed(stuck, reason(name))
    settle(errors, how)


@every_errno
@every_position
def test_a_way_back_is_not_on_the_disk(errors: Errors, position: int, name: str) -> None:
    """Its label is right and may not be after a power cut: the pair is not handed out."""
    undone = (position + 1) // 2 if position < SIZE else SIZE - 1
    stuck = errors.world.resources[SIZE - 1 - undone]
    errors.start(fail(Point.LABEL_WRITE, SIZE, "EIO"), fail(Point.LABEL_SYNC, undone, name))
    errors.count()
    refused = errors.refused(ACQUIRED.ask)
    assert refused.name == OWN + "LabelRefused"
    not_on_disk(errors, stuck, name)


def not_on_disk(errors: Errors, stuck: object, name: str) -> None:
    """What was taken back but for a sync: kept out of the pool until it is seen clean."""
    (resource,) = [one for one in errors.resources if one is stuck]
    if resource.access == "public":
        # It never carried a category: there is nothing to keep back.
        errors.stands(Fate.GONE)
        return
    errors.quarantined(resource, "not on the disk")
    errors.restart()
    errors.stands(Fate.GONE)


@every_errno
@every_position
@pytest.mark.parametrize("point", [Point.LABEL_WRITE, Point.STEP_READ])
@pytest.mark.parametrize(
    ("before", "how"), [(ACQUIRED, "release"), (ACQUIRED, "restart"), (LAUNCHED, "release")]
)
def test_a_release_is_refused(
    errors: Errors, before: Step, how: str, point: Point, position: int, name: str
) -> None:
    stuck = errors.world.resources[position - 1]
    number = SIZE + position
    if point is Point.LABEL_WRITE and before is LAUNCHED:
        number += 1  # of the runtime folder
    errors.start(fail(point, number, name), before=[before])
    refused = errors.refused(RELEASED.ask)
    assert refused.name == OWN + "Drift"
    assert str(stuck.path) in refused.text
    assert reason(name) in refused.text.lower()
    if before is LAUNCHED:
        # The unit's end, which is noticed as well, is reason enough to try again.
        errors.world.wait(
            "it is released", lambda: errors.run.name not in errors.world.client.vms()
        )
        errors.stands(Fate.GONE)
        return
    errors.failed(stuck, reason(name))
    settle(errors, how)


@every_errno
@every_position
def test_a_release_is_not_on_the_disk(errors: Errors, position: int, name: str) -> None:
    errors.start(fail(Point.LABEL_SYNC, position, name), before=[ACQUIRED])
    errors.count()
    RELEASED.ask(errors.run)
    findings = [body[0] for body in errors.world.client.seen("DriftFound")]
    assert [one["kind"].value for one in findings] == ["unsynced"]
    not_on_disk(errors, errors.world.resources[position - 1], name)


@pytest.mark.parametrize("what", ["builtins.KeyError:bug", "builtins.MemoryError:none"])
@every_position
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_fault_of_the_daemon_while_labelling(
    errors: Errors, begin: Step, position: int, what: str
) -> None:
    """Even what nobody has thought of leaves no label that nobody knows of."""
    errors.start(f"{Point.LABEL_WRITE}@{position}=raise:{what}")
    errors.count()
    with pytest.raises(BusError) as caught:
        begin.ask(errors.run)
    assert caught.value.name == OWN + "Failed"
    errors.stands(Fate.GONE)


@pytest.mark.parametrize("how", SETTLINGS)
@every_position
def test_a_fault_of_the_daemon_while_taking_back(errors: Errors, how: str, position: int) -> None:
    stuck = errors.world.resources[position - 1]
    errors.start(
        f"{Point.LABEL_WRITE}@{SIZE + position}=raise:builtins.KeyError:bug", before=[ACQUIRED]
    )
    refused = errors.refused(RELEASED.ask)
    assert refused.name == OWN + "Drift"
    errors.failed(stuck, "keyerror")
    settle(errors, how)
