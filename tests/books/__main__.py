# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.books NAME` keeps a book of schema NAME, made from the one before it.

Run it when a migration is added; then put rows into the file that use what the schema has new.
"""

import sys

from svirtd.book import schema
from tests import books


def main() -> None:
    name = sys.argv[1]
    known = books.names()
    number = known.index(name)
    db = books.load(known[number - 1])
    following = known[number + 1 :]
    schema.migrations.apply(db, stop_before=following[:1] or None)
    # A dump reads its tables by name; the moments of the migrations would differ with each run.
    db.execute("UPDATE _sqlite_migrations SET applied_at = '2026-11-24 00:00:00+00:00'")
    lines = ["-- SPDX-License-Identifier: LGPL-2.1-or-later", *db.conn.iterdump()]
    books.dump_of(name).write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
