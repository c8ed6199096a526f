# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a start of svirtd imports, compiles and looks up on its way, done before one is forked.

Nothing is left of it but what a process remembers of its own code: no thread, no descriptor, no
handler, no file.
"""

import asyncio
import contextlib
import io
import os
import signal
import tempfile
from pathlib import Path

from svirtd import daemon
from svirtd.api import contract
from svirtd.book import pool
from svirtd.config import Config
from svirtd.engine import keeper
from svirtd.engine.doors import file_threads
from svirtd.engine.enforcement import base_contexts
from svirtd.engine.reload import load
from svirtd.host.journal import Journal
from svirtd.host.kernel import Kernel


def rehearse() -> None:
    """Go through a start as far as nobody else can see it: not to the bus."""
    contract.load()
    with tempfile.TemporaryDirectory() as folder:
        # The least that main() does; it says that there is no such copy.
        with contextlib.redirect_stderr(io.StringIO()):
            assert daemon.main(["--check-copy", f"{folder}/nothing"]) != 0
        file = Path(folder, "svirtd.toml")
        file.write_text(
            f'[selinux]\nrequire = "none"\n[registry]\npath = "{folder}/book/book.sqlite"\n'
        )
        config, _ = load(str(file))
        base_contexts(Kernel(), config)
        # One that makes the book, and one that finds it.
        for _ in range(2):
            _keep_book(config)


def _keep_book(config: Config) -> None:
    text = pool.PoolText(config.private, config.groups, config.reserved, config.private_size)
    with keeper.book(config, Journal()) as store:
        store.now(lambda db: pool.prepare(db, text, config.shape))
        asyncio.run(_serve())


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    threads = file_threads(1)
    try:
        await loop.run_in_executor(threads, os.getpid)
    finally:
        threads.shutdown()
