# SPDX-License-Identifier: LGPL-2.1-or-later
"""Has trees walked by workers: the daemon's end of host/tree_server.py and its workers.

The daemon hands out directories and takes back what is left of them; nobody waits for a worker but
the job that has it.
"""

import asyncio
import contextlib
import json
import math
import os
import select
import signal
import socket
import threading
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from svirtd.core.trees import Report, Rule, Sweep, Tally
from svirtd.errors import Failed, StartError
from svirtd.host import tree_server
from svirtd.host.tree_entries import frame

# Longer than a worker's own patience with a file system.
_SILENCE_S: Final = 90.0
_END_MS: Final = 5000
_GONE: Final = "the process that works on trees has ended; svirtd starts again"


class Offence(Exception):
    """An entry offends against a rule: which, where below the root, and what was found."""

    def __init__(self, rule: Rule, path: str, found: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.path = path
        self.found = found


class Unwanted(Exception):
    """Whoever had the tree walked does not want the rest."""


class Stuck(Failed):
    """A worker has not ended, and may still label: nothing may be undone beside it."""


@dataclass(frozen=True, slots=True)
class Other:
    """Entries with another label than the root's: their inodes, and the path of one of them."""

    label: str | None
    inodes: bytes
    example: str


Remember = Callable[[Sequence[Other]], Awaitable[None]]
"""Writes down what entries carry, before that is changed; raises if they may not be labelled."""


async def _nothing(_: Sequence[Other]) -> None:
    raise Failed("a walk that sets nothing has nothing to remember")


class Crew:
    """Starts workers. `start` must come before any thread; the rest is for one event loop."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control = control
        self.pid = pid

    @classmethod
    def start(cls) -> Self:
        """Fork the server. Raises StartError if this process has threads already."""
        if threading.active_count() > 1:
            raise StartError("the workers' server must be forked before the first thread starts")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon, pid = os.getpid(), os.fork()
        if pid == 0:
            tree_server.run(theirs.detach(), daemon)
        theirs.close()
        return cls(ours, pid)

    def close(self) -> None:
        """End the server and its workers, and wait for that."""
        self._control.close()
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_END_MS):
            os.kill(self.pid, signal.SIGKILL)
        os.close(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    async def lost(self) -> None:
        """Wait for the server's end, and raise Failed then."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        # It never says anything.
        loop.add_reader(self._control, end)
        try:
            await ended
        finally:
            loop.remove_reader(self._control)
        raise Failed(_GONE)

    async def sweep(
        self,
        root: int,
        sweep: Sweep,
        *,
        remember: Remember = _nothing,
        told: Callable[[int, float], None] = lambda _done, _part: None,
        unwanted: Callable[[], bool] = lambda: False,
        limit: int = 0,
    ) -> Report:
        """Walk the tree of an open directory; returns what was seen.

        `told` hears how many entries are done and which part of the tree that may be, 0 to 1;
        when `unwanted` says so, all stop. More than `limit` entries (0: any number) are an Offence.
        No worker is left when this returns or raises: Offence, Unwanted, Failed, what `remember`
        raises, or Stuck, in which case there may be one.
        """
        # As many as there are cores for the daemon, which waits meanwhile.
        count = min(tree_server.WORKERS_MAX, len(os.sched_getaffinity(0)))
        streams = [
            await asyncio.open_unix_connection(sock=one) for one in self._workers(root, count)
        ]
        walk = _Walk(sweep, remember, told, unwanted, limit)
        error: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for reader, writer in streams:
                    group.create_task(walk.lead(reader, writer))
        except* Exception as errors:  # noqa: BLE001 -- the first is raised
            error = _first(errors)
        finally:
            await _see_off(streams)
        if error is not None:
            raise error
        return walk.report

    def _workers(self, root: int, count: int) -> list[socket.socket]:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
        try:
            theirs = [theirs.fileno() for _, theirs in pairs]
            # One short message at a time, to a process that does nothing but take them.
            socket.send_fds(self._control, [b"work"], [root, *theirs])
        except OSError as error:
            for ours, _ in pairs:
                ours.close()
            raise Failed(_GONE) from error
        finally:
            for _, end in pairs:
                end.close()
        return [ours for ours, _ in pairs]


@contextlib.contextmanager
def beside_crew() -> Iterator[Crew]:
    """Run what is inside beside a server of workers. Raises StartError, OSError."""
    crew = Crew.start()
    try:
        yield crew
    finally:
        crew.close()


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Return what ended a walk: an offence before what it led to elsewhere."""
    flat = list(_leaves(errors))
    return next((one for one in flat if isinstance(one, Offence)), flat[0])


def _leaves(errors: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for one in errors.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


async def _see_off(
    streams: Sequence[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
) -> None:
    """Wait for the end of every worker; it comes with the end of its channel. Raises Stuck."""
    for _, writer in streams:
        with contextlib.suppress(OSError):
            writer.write_eof()
    waiting = asyncio.gather(*(_drained(reader) for reader, _ in streams))
    # Whoever is cancelled waits all the same: what comes next must not meet a worker.
    cancelled = False
    deadline = asyncio.get_running_loop().time() + _SILENCE_S
    while not waiting.done() and asyncio.get_running_loop().time() < deadline:
        try:
            await asyncio.wait({waiting}, timeout=_SILENCE_S)
        except asyncio.CancelledError:
            cancelled = True
    for _, writer in streams:
        writer.close()
    if not waiting.done():
        waiting.cancel()
        raise Stuck("a worker on the tree does not end: its file system does not answer")
    if cancelled:
        raise asyncio.CancelledError


async def _drained(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


class _Walk:
    """What is still to be walked, and what was seen; shared by those who lead a worker each."""

    def __init__(
        self,
        sweep: Sweep,
        remember: Remember,
        told: Callable[[int, float], None],
        unwanted: Callable[[], bool],
        limit: int,
    ) -> None:
        self._sweep = sweep
        self._remember = remember
        self._told = told
        self._unwanted = unwanted
        self._limit = limit
        # Folders, each with the part of the tree that it is taken for.
        self._waiting: list[tuple[str, float]] = [("", 1.0)]
        self._begun = False
        self._moved = asyncio.Condition()
        # The writers of workers that have something to do, those of them that were asked to give
        # some of it away, and how many have nothing.
        self._busy: set[asyncio.StreamWriter] = set()
        self._asked: set[asyncio.StreamWriter] = set()
        self._idle = 0
        self._done_part = 0.0
        self._under_way: dict[asyncio.StreamWriter, tuple[int, float]] = {}
        self.report = Report()

    async def lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have one worker work as long as there is something to do."""
        self._instruct(writer)
        while folders := await self._next(writer):
            root, self._begun = not self._begun, True
            writer.write(frame({"walk": folders, "root": root}))
            part = sum(part for _, part in folders)
            part -= await self._follow(reader, writer)
            async with self._moved:
                self._done_part += part
                self._busy.discard(writer)
                self._asked.discard(writer)
                self._moved.notify_all()
            self._tell()

    def _instruct(self, writer: asyncio.StreamWriter) -> None:
        sweep = self._sweep
        header = {
            "mode": sweep.mode,
            "target": sweep.target,
            "common": sweep.common,
            "owner_uid": sweep.owner_uid,
            "links": sweep.links,
            "sources": list(sweep.sources),
            "held": list(sweep.held),
            "others": len(sweep.others),
        }
        writer.write(frame(header))
        for label, inodes in sweep.others.items():
            writer.write(frame({"label": label}, array("Q", inodes).tobytes()))

    async def _next(self, writer: asyncio.StreamWriter) -> list[tuple[str, float]]:
        """Return folders for a worker that has none, or none if all is done."""
        async with self._moved:
            self._idle += 1
            try:
                while not self._waiting:
                    if not self._busy:
                        return []
                    for other in self._busy - self._asked:
                        self._asked.add(other)
                        other.write(frame({"share": True}))
                    await self._moved.wait()
                take = math.ceil(len(self._waiting) / self._idle)
            finally:
                self._idle -= 1
            taken, self._waiting = self._waiting[:take], self._waiting[take:]
            self._busy.add(writer)
            return taken

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        """Take what a worker says until it is through; returns the part of the tree that it has
        given away."""
        given = 0.0
        while True:
            header, blob = await _receive(reader)
            if self._unwanted():
                raise Unwanted
            if "so_far" in header:
                self._under_way[writer] = header["so_far"], header["part"]
                self._tell()
            elif "shared" in header:
                shared = [(path, part) for path, part in header["shared"]]
                given += sum(part for _, part in shared)
                async with self._moved:
                    self._waiting += shared
                    self._asked.discard(writer)
                    self._moved.notify_all()
            elif "fault" in header:
                rule, path, found = header["fault"]
                raise Offence(Rule(rule), path, found)
            elif "others" in header:
                await self._remember(_others(header["others"], blob))
                writer.write(frame({"go": True}))
            else:
                self._under_way.pop(writer, None)
                self.report = self.report.plus(_read(header))
                return given

    def _tell(self) -> None:
        done = self.report.done + sum(done for done, _ in self._under_way.values())
        part = self._done_part + sum(part for _, part in self._under_way.values())
        if self._limit and done > self._limit:
            raise Offence(Rule.FAILED, "", f"it has more than {self._limit} entries")
        self._told(done, part)


async def _receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    try:
        async with asyncio.timeout(_SILENCE_S):
            lengths = await reader.readexactly(8)
            header = await reader.readexactly(int.from_bytes(lengths[:4], "big"))
            return json.loads(header), await reader.readexactly(int.from_bytes(lengths[4:], "big"))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise Failed("a worker on the tree has ended before its time; see the journal") from error
    except TimeoutError:
        raise Failed(
            f"nothing was heard of a worker on the tree for {_SILENCE_S:.0f} s; its file system "
            "may not answer"
        ) from None


def _others(header: Sequence[Sequence[Any]], blob: bytes) -> list[Other]:
    found, at = [], 0
    for label, count, example in header:
        found.append(Other(label, blob[at : at + 8 * count], example))
        at += 8 * count
    return found


def _read(header: dict[str, Any]) -> Report:
    count, mounted = header["mounts"]
    return Report(
        done=header["entries"],
        labels={label: Tally(number, tuple(some)) for label, number, some in header["labels"]},
        faults={Rule(rule): Tally(n, (path,)) for rule, n, path, _ in header["faults"]},
        reasons={Rule(rule): why for rule, _, _, why in header["faults"]},
        mounts=Tally(count, tuple(mounted)),
    )
