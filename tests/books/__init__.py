# SPDX-License-Identifier: LGPL-2.1-or-later
"""Books of earlier schemas, with data in every table, as SQL: what migrations are tested with."""

import sqlite3
from pathlib import Path

from sqlite_utils import Database

from svirtd.book import schema

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The schemas there have been, oldest first."""
    return [migration.name for migration in schema.migrations._migrations]


def dump_of(name: str) -> Path:
    """Where the book of this schema is kept."""
    return FOLDER / f"{name}.sql"


def load(name: str, path: str = ":memory:") -> Database:
    """Make the book of this schema at `path`."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(dump_of(name).read_text("utf-8"))
    return Database(connection, execute_plugins=False)
