# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine works with: the book, the kernel, the service manager, the log, the settings."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from svirtd.book.store import Store
from svirtd.config import Config
from svirtd.core.model import Contexts
from svirtd.core.pool import Permutation, Shape
from svirtd.core.rules import Rules
from svirtd.engine.authorize import Authority
from svirtd.engine.digests import Digests
from svirtd.engine.enforcement import Enforcement
from svirtd.engine.goals import SiteGoals
from svirtd.errors import Failed
from svirtd.host.bus import Connection
from svirtd.host.crew import Crew
from svirtd.host.journal import Journal
from svirtd.host.kernel import Kernel
from svirtd.host.machined import Machined
from svirtd.host.opener import Opener
from svirtd.host.systemd import Systemd

T = TypeVar("T")

_THREADS_START_S: Final = 10.0


@dataclass(slots=True)
class Doors:
    """Built once by the daemon; `config` and the known goals alone change (reload)."""

    config: Config
    store: Store
    shape: Shape
    permutation: Permutation
    contexts: Contexts
    enforcement: Enforcement
    goals: SiteGoals
    kernel: Kernel
    opener: Opener
    crew: Crew
    bus: Connection
    bus_id: str
    systemd: Systemd
    machined: Machined | None
    journal: Journal
    authority: Authority
    file_threads: ThreadPoolExecutor
    digests: Digests
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    _ruled: tuple[Config, Rules] | None = None

    @property
    def rules(self) -> Rules:
        """The rules about objects that the configuration states now."""
        config = self.config
        if self._ruled is None or self._ruled[0] is not config:
            # Kept: sets of all categories are not made anew for each request.
            rules = Rules(
                config.relabel_from,
                frozenset(self.shape.private),
                self.shape.size,
                config.group_categories,
                config.relabel_devices_from,
            )
            self._ruled = config, rules
        return self._ruled[1]

    async def in_file_thread(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a blocking function on files; no file system may hold up the event loop.

        Whoever is cancelled meanwhile goes on once the function has ended: it works on descriptors
        that the caller closes then, and their numbers would be others' by the time it uses them.
        """
        work = self.file_threads.submit(fn, *args)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            while not ended.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await ended.wait()
            raise


def file_threads(count: int) -> ThreadPoolExecutor:
    """Return the threads for files, all of them started. Raises Failed if that is not possible.

    A pool that cannot start a thread when it is given work raises and keeps the work all the same;
    it would then label by descriptors that were closed long ago.
    """
    pool = ThreadPoolExecutor(count, "files")
    everybody = threading.Barrier(count + 1, timeout=_THREADS_START_S)
    try:
        for _ in range(count):
            pool.submit(everybody.wait)
        everybody.wait()
    except (RuntimeError, MemoryError) as error:
        everybody.abort()
        pool.shutdown()
        raise Failed(f"no thread can be started ({error}); raise TasksMax= of svirtd") from error
    return pool
