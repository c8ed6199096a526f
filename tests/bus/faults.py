# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trouble made for a running daemon: its bus and its systemd stopped or ended, its end awaited."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.fixtures import leftovers
from tests.support import Client, Daemon, wait_for

T = TypeVar("T")

# PID 1 of the sandbox takes no SIGSTOP from inside; its control group can be frozen.
_SYSTEMD = Path("/sys/fs/cgroup/init.scope")


@contextlib.contextmanager
def running(folder: Path, *, env: dict[str, str] | None = None, **more: Any) -> Iterator[Daemon]:
    """A daemon for one test; it must leave nothing, and stop in good order."""
    daemon = Daemon(folder, **more)
    daemon.env |= env or {}
    daemon.start()
    try:
        yield daemon
        if daemon.process is None:
            daemon.start()
        assert leftovers(daemon) == ""
        assert daemon.stop() == 0, daemon.output()
    finally:
        if daemon.process is not None:
            daemon.kill()


def restarted(daemon: Daemon) -> None:
    """Start it again as systemd would, without fail points."""
    daemon.failpoints = ""
    daemon.start()


def ended(daemon: Daemon) -> int:
    """Wait until it has ended by itself, and return its exit code."""
    assert daemon.process is not None
    code = daemon.process.wait(20)
    daemon.process = None
    return code


@contextlib.contextmanager
def in_background(call: Callable[[Client], T]) -> Iterator[Future[T]]:
    """Call with a client of its own in another thread."""

    def work() -> T:
        client = Client()
        try:
            return call(client)
        finally:
            client.close()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@contextlib.contextmanager
def systemd_stopped() -> Iterator[None]:
    """systemd does nothing, and gets what is sent to it once it goes on."""
    (_SYSTEMD / "cgroup.freeze").write_text("1")
    try:
        events = _SYSTEMD / "cgroup.events"
        wait_for("systemd stands still", lambda: "frozen 1" in events.read_text())
        yield
    finally:
        (_SYSTEMD / "cgroup.freeze").write_text("0")


def bus_process() -> int:
    """The bus daemon's process."""
    argv = ["systemctl", "show", "--property=MainPID", "--value", "dbus.service"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def bus_stopped() -> Iterator[None]:
    """The bus daemon does nothing, and reads what is sent to it once it goes on."""
    pid = bus_process()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def end_bus() -> None:
    """End the bus daemon; systemd starts another when somebody connects."""
    pid = bus_process()
    os.kill(pid, signal.SIGKILL)
    wait_for("the bus is gone", lambda: bus_process() != pid)

    def back() -> bool:
        # Its socket stays: this starts a bus, which systemd joins a moment later.
        argv = ["busctl", "--no-pager", "status", "org.freedesktop.systemd1"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    wait_for("systemd is on the new bus", back)


@contextlib.contextmanager
def held(file: Path) -> Iterator[Callable[[], None]]:
    """What comes to a fail point with the action `hold:FILE` stays there: until what this gives is
    called, or the block is over."""
    file.touch()
    try:
        yield file.unlink
    finally:
        file.unlink(missing_ok=True)


def reached(trace: Path, point: str, times: int = 1) -> bool:
    """Say whether the daemon that traces into this file has come to a fail point so often."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return sum(line.split()[0] == point for line in lines) >= times
