# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of the book for callers: made and looked at as a whole, then streamed through a socket.

The bus may not carry the descriptor of a file of the daemon's; it carries sockets.
"""

import asyncio
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from os import close
from typing import Final

from svirtd.book import copies
from svirtd.book.store import Store
from svirtd.core.model import Caller
from svirtd.engine.authorize import Action, Authority
from svirtd.errors import BookDamaged, Failed, LimitsExceeded
from svirtd.host.journal import Journal, MessageId, Priority
from svirtd.host.streams import send_file

_AT_ONCE: Final = 2
_COPY_S: Final = 300.0
_IDLE_S: Final = 60.0
_SEND_S: Final = 1800.0


class Backups:
    """Makes copies, each in a thread of its own that ends with it. close() ends them all."""

    def __init__(
        self,
        path: str,
        store: Store,
        journal: Journal,
        authority: Authority,
        *,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._path = path
        self._authority = authority
        self._store = store
        self._journal = journal
        self._idle_s = idle_s
        self._running = 0
        self._stopped = threading.Event()
        self._streams: set[socket.socket] = set()

    async def open(self, caller: Caller) -> int:
        """Return a socket from which a copy of the book as it is now can be read to its end.

        The copy is complete and was looked at before this returns. The caller closes the socket.
        Raises AccessDenied, LimitsExceeded, Failed.
        """
        await self._authority.authorize(caller, Action.BACKUP)
        if self._running >= _AT_ONCE:
            raise LimitsExceeded(
                f"{_AT_ONCE} backups are under way; read theirs to the end, then try again"
            )
        self._running += 1
        thread = ThreadPoolExecutor(1, "backup")
        try:
            fd = await self._copy(thread)
            return self._send(thread, fd)
        except BaseException:
            self._running -= 1
            thread.shutdown(wait=False)
            raise

    def close(self) -> None:
        """Have every copy end soon, complete or not."""
        self._stopped.set()
        for stream in self._streams:
            with suppress(OSError):  # it has just ended
                stream.shutdown(socket.SHUT_RDWR)

    async def _copy(self, thread: ThreadPoolExecutor) -> int:
        end_s = time.monotonic() + _COPY_S

        def stopped() -> bool:
            return self._stopped.is_set() or time.monotonic() > end_s

        try:
            work = thread.submit(copies.make, self._path, stopped)
        except RuntimeError as error:
            raise Failed(f"no thread can be started ({error}); try again later") from error
        try:
            return await asyncio.wrap_future(work)
        except BookDamaged as error:
            self._store.note_damage(error)
            raise
        except asyncio.CancelledError:
            # Its descriptor has nobody to go to.
            work.add_done_callback(_drop)
            raise

    def _send(self, thread: ThreadPoolExecutor, fd: int) -> int:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            close(fd)
            raise Failed(f"no socket can be made: {error.strerror}") from error
        self._streams.add(ours)
        loop = asyncio.get_running_loop()
        sent = thread.submit(self._send_all, fd, ours)
        thread.shutdown(wait=False)
        sent.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, ours))
        return theirs.detach()

    def _send_all(self, fd: int, stream: socket.socket) -> None:
        try:
            with closing(stream):
                send_file(fd, stream, idle_s=self._idle_s, deadline_s=_SEND_S)
        except OSError as error:
            self._journal.record(
                MessageId.WARNING,
                f"a copy of the book was not read to its end: {error}",
                priority=Priority.WARNING,
            )
        finally:
            close(fd)

    def _ended(self, stream: socket.socket) -> None:
        self._streams.discard(stream)
        self._running -= 1


def _drop(work: Future[int]) -> None:
    if not work.cancelled() and work.exception() is None:
        close(work.result())
