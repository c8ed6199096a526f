# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash tier fails for a boundary that no scenario has come by."""

from pathlib import Path

import pytest

from svirtd.failpoints import BOUNDARIES, Point
from tests.crash import report
from tests.crash.report import Report, calls, merged, missing, take

# To find them takes a second.
CALLS = calls()


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Report:
    """A run that has left nothing out."""
    monkeypatch.setattr(report, "calls", lambda: CALLS)
    whole = Report()
    whole.reached(CALLS)
    for point, site in CALLS:
        if point in BOUNDARIES:
            whole.killed(point, site)
    return whole


def test_nothing_is_missing_where_all_was_reached(whole: Report) -> None:
    assert missing(whole) == []


@pytest.mark.parametrize(("point", "site"), CALLS, ids=[f"{p} {s}" for p, s in CALLS])
def test_each_call_counts(whole: Report, point: Point, site: str) -> None:
    key = f"{point} {site}"
    del whole.killed_at[key], whole.sites[key]
    (told, *_) = [line for line in missing(whole) if line.endswith(key)]
    assert told.startswith("no scenario")


def test_a_point_that_nothing_calls(whole: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = [(point, site) for point, site in CALLS if point is not Point.BOOK_WRITE]
    monkeypatch.setattr(report, "calls", lambda: rest)
    assert missing(whole) == ["nothing calls book-write"]


def test_a_new_call(whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.py").write_text("reach(Point.LABEL_AFTER)\nreach(Point.LABEL_READ)\n")
    monkeypatch.setattr(report, "_PACKAGE", tmp_path)
    monkeypatch.setattr(report, "calls", calls)
    told = [line for line in missing(whole) if "new.py" in line]
    assert told == [
        "no scenario kills at the call of label-after new.py:1",
        "no scenario reaches label-read new.py:2",
    ]


def test_the_sum_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(report.FOLDER, str(tmp_path))
    for number in (0, 1):
        one = Report(number, recoveries=1, errors=2, histories=25)
        one.killed(Point.LABEL_AFTER, "a.py:1")
        one.save()
    total = merged(tmp_path)
    assert (total.killed_at.total(), total.recoveries, total.errors) == (2, 2, 4)
    assert total.histories == 50


def test_each_test_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(report.FOLDER, str(tmp_path))
    assert [take(name) for name in ("a[1/2]", "b", "a[1/2]", "b")] == [True, True, False, False]
    assert merged(tmp_path) == Report()
    monkeypatch.delenv(report.FOLDER)
    assert [take("a[1/2]"), take("a[1/2]")] == [True, True]
