# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs jobs in lanes: as many at once as there are lanes, each shown when it has ended.

A job that waits most of its time takes half of a lane.

A job is a process with all that it starts in one process group, and it has passed if that process
has exited with 0: one that was killed has failed, and nothing of it is left running.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_LOOK_S: Final = 0.1
# How long a job may take to undo what it has made, once it was asked to end.
_END_S: Final = 30.0
# What one lane needs: most of it is a guest's.
_LANE_BYTES: Final = 3 << 30
_MOST: Final = 4
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and how it is called in what is shown."""

    name: str
    command: tuple[str, ...]
    waits: bool = False
    """For other processes or for time, about half as long as it takes."""


def number() -> int:
    """Return how many lanes this machine has: a processor and a guest's memory for each."""
    asked = os.environ.get("SVIRT_TEST_LANES")
    if asked:
        return int(asked)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(_MOST, len(os.sched_getaffinity(0)), memory // _LANE_BYTES))


def run(jobs: Iterable[Job], lanes: int, shown: IO[str]) -> list[str]:
    """Run the jobs, those that come first and fit begin first; returns the names of the failed.

    A single lane, or a single job, says at once what it has to say. A signal that ends this ends
    the jobs that still run.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    failed: list[str] = []
    at_once = lanes == 1 or len(waiting) == 1
    with _noted_signals() as caught:
        try:
            while (waiting or running) and not caught:
                while (fits := _that_fits(waiting, running, lanes)) is not None:
                    waiting.remove(fits)
                    running.append(_Running(fits, shown, at_once=at_once))
                ended = [one for one in running if one.has_ended()]
                for one in ended:
                    running.remove(one)
                    if not one.conclude():
                        failed.append(one.job.name)
                if not ended:
                    time.sleep(_LOOK_S)
        finally:
            for one in running:
                one.end()
    if caught:
        sys.exit(128 + caught[0])
    return failed


def _that_fits(waiting: Sequence[Job], running: Sequence["_Running"], lanes: int) -> Job | None:
    room = 2 * lanes - sum(_halves(one.job, lanes) for one in running)
    return next((job for job in waiting if _halves(job, lanes) <= room), None)


def _halves(job: Job, lanes: int) -> int:
    # A single lane has one terminal.
    return 1 if job.waits and lanes > 1 else 2


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Have signals that ask for an end noted: raised amid a start, they would lose the job."""
    caught: list[int] = []
    before = {
        number_: signal.signal(number_, lambda signum, _frame: caught.append(signum))
        for number_ in _ENDING
    }
    try:
        yield caught
    finally:
        for number_, handler in before.items():
            signal.signal(number_, handler)


class _Running:
    """A job that has begun."""

    def __init__(self, job: Job, shown: IO[str], *, at_once: bool) -> None:
        self.job = job
        self._shown = shown
        self._start = time.monotonic()
        # Open until the job has ended.
        self._output = None if at_once else tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115
        self._say(f"== {job.name}" if at_once else f"-- {job.name} begins")
        self.process = subprocess.Popen(
            job.command,
            # Alone it has the terminal, for a debugger, and Ctrl-C.
            stdin=None if at_once else subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT if self._output else None,
            cwd=Path(__file__).parents[1],
            process_group=None if at_once else 0,
        )

    def has_ended(self) -> bool:
        """Say whether the job has ended. It is not reaped: its number stays its own."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, options) is not None

    def conclude(self) -> bool:
        """End what the job has left, show what it said and how it went; says whether it passed."""
        self._reap()
        if self._output is not None:
            self._say(f"== {self.job.name}")
            self._output.seek(0)
            text = self._output.read().decode("utf-8", "replace")
            self._shown.write(text if text.endswith("\n") or not text else f"{text}\n")
            self._output.close()
        took_s = time.monotonic() - self._start
        self._say(f"== {self.job.name}: {_how(self.process.returncode)} in {took_s:.0f} s")
        return self.process.returncode == 0

    def end(self) -> None:
        """Have the job end, and see to it if it does not."""
        self.process.terminate()
        deadline = time.monotonic() + _END_S
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if self._output is None:
            self.process.kill()
        self._reap()
        if self._output is not None:
            self._output.close()

    def _reap(self) -> None:
        if self._output is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _say(self, text: str) -> None:
        self._shown.write(f"{text}\n")
        self._shown.flush()


def _how(code: int) -> str:
    if code == 0:
        return "passed"
    return f"FAILED, ended by signal {-code}," if code < 0 else "FAILED"
