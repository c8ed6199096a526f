# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the settings and the goals again. All of them are good, or all stay as they were."""

from svirtd import config as configuration
from svirtd.config import Config
from svirtd.core.goals import Goals
from svirtd.engine.doors import Doors
from svirtd.errors import ConfigError
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
        doors.journal.record(
            MessageId.RELOADED,
            f"configuration kept as it was: {error}",
            priority=Priority.ERROR,
        )
        return
    doors.config, waiting = configuration.reload_changes(doors.config, new)
    doors.goals.known = known
    note = f"; needs a restart: {', '.join(waiting)}" if waiting else ""
    doors.journal.record(MessageId.RELOADED, f"configuration read again{note}")
