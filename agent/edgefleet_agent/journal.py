"""The journal: what the agent must still know after a power cut, in one file that is replaced as a whole.

It is written before acting, with its own digest, and its place on the disk is reserved: a full disk does not keep it
from being written. It holds no rules.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, Evidence, Progress, State
from edgefleet.protocol.record import Generation
from edgefleet.protocol.signed import Deployment, Desired, PackageVersion
from edgefleet_agent import reserved_file

FILE_NAME = "journal.json"
_DIGEST = b',"sha256":"'

log = logging.getLogger("edgefleet.agent")


class Enrolment(BaseModel):
    """Whose state this is: the identity that was there when it was written."""

    model_config = ConfigDict(frozen=True)

    fleet: str
    device: str
    enrolment_id: str


class Refusal(BaseModel):
    """The last desired state that was refused: said once, however often it comes."""

    model_config = ConfigDict(frozen=True)

    generation: Generation
    reason: str


class Committed(BaseModel):
    """A variant that was committed, and what it is a variant of."""

    model_config = ConfigDict(frozen=True)

    active: ActiveVariant
    running: PackageVersion | None = None


class Entry(BaseModel):
    """Everything that survives a restart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 3
    enrolment: Enrolment
    connection: int = 0
    """How often this agent has connected; an older will never marks a newer connection offline."""
    state: State = State.IDLE
    reason: str | None = None
    desired: Desired | None = None
    """The last accepted desired state of this enrolment. In a terminal state its outcome is (state, reason): it is
    never acted on again, only reported again."""
    deployment: Deployment | None = None
    """The last accepted one of this fleet: it outlives an enrolment."""
    active: ActiveVariant | None = None
    """The variant that runs: the committed one, or the new one while it is in probation."""
    running: PackageVersion | None = None
    """What it is a variant of."""
    previous: Committed | None = None
    """What was committed before the one in probation, and is gone back to."""
    restored_to: State | None = None
    """The installation under way is `previous`, which was found damaged: so it ends; `reason` says what went before."""
    evidence: Evidence | None = None
    """What the last commitment rests on."""
    refusal: Refusal | None = None
    commands: tuple[str, ...] = ()
    """Ids of the commands that were run last."""
    progress: Progress | None = None
    pulled_bytes: int = 0
    reused_bytes: int = 0
    bad_blocks: int = 0
    elapsed_s: float = 0.0
    """Agent-on time spent on `desired` before its activation."""
    probation_s: float = 0.0
    """Agent-on time spent in its probation."""
    cut_off: int = 0
    """How often the agent was cut off while the new variant ran."""
    stopped: bool = False
    """The agent ended by itself: the next start is not one after a crash."""


class Journal:
    """The journal of one state folder."""

    def __init__(self, folder: Path, fresh: Entry) -> None:
        """Read it, or begin one with `fresh`; a damaged one is set aside and the reason kept in `damage`."""
        self._path = folder / FILE_NAME
        self.damage: str | None = None
        self._unwritten = False
        self._said = ""
        try:
            self.entry = _opened(self._path.read_bytes())
        except FileNotFoundError:
            self.entry = fresh
            self.record()
        except (OSError, ValueError) as error:
            self.damage = f"the journal could not be read ({type(error).__name__}); it was kept as journal.damaged"
            self._path.replace(self._path.with_suffix(".damaged"))
            self.entry = fresh
            self.record()

    @property
    def is_written(self) -> bool:
        """Whether the disk holds what the memory does."""
        return not self._unwritten

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
            # Once: this is tried at each turn of the loop.
            if str(error) != self._said:
                self._said = str(error)
                log.warning("%s", error)
        else:
            self._unwritten, self._said = False, ""

    def _write(self, entry: Entry) -> None:
        try:
            reserved_file.replace(self._path, _sealed(entry))
        except OSError as error:
            raise StorageError(
                f"writing the journal {self._path}", error.strerror or str(error), "free that disk or mend it"
            ) from error


def _sealed(entry: Entry) -> bytes:
    """An entry with the digest of what comes before that, one JSON object: one flipped bit may make another number."""
    content = entry.model_dump_json().encode()[:-1]
    return content + _DIGEST + hashlib.sha256(content).hexdigest().encode() + b'"}'


def _opened(content: bytes) -> Entry:
    """What `_sealed` made, whatever fills the file up behind it; raises ValueError for anything else."""
    line = content.partition(b"\n")[0]
    before, _, digest = line.rpartition(_DIGEST)
    if digest != hashlib.sha256(before).hexdigest().encode() + b'"}':
        raise ValueError("it does not match its digest")
    return Entry.model_validate_json(line)
