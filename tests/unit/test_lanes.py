# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lanes of ./test: what fails or dies in one is told and counts, whatever else passes."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as program
from tests import lanes
from tests.guest import parts
from tests.support import wait_for


def job(name: str, script: str) -> lanes.Job:
    return lanes.Job(name, ("/bin/sh", "-c", script))


def gone(pid: int) -> bool:
    """Say whether a process has ended, reaped by whoever it was left to or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo words; exit 3", "FAILED in"),
        ("echo words; kill -9 $$", "FAILED, ended by signal 9, in"),
        ("echo words; kill -15 $$", "FAILED, ended by signal 15, in"),
    ],
)
def test_one_that_does_not_pass_fails_all(number: int, script: str, told: str) -> None:
    jobs = [job("good", "echo fine"), job("bad", script), job("late", "echo fine")]
    shown = io.StringIO()
    assert lanes.run(jobs, number, shown) == ["bad"]
    lines = shown.getvalue().splitlines()
    # Nobody else was held up by it, and what it had said is there.
    assert any(line.startswith("== late: passed in") for line in lines)
    start = lines.index("== bad")
    assert lines[start + 1] == "words"
    assert lines[start + 2].startswith(f"== bad: {told}")


def test_all_pass() -> None:
    shown = io.StringIO()
    assert lanes.run([job(str(number), "true") for number in range(7)], 3, shown) == []
    assert shown.getvalue().count(": passed in") == 7


def test_as_many_at_once_as_there_are_lanes(tmp_path: Path) -> None:
    """Each waits for the other, and goes on only when both are there."""
    meet = "touch {0}; until [ -e {1} ]; do sleep 0.05; done"
    one, two = tmp_path / "one", tmp_path / "two"
    jobs = [job("one", meet.format(one, two)), job("two", meet.format(two, one))]
    assert lanes.run(jobs, 2, io.StringIO()) == []


@pytest.mark.parametrize(("number", "most"), [(1, 1), (2, 3)])
def test_two_that_wait_share_a_lane(tmp_path: Path, number: int, most: int) -> None:
    """A full one beside them keeps its lane; the terminal of a single lane is shared by none."""
    # Each notes how many are there when it comes, and stays until as many are as shall be.
    script = (
        f"mkdir {tmp_path}/$$; n=$(ls {tmp_path} | wc -l); echo $n >>{tmp_path}.seen;"
        f"until [ {most} = 1 ] || [ -e {tmp_path}.full ]; do"
        f"  [ $(ls {tmp_path} | wc -l) -lt {most} ] || touch {tmp_path}.full; sleep 0.05; done;"
        f"rmdir {tmp_path}/$$"
    )
    jobs = [
        lanes.Job(name, ("/bin/sh", "-c", script), waits=name.startswith("w"))
        for name in ("full", "w1", "more", "w2", "w3")
    ]
    assert lanes.run(jobs, number, io.StringIO()) == []
    seen = [int(line) for line in Path(f"{tmp_path}.seen").read_text("utf-8").split()]
    assert len(seen) == len(jobs)
    assert max(seen) <= most
    assert Path(f"{tmp_path}.full").exists() == (most > 1)


def test_what_a_dead_one_had_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    bad = job("bad", f"sleep 1000 & echo $! >{pid}; kill -9 $$")
    assert lanes.run([bad, job("good", "true")], 2, io.StringIO()) == ["bad"]
    wait_for("it has ended", lambda: gone(int(pid.read_text("utf-8"))))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_ended_ends_its_lanes(tmp_path: Path, signum: signal.Signals) -> None:
    files = [tmp_path / name for name in "ab"]
    commands = [("/bin/sh", "-c", f"echo $$ >{path}; exec sleep 1000") for path in files]
    script = (
        "import sys; from tests import lanes;"
        f"sys.exit(len(lanes.run([lanes.Job('x', c) for c in {commands}], 2, sys.stdout)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for("both run", lambda: all(f.exists() and f.read_text("utf-8") for f in files))
        process.send_signal(signum)
        assert process.wait(60) != 0
    assert all(gone(int(f.read_text("utf-8"))) for f in files)


def test_a_killed_lane_fails_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that ./test is, with a tier that is killed in the middle of its work."""
    monkeypatch.setattr(
        program,
        "TIERS",
        {"unit": ("/bin/true",), "bus": ("/bin/sh", "-c", "sleep 0.2; kill -9 $$")},
    )
    monkeypatch.setenv("SVIRT_TEST_LANES", "2")
    assert program.main(["unit", "bus"]) == 1
    assert program.main(["unit"]) == 0


def test_an_unknown_tier_is_not_passed_over() -> None:
    assert program.main(["unit", "nothing"]) == 2


def test_every_boot_and_every_tier_is_run() -> None:
    jobs = [job for name in program.TIERS for job in program.jobs_of(name, ())]
    names = [job.name for job in program.ordered(jobs)]
    assert sorted(names) == sorted(job.name for job in jobs)
    assert {f"guest {name}" for name in parts.names()} <= set(names)
    assert {"unit", "contract", "package", "bus", "attacks", "crash"} <= set(names)


def test_every_file_of_the_guest_is_in_one_boot() -> None:
    there = sorted(Path(__file__).parents[1].glob("guest/inside/test_*.py"))
    shared = parts.shares(there)
    last = "tests/guest/inside/test_z_audit.py"
    assert all(some[-1] == last and len(some) > 1 for some in shared)
    flat = [one for some in shared for one in some[:-1]]
    assert sorted([*flat, last]) == [f"tests/guest/inside/{path.name}" for path in there]
    # A file that nobody has measured has its place as well.
    more = parts.shares([*there, there[0].with_name("test_new.py")])
    assert ["tests/guest/inside/test_new.py" in some for some in more].count(True) == 1


def test_lanes_by_processors_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVIRT_TEST_LANES", raising=False)
    assert 1 <= lanes.number() <= max(1, len(os.sched_getaffinity(0)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert lanes.number() == 1
