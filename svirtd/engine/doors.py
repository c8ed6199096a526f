# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine works with: the book, the kernel, the service manager, the log, the settings."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from svirtd.book.store import Store
from svirtd.config import Config
from svirtd.core.model import Contexts
from svirtd.core.plan import Rules
from svirtd.core.pool import Permutation, Shape
from svirtd.engine.enforcement import Enforcement
from svirtd.host.bus import Connection
from svirtd.host.journal import Journal
from svirtd.host.kernel import Kernel
from svirtd.host.machined import Machined
from svirtd.host.systemd import Systemd

T = TypeVar("T")


@dataclass(slots=True)
class Doors:
    """Built once by the daemon; `config` is the only part that changes (reload)."""

    config: Config
    store: Store
    shape: Shape
    permutation: Permutation
    contexts: Contexts
    enforcement: Enforcement
    kernel: Kernel
    bus: Connection
    bus_id: str
    systemd: Systemd
    machined: Machined | None
    journal: Journal
    file_threads: ThreadPoolExecutor
    spawn: Callable[[Coroutine[Any, Any, None]], None]

    @property
    def rules(self) -> Rules:
        """The rules about objects that the configuration states now."""
        return Rules(self.config.relabel_from)

    async def in_file_thread(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a blocking function on files; no file system may hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.file_threads, fn, *args)
