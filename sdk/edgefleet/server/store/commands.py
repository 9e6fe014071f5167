"""Table of commands that wait for the server to publish them: a command's process has no connection of its own.

A command that was handed to the broker is forgotten; the device answers with an event.
"""

from __future__ import annotations

from edgefleet.protocol.signed import Command, Envelope
from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
  command_id TEXT PRIMARY KEY, device TEXT NOT NULL, expires REAL NOT NULL, envelope BLOB NOT NULL) WITHOUT ROWID;
"""


class Commands(Database):
    """Signed commands on their way out."""

    def add_command(self, command: Command, envelope: Envelope) -> None:
        """Have the server publish a command."""
        self._db.execute(
            "INSERT INTO commands VALUES (?, ?, ?, ?)",
            (command.command_id, command.device, command.expires, envelope.encode()),
        )

    def take_commands(self, now: float) -> list[tuple[str, Envelope]]:
        """(device, envelope) of what has not expired; all of them are forgotten."""
        rows = self._db.execute("SELECT device, expires, envelope FROM commands ORDER BY expires").fetchall()
        if rows:
            self._db.execute("DELETE FROM commands")
        return [(row["device"], Envelope.decode(row["envelope"])) for row in rows if row["expires"] > now]
