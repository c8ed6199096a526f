# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fail points: nothing unless armed, and then what was asked for, when it was."""

import errno
import inspect
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd import failpoints
from svirtd.failpoints import VARIABLE, Point, arm, reach


@pytest.fixture(autouse=True)
def disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(failpoints, "_reach", failpoints._nothing)
    yield
    monkeypatch.undo()
    assert failpoints._reach is failpoints._nothing


def test_nothing_is_armed_by_importing_or_by_an_empty_environment() -> None:
    arm({})
    assert failpoints._reach is failpoints._nothing
    for point in Point:
        reach(point)


def test_the_nth_time_only() -> None:
    arm({VARIABLE: "label-write@2=errno:ENOSPC label-read@3+=errno:EIO"})
    reach(Point.LABEL_WRITE)
    with pytest.raises(OSError, match="No space left") as caught:
        reach(Point.LABEL_WRITE)
    assert caught.value.errno == errno.ENOSPC
    reach(Point.LABEL_WRITE)
    reach(Point.LABEL_READ)
    reach(Point.LABEL_READ)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            reach(Point.LABEL_READ)
    reach(Point.UNDO_BEFORE)


def test_a_file_arms_what_runs(tmp_path: Path) -> None:
    """Each one that is put there counts anew; until there is one nothing is armed."""
    file, other = tmp_path / "armed", tmp_path / "other"
    arm({VARIABLE: f"from:{file} label-read@4=errno:EIO"})
    reach(Point.LABEL_WRITE)
    for name in ("ENOSPC", "EDQUOT"):
        other.write_text(f"label-write@2=errno:{name} label-write@3=errno:{name}")
        other.rename(file)
        reach(Point.LABEL_WRITE)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
                reach(Point.LABEL_WRITE)
        reach(Point.LABEL_WRITE)
    other.write_text("")
    other.rename(file)
    reach(Point.LABEL_WRITE)
    # What the environment arms counts from the beginning.
    for _ in range(3):
        reach(Point.LABEL_READ)
    with pytest.raises(OSError, match="Input/output error"):
        reach(Point.LABEL_READ)


def test_a_thread_is_held_while_a_file_is_there(tmp_path: Path) -> None:
    file = tmp_path / "hold"
    arm({VARIABLE: f"undo-before=hold:{file}"})
    reach(Point.UNDO_BEFORE)
    file.touch()
    reach(Point.UNDO_AFTER)
    thread = threading.Thread(target=reach, args=[Point.UNDO_BEFORE])
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    file.unlink()
    thread.join(20)
    assert not thread.is_alive()


def test_any_exception() -> None:
    arm({VARIABLE: "book-write=raise:sqlite3.OperationalError:disk_I/O_error"})
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        reach(Point.BOOK_WRITE)


def test_a_trace(tmp_path: Path) -> None:
    arm({VARIABLE: f"trace:{tmp_path / 'trace'}"})
    frame = inspect.currentframe()
    assert frame is not None
    line = frame.f_lineno
    reach(Point.BEGIN_BEFORE)
    reach(Point.REPLY_AFTER)
    here = os.path.relpath(__file__, os.path.dirname(failpoints.__file__))
    assert (tmp_path / "trace").read_text().splitlines() == [
        f"begin-before {here}:{line + 1}",
        f"reply-after {here}:{line + 2}",
    ]


def test_a_trace_beside_other_actions(tmp_path: Path) -> None:
    arm({VARIABLE: f"trace:{tmp_path / 'trace'} label-write@2=errno:EIO"})
    reach(Point.LABEL_WRITE)
    with pytest.raises(OSError, match="Input/output error"):
        reach(Point.LABEL_WRITE)
    names = [line.split()[0] for line in (tmp_path / "trace").read_text().splitlines()]
    assert names == ["label-write", "label-write"]


@pytest.mark.parametrize(
    "text",
    [
        "label-write",
        "nowhere=kill",
        "label-write=dance",
        "@1=kill",
        "label-write=errno:ENOTHING",
        "book-write=raise:sqlite3.Nothing:text",
        "book-write=raise:no.such.Module:text",
    ],
)
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"fail point|not a valid Point"):
        arm({VARIABLE: text})
