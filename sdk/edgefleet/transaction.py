"""A transaction on a SQLite connection: everything inside it is on disk together, or nothing is.

How durable that is (`PRAGMA synchronous`) and how long a lock is waited for, the connection's owner has decided.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write inside it; `db` has `isolation_level=None`. Raises sqlite3.Error, and what is raised inside.

    IMMEDIATE: a writer that waits, waits here and not in the middle (sqlite.org/lang_transaction.html).
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk, or a COMMIT that failed, may have ended it already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
