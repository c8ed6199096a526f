# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named boundaries at which a test ends the daemon, holds it up, or has a step fail.

Nothing happens at any of them unless `arm` was called, which only `svirtd --test-failpoints` does;
until then `reach` is an empty function. What is armed comes from the environment, as
`POINT[@N[+]]=ACTION` parts separated by blanks: at the N-th time that the point is reached (every
time without it, from the N-th time on with "+") the action is taken. Actions: `kill` (SIGKILL),
`sleep:SECONDS` (of the reaching thread), `hold:FILE` (that thread goes on once the file is gone),
`errno:NAME` (OSError), `raise:MODULE.CLASS:TEXT`.
`trace:FILE`, alone or among the parts, appends a line for every point that is reached: its name and
the module and line that reached it. `from:FILE` has a running daemon armed: with the parts that are
in the file, counted from when it was put there, until another one is put in its place.
"""

import enum
import errno
import functools
import importlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "SVIRTD_FAILPOINTS"
_TRACE: Final = "trace:"
_FROM: Final = "from:"
# From a tracer up: what calls all of them, reach(), and the one that we are after.
_SITE_DEPTH: Final = 3
_LOOK_S: Final = 0.01


class Point(enum.StrEnum):
    """Every boundary between two things that must not be torn apart, in the order of a request."""

    # The book's own start; a member that is added takes a scenario that reaches it.
    BOOK_MIGRATED = "book-migrated"  # the tables are there, the pool is not yet
    LOG_GROWN = "log-grown"
    BEGIN_BEFORE = "begin-before"  # decided; nothing is in the book
    COMMIT_BEFORE = "commit-before"  # the transaction is complete and not committed
    COMMIT_AFTER = "commit-after"
    BEGIN_AFTER = "begin-after"  # the entry is durable; nothing is labelled
    LABEL_BEFORE = "label-before"
    LABEL_AFTER = "label-after"
    TREE_REMEMBERED = "tree-remembered"  # what a part of a tree had is in the book, not yet changed
    FOLDER_MADE = "folder-made"  # the runtime folder
    START_BEFORE = "start-before"
    START_QUEUED = "start-queued"  # systemd has the job and has not said how it ended
    START_AFTER = "start-after"  # the unit runs, its label is not checked yet
    START_CHECKED = "start-checked"
    DEVICES_SET = "devices-set"  # the unit may open the device nodes that the VM holds now
    CLOSE_BEFORE = "close-before"  # all is done but for the closing entry
    CLOSE_AFTER = "close-after"
    PUBLISH_BEFORE = "publish-before"
    PUBLISH_AFTER = "publish-after"
    REPLY_BEFORE = "reply-before"
    REPLY_AFTER = "reply-after"
    END_NOTICED = "end-noticed"  # of a unit
    STOP_BEFORE = "stop-before"
    STOP_AFTER = "stop-after"
    UNDO_BEFORE = "undo-before"  # a label's way back, of a release or of a failure
    UNDO_AFTER = "undo-after"
    UNDO_SYNCED = "undo-synced"
    FOLDER_REMOVED = "folder-removed"
    FAILED_BEFORE = "failed-before"  # an operation is about to be left open
    FAILED_AFTER = "failed-after"
    RECOVER_BEFORE = "recover-before"
    SETTLE_BEFORE = "settle-before"  # one operation that was cut off
    SETTLE_AFTER = "settle-after"
    UNITS_BEFORE = "units-before"  # the passes of recovery
    CALLERS_BEFORE = "callers-before"
    QUARANTINE_BEFORE = "quarantine-before"
    RECOVER_AFTER = "recover-after"
    # Inside a step, for errors rather than ends.
    LABEL_WRITE = "label-write"
    LABEL_READ = "label-read"  # every look at a label, those of the watch among them
    STEP_READ = "step-read"  # the look before a label is changed
    LABEL_SYNC = "label-sync"
    BOOK_WRITE = "book-write"


# Where a daemon may be ended; at the others only errors are put in.
_ERRORS_ONLY: Final = frozenset(
    (Point.LABEL_WRITE, Point.LABEL_READ, Point.STEP_READ, Point.LABEL_SYNC, Point.BOOK_WRITE)
)
BOUNDARIES: Final = tuple(point for point in Point if point not in _ERRORS_ONLY)


@dataclass(frozen=True, slots=True)
class _Armed:
    first: int
    last: int | None
    act: Callable[[], None]


def _nothing(_point: Point) -> None:
    pass


_reach: Callable[[Point], None] = _nothing


def reach(point: Point) -> None:
    """Say that a boundary is reached. Raises what a test has asked for, nothing otherwise."""
    _reach(point)


def disarm() -> None:
    """Have none of the points do anything, in a process that a daemon has forked for itself."""
    global _reach  # noqa: PLW0603 -- one process, one set of points
    _reach = _nothing


def arm(environment: Mapping[str, str]) -> None:
    """Have the points do what the environment says. ValueError for what is not understood."""
    global _reach  # noqa: PLW0603 -- one process, one set of points
    text = environment.get(VARIABLE, "")
    parts = text.split()
    tracers = [_tracer(part.removeprefix(_TRACE)) for part in parts if part.startswith(_TRACE)]
    files = [_of_file(part.removeprefix(_FROM)) for part in parts if part.startswith(_FROM)]
    actors = [_parse(part) for part in parts if not part.startswith((_TRACE, _FROM))]
    if parts:
        _reach = _all_of([*tracers, *files, *([_actor(actors)] if actors else [])])


def _all_of(acts: Sequence[Callable[[Point], None]]) -> Callable[[Point], None]:
    def act(point: Point) -> None:
        for one in acts:
            one(point)

    return act


def _tracer(path: str) -> Callable[[Point], None]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def trace(point: Point) -> None:
        site = sys._getframe(_SITE_DEPTH)
        os.write(fd, f"{point} {_module(site.f_code.co_filename)}:{site.f_lineno}\n".encode())

    return trace


@functools.cache
def _module(path: str) -> str:
    return os.path.relpath(path, os.path.dirname(__file__))


def _actor(parts: list[tuple[Point, _Armed]]) -> Callable[[Point], None]:
    reached: Counter[Point] = Counter()
    lock = threading.Lock()

    def act(point: Point) -> None:
        with lock:
            reached[point] += 1
            times = reached[point]
        for armed_point, armed in parts:
            if armed_point is point and armed.first <= times <= (armed.last or times):
                armed.act()

    return act


def _of_file(path: str) -> Callable[[Point], None]:
    lock = threading.Lock()
    known: tuple[int, int] | None = None
    actor: Callable[[Point], None] = _nothing

    def act(point: Point) -> None:
        nonlocal known, actor
        with lock:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                return
            if (found.st_ino, found.st_mtime_ns) != known:
                known = found.st_ino, found.st_mtime_ns
                with open(path, encoding="utf-8") as file:
                    actor = _actor([_parse(part) for part in file.read().split()])
            asked = actor
        asked(point)

    return act


def _parse(part: str) -> tuple[Point, _Armed]:
    where, separator, action = part.partition("=")
    name, counted, number = where.partition("@")
    if not separator:
        raise ValueError(f"fail point {part!r}: expected POINT[@N[+]]=ACTION")
    first = int(number.removesuffix("+")) if counted else 1
    last = None if not counted or number.endswith("+") else first
    try:
        return Point(name), _Armed(first, last, _action(action))
    except (AttributeError, ImportError) as error:
        raise ValueError(f"fail point {part!r}: {error}") from error


def _action(text: str) -> Callable[[], None]:
    kind, _, argument = text.partition(":")
    match kind:
        case "kill":
            return lambda: os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            seconds = float(argument)
            return lambda: time.sleep(seconds)
        case "hold":
            return lambda: _hold(argument)
        case "errno":
            number = getattr(errno, argument)
            return _raiser(OSError, number, os.strerror(number))
        case "raise":
            name, _, message = argument.partition(":")
            module, _, cls = name.rpartition(".")
            return _raiser(getattr(importlib.import_module(module), cls), message.replace("_", " "))
        case _:
            raise ValueError(f"fail point action {text!r} is not known")


def _hold(path: str) -> None:
    while os.path.exists(path):
        time.sleep(_LOOK_S)


def _raiser(cls: type[Exception], *arguments: object) -> Callable[[], None]:
    def fail() -> None:
        raise cls(*arguments)

    return fail
