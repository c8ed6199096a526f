# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the settings and the goals again. All of them are good, or all stay as they were."""

from collections.abc import Sequence

from svirtd import config as configuration
from svirtd.book.store import Database
from svirtd.config import Config
from svirtd.core.goals import Goals
from svirtd.engine import walls
from svirtd.engine.doors import Doors
from svirtd.errors import ConfigError, SvirtError
from svirtd.host.journal import MessageId, Priority


def load(path: str | None) -> tuple[Config, Goals]:
    """Return the settings in the file at `path`, and the goals. Raises ConfigError."""
    config = configuration.load(path)
    return config, configuration.load_goals(config)


async def reload(doors: Doors, path: str | None) -> None:
    """Use what the files say now, as far as a running daemon can."""
    try:
        new, known = await doors.in_file_thread(load, path)
    except ConfigError as error:
        _keep(doors, str(error))
        return
    before = doors.config
    live, waiting = configuration.reload_changes(before, new)
    try:
        broken = await doors.store.write(lambda db: _use(db, doors, live))
    except SvirtError as error:
        doors.config = before
        _keep(doors, f"what VMs hold behind its walls cannot be recorded: {error}")
        return
    doors.goals.known = known
    note = f"; needs a restart: {', '.join(waiting)}" if waiting else ""
    doors.journal.record(MessageId.RELOADED, f"configuration read again{note}")
    _warn(doors, broken)


async def enter_walls(doors: Doors) -> None:
    """Record what VMs that run hold: a wall may be newer than they, or the book older."""
    if doors.config.walls:
        _warn(doors, await doors.store.write(lambda db: _use(db, doors, doors.config)))


def _use(db: Database, doors: Doors, live: Config) -> list[str]:
    told = walls.record_running(db, live.walls)
    # In here, since entries are written one after the other: a VM that starts meanwhile is recorded
    # by this, or judged by the new walls.
    doors.config = live
    return told


def _keep(doors: Doors, why: str) -> None:
    text = f"configuration kept as it was: {why}"
    doors.journal.record(MessageId.RELOADED, text, priority=Priority.ERROR)


def _warn(doors: Doors, texts: Sequence[str]) -> None:
    for text in texts:
        doors.journal.record(MessageId.WARNING, text, priority=Priority.WARNING)
