"""One SQLite file in WAL mode: opening it, transactions, and which broker the server is at.

Several processes may open it (the server writes, commands read and record decisions). It holds no rules.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from edgefleet.errors import StorageError
from edgefleet.transaction import transaction

LOCK_PATIENCE_S = 10.0
LAYOUT_VERSION = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS server (
  one INTEGER PRIMARY KEY CHECK (one = 1), fleet TEXT NOT NULL, broker TEXT NOT NULL,
  connected INTEGER NOT NULL, failure TEXT);
"""


class Database:
    """One connection to the store; not shared between threads."""

    def __init__(self, path: Path, tables: Sequence[str] = ()) -> None:
        """Open or create with the schemas of `tables`; raises StorageError."""
        doing = f"opening the store {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=LOCK_PATIENCE_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            _use_wal(self._db)
            # FULL: what was acknowledged to a device survives a power cut of the server.
            self._db.execute("PRAGMA synchronous = FULL")
            self._lay_out(SCHEMA + "".join(tables), doing)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(doing, str(error), "check the disk, or name another --data folder") from error

    def _lay_out(self, schema: str, doing: str) -> None:
        """Make the tables of a new store, all at once; several processes may begin with it at the same time."""
        with self.transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == LAYOUT_VERSION:
                return
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise StorageError(
                    doing,
                    f"its layout is version {version}, this edgefleet reads version {LAYOUT_VERSION}",
                    "name another --data folder, or use the version of edgefleet that made it",
                )
            for statement in schema.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {LAYOUT_VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside is committed together or not at all."""
        return transaction(self._db)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: everything inside happens or not, and the transaction goes on either way."""
        self._db.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO one")
            raise
        finally:
            self._db.execute("RELEASE one")

    def changed(self) -> int:
        """A number that changes whenever another process commits (PRAGMA data_version)."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def set_server(self, fleet: str, broker: str, *, connected: bool, failure: str | None) -> None:
        """Say which fleet is served through which broker, and whether the connection stands."""
        self._db.execute("INSERT OR REPLACE INTO server VALUES (1, ?, ?, ?, ?)", (fleet, broker, connected, failure))

    def server(self) -> sqlite3.Row | None:
        """Row of `set_server`, or None when no server ever ran on this store."""
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM server").fetchone()
        return row


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait for a lock there, and another process may be doing the same now."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
