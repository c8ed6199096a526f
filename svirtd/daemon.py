# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program: options, exit codes, and what must stand before the service is built."""

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from svirtd import __version__, failpoints
from svirtd import config as configuration
from svirtd.book import pool
from svirtd.book.pool import PoolText
from svirtd.config import Config
from svirtd.core.goals import Goals
from svirtd.engine import keeper
from svirtd.engine.enforcement import Enforcement, base_contexts
from svirtd.engine.reload import load
from svirtd.errors import ConfigError, StartError, SvirtError
from svirtd.host.bus import BusError, BusLost
from svirtd.host.crew import beside_crew
from svirtd.host.journal import Journal, MessageId, Priority
from svirtd.host.kernel import Kernel
from svirtd.host.opener import beside_opener
from svirtd.service import Service

_EXIT_FAILED: Final = 1
_EXIT_CONFIG: Final = 2
_EXIT_START: Final = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code.

    0 stopped, 1 cannot go on (another try may do), 2 bad usage or settings, 3 cannot run here.
    """
    parser = argparse.ArgumentParser(
        prog="svirtd", description="Label isolation for virtual machines. See svirtd(8)."
    )
    parser.add_argument("--config", metavar="FILE", help=f"default: {configuration.DEFAULT_PATH}")
    parser.add_argument("--version", action="version", version=f"svirtd {__version__}")
    parser.add_argument("--restore", metavar="FILE", help="put a copy in the book's place and exit")
    parser.add_argument("--check-copy", metavar="FILE", help="look at all of a copy and exit")
    parser.add_argument("--test-failpoints", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    journal = Journal()
    if options.test_failpoints:
        try:
            failpoints.arm(os.environ)
        except (ValueError, OSError) as error:
            return _give_up(journal, str(error), _EXIT_CONFIG)
    if options.check_copy is not None:
        return _errand(lambda: keeper.check_copy(options.check_copy))
    try:
        config, goals = load(options.config)
    except ConfigError as error:
        return _give_up(journal, str(error), _EXIT_CONFIG)
    if os.geteuid() != 0:
        return _give_up(journal, "svirtd must run as root: only root can set labels", _EXIT_START)
    if options.restore is not None:
        return _errand(lambda: keeper.restore(config, options.restore, journal))
    problems: list[BaseException] = []
    try:
        _run(config, options.config, goals, journal)
    except* (StartError, SvirtError, BusLost, BusError, TimeoutError) as group:
        problems = _leaves(group)
    if not problems:
        return 0
    here = any(isinstance(error, StartError) for error in problems)
    text = "; ".join(str(error) or type(error).__name__ for error in problems)
    return _give_up(journal, text, _EXIT_START if here else _EXIT_FAILED)


def _errand(work: Callable[[], str]) -> int:
    """Do something while no daemon has the book; the answer is for whoever has asked for it."""
    try:
        sys.stdout.write(f"{work()}\n")
    except StartError as error:
        sys.stderr.write(f"svirtd: {error}\n")
        return _EXIT_START
    return 0


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _give_up(journal: Journal, why: str, code: int) -> int:
    journal.record(MessageId.STOPPED, why, priority=Priority.ERROR)
    if journal.to_journal and "JOURNAL_STREAM" not in os.environ:
        # Started by hand: the person at the terminal should not have to look into the journal.
        sys.stderr.write(f"svirtd: {why}\n")
    return code


def _run(config: Config, config_path: str | None, goals: Goals, journal: Journal) -> None:
    kernel = Kernel()
    contexts = base_contexts(kernel, config)
    enforcement = Enforcement(kernel, config, contexts)
    enforcement.check_start()
    # What stands here is never garbage: the two processes that are forked next need not walk it to
    # find that out, by which each would get 12 MiB of its own.
    gc.freeze()
    with (
        beside_crew() as crew,
        beside_opener(kernel) as opener,
        keeper.book(config, journal) as store,
    ):
        text = PoolText(config.private, config.groups, config.reserved, config.private_size)
        shape = config.shape
        order = store.now(lambda db: pool.prepare(db, text, shape))
        service = Service(config, config_path, goals, journal)
        serving = service.serve(kernel, opener, crew, enforcement, contexts, store, shape, order)
        asyncio.run(serving)


if __name__ == "__main__":
    sys.exit(main())
