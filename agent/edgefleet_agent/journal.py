"""The journal: what the agent must still know after a power cut, in one file that is replaced as a whole.

It is written before acting. It holds no rules.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet import durable
from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, Desired, Progress, State

FILE_NAME = "journal.json"
IDENTITY_FILE = "enrolment-id"

log = logging.getLogger("edgefleet.agent")


def _enrolment_id(folder: Path) -> str:
    """Who this agent is: made once, in a file of its own that is never written again. Raises OSError."""
    path = folder / IDENTITY_FILE
    try:
        if found := path.read_text(encoding="ascii").strip():
            return found
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    durable.write_file(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="ascii")


class Entry(BaseModel):
    """Everything that survives a restart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    enrolment_id: str
    connection: int = 0
    """How often this agent has connected; an older will never marks a newer connection offline."""
    state: State = State.IDLE
    reason: str | None = None
    desired: Desired | None = None
    """The last accepted desired state. In a terminal state its outcome is (state, reason): it is never acted
    on again, only reported again."""
    active: ActiveVariant | None = None
    """The committed variant."""
    progress: Progress | None = None
    pulled_bytes: int = 0
    bad_blocks: int = 0
    elapsed_s: float = 0.0
    """Agent-on time spent on `desired`."""


class Journal:
    """The journal of one state folder."""

    def __init__(self, folder: Path) -> None:
        """Read it, or begin one; a damaged one is set aside and begun anew with the reason kept in `damage`."""
        self._path = folder / FILE_NAME
        self.damage: str | None = None
        self._unwritten = False
        enrolment_id = _enrolment_id(folder)
        try:
            found = Entry.model_validate_json(self._path.read_bytes())
            self.entry = found.model_copy(update={"enrolment_id": enrolment_id})
        except FileNotFoundError:
            self.entry = Entry(enrolment_id=enrolment_id)
            self.record()
        except (OSError, ValidationError) as error:
            self.damage = f"the journal could not be read ({type(error).__name__}); it was kept as journal.damaged"
            self._path.replace(self._path.with_suffix(".damaged"))
            self.entry = Entry(enrolment_id=enrolment_id)
            self.record()

    def record(self, **changes: object) -> None:
        """Change fields and put the whole entry on disk; raises StorageError, and nothing has changed then."""
        entry = self.entry.model_copy(update=changes)
        self._write(entry)
        self.entry, self._unwritten = entry, False

    def note(self, **changes: object) -> None:
        """Change fields; when the disk refuses they hold in memory, and `retry` writes them later."""
        self.entry, self._unwritten = self.entry.model_copy(update=changes), True
        self.retry()

    def retry(self) -> None:
        """Write what could not be written before."""
        if not self._unwritten:
            return
        try:
            self._write(self.entry)
        except StorageError as error:
            log.warning("%s", error)
        else:
            self._unwritten = False

    def _write(self, entry: Entry) -> None:
        try:
            durable.write_file(self._path, entry.model_dump_json().encode())
        except OSError as error:
            raise StorageError(
                f"writing the journal {self._path}", error.strerror or str(error), "free some space on that disk"
            ) from error
