# SPDX-License-Identifier: LGPL-2.1-or-later
"""Drop-ins as files: whole or not at all, nowhere else, and gone without a trace."""

import os
from pathlib import Path

import pytest

from svirtd.ctl import drop_ins
from svirtd.ctl.failures import Failure

UNIT = "vm@web.service"


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "system"
    monkeypatch.setattr(drop_ins, "FOLDER", str(folder))
    return folder


def test_it_is_written_read_and_removed(units: Path) -> None:
    assert drop_ins.read(UNIT) is None
    assert drop_ins.remove(UNIT) is False
    earlier = os.umask(0o077)
    try:
        for text in ("first\n", "second\n"):
            drop_ins.write(UNIT, text)
            assert drop_ins.read(UNIT) == text
    finally:
        os.umask(earlier)
    folder = units / f"{UNIT}.d"
    assert [one.name for one in folder.iterdir()] == ["50-svirtd.conf"]
    assert (folder / "50-svirtd.conf").stat().st_mode & 0o777 == 0o644
    assert drop_ins.remove(UNIT) is True
    assert list(units.iterdir()) == []


def test_somebody_elses_drop_ins_stay(units: Path) -> None:
    drop_ins.write(UNIT, "ours\n")
    theirs = units / f"{UNIT}.d" / "10-own.conf"
    theirs.write_text("theirs\n", "utf-8")
    drop_ins.remove(UNIT)
    assert list((units / f"{UNIT}.d").iterdir()) == [theirs]


def test_a_part_that_a_crash_left_is_no_hindrance(units: Path) -> None:
    drop_ins.write(UNIT, "first\n")
    part = units / f"{UNIT}.d" / ".50-svirtd.conf.part"
    part.write_text("half", "utf-8")
    drop_ins.write(UNIT, "second\n")
    assert drop_ins.read(UNIT) == "second\n"
    part.write_text("half", "utf-8")
    drop_ins.remove(UNIT)
    assert list(units.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "file", "part"])
def test_a_link_is_not_followed(units: Path, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "victim"
    target.write_text("theirs\n", "utf-8")
    units.mkdir()
    folder = units / f"{UNIT}.d"
    match what:
        case "folder":
            folder.symlink_to(outside)
            for work in (lambda: drop_ins.write(UNIT, "x"), lambda: drop_ins.remove(UNIT)):
                with pytest.raises(Failure, match="link"):
                    work()
        case "file":
            folder.mkdir()
            (folder / "50-svirtd.conf").symlink_to(target)
            with pytest.raises(Failure):
                drop_ins.read(UNIT)
            drop_ins.write(UNIT, "x")  # in its place
        case "part":
            folder.mkdir()
            (folder / ".50-svirtd.conf.part").symlink_to(target)
            drop_ins.write(UNIT, "x")
    assert target.read_text("utf-8") == "theirs\n"
    assert [one.name for one in outside.iterdir()] == ["victim"]


def test_a_folder_that_others_write_is_refused(units: Path) -> None:
    drop_ins.write(UNIT, "x")
    (units / f"{UNIT}.d").chmod(0o777)
    with pytest.raises(Failure, match="alone"):
        drop_ins.write(UNIT, "y")
