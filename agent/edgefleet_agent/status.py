"""How an agent is: what the running one notes in its state folder, and what is read there by others.

Reading takes no lock and changes nothing. Numbers of inference are the server's business.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet import __version__
from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, State
from edgefleet_agent.journal import FILE_NAME as JOURNAL_FILE
from edgefleet_agent.journal import Entry, Refusal

STATUS_FILE = "status.json"
# A connection that comes and goes must not wear a memory card out.
WRITE_EVERY_S = 2.0
# States of a process that runs no more (proc(5), field 3 of stat).
ENDED = {"Z", "X"}


class Running(BaseModel):
    """What a running agent notes of itself; it says so again when something changes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    started: int
    """When that process began, as the kernel counts: it tells the process from a later one with its number."""
    version: str
    environment: str
    """Folder of the Python environment that it runs from."""
    connected: bool
    """With the broker."""
    infers: bool
    """The committed variant answers; true where nothing is committed."""
    why_not: str | None = None
    """Why it is not connected."""
    folder: str | None = None
    """Its state folder, as the kernel tells it from a copy; None: noted by a version that did not say so."""


class StatusFile:
    """The running agent's side."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written before `note`."""
        self._path = folder / STATUS_FILE
        self._started = started(os.getpid()) or 0
        self._folder: str | None = None
        self._written: Running | None = None
        self._written_at = float("-inf")

    def note(self, now: float, *, connected: bool, infers: bool, why_not: str | None) -> None:
        """Write what changed, every 2 s at most; `now` is monotonic. A disk that refuses is tried again."""
        self._folder = self._folder or _identity(self._path.parent)
        running = Running(
            pid=os.getpid(), started=self._started, version=__version__, environment=sys.prefix, connected=connected,
            infers=infers, why_not=None if connected else why_not, folder=self._folder,
        )  # fmt: skip
        if running == self._written or now - self._written_at < WRITE_EVERY_S:
            return
        self._written_at = now
        temporary = self._path.with_name(f".{STATUS_FILE}.tmp")
        try:
            # Without fsync: after a power cut it is void anyway.
            temporary.write_text(running.model_dump_json(), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            return
        self._written = running


class Status(BaseModel):
    """What `edgefleet agent status` shows."""

    model_config = ConfigDict(frozen=True)

    running: Running | None
    """None: no agent is running on this state folder."""
    fleet: str | None = None
    device: str | None = None
    state: State | None = None
    """None: no agent has run here yet."""
    reason: str | None = None
    generation: int = 0
    package: str | None = None
    """What is committed, as PACKAGE@VERSION."""
    active: ActiveVariant | None = None
    locked: str | None = None
    """Why nothing may be activated now."""
    refused: str | None = None
    """A newer decision that is not acted on, and why."""
    damaged: bool = False
    """The journal is there and is none."""


def read(folder: Path, locked: str | None = None) -> Status:
    """Read a state folder; raises StorageError where this user may not, or where it is no folder."""
    try:
        content = (folder / JOURNAL_FILE).read_bytes()
        entry = Entry.model_validate_json(content)
    except FileNotFoundError:
        return Status(running=running_agent(folder), locked=locked)
    except OSError as error:
        may_not = isinstance(error, PermissionError)
        remedy = "run it with sudo" if may_not else "name the agent's state_folder in the settings"
        raise StorageError(f"reading the state folder {folder}", error.strerror or str(error), remedy) from error
    except ValidationError:
        return Status(running=running_agent(folder), locked=locked, damaged=True)
    version, generation = entry.running, 0 if entry.desired is None else entry.desired.generation
    return Status(
        running=running_agent(folder),
        fleet=entry.enrolment.fleet,
        device=entry.enrolment.device,
        state=entry.state,
        reason=entry.reason,
        generation=generation,
        package=None if version is None else f"{version.package}@{version.version}",
        active=entry.active,
        locked=locked,
        refused=_refused(entry.refusal, generation),
    )


def _refused(refusal: Refusal | None, accepted: int) -> str | None:
    """What was refused and is not overtaken by what was accepted since."""
    if refusal is None or refusal.generation <= accepted:
        return None
    return f"generation {refusal.generation}: {refusal.reason}"


def running_agent(folder: Path) -> Running | None:
    """What the running agent noted last; None when the process that did is gone, or notes elsewhere. Never raises."""
    try:
        found = Running.model_validate_json((folder / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    is_copy = found.folder is not None and found.folder != _identity(folder)
    return found if started(found.pid) == found.started and not is_copy else None


def _identity(folder: Path) -> str | None:
    """A folder's device and number there; a copy has another one, whatever it holds. None: it is not there."""
    try:
        seen = folder.stat()
    except OSError:
        return None
    return f"{seen.st_dev}:{seen.st_ino}"


def started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process (proc(5), field 22 of stat); None: there is no such process.

    One that has ended and that nobody has asked for yet, a zombie, is none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # Behind the name, which may hold anything.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ENDED else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def lines(status: Status) -> list[str]:
    """The status in words, a line each."""
    running = status.running
    if running is None:
        said = ["agent    not running"]
    else:
        broker = "connected" if running.connected else f"not connected ({running.why_not or 'not yet'})"
        said = [f"agent    {running.version}, process {running.pid}, {broker}", f"from     {running.environment}"]
    if status.damaged:
        return [*said, f"state    unknown: {JOURNAL_FILE} is damaged; a start of the agent recovers what it can"]
    if status.state is None:
        return [*said, "state    nothing was asked of this state folder yet"]
    state = f"{status.state}, generation {status.generation}" + (f": {status.reason}" if status.reason else "")
    said += [f"device   {status.device} of the fleet {status.fleet}", f"state    {state}"]
    if status.active is not None:
        active = status.active
        silent = "" if running is None or running.infers else ", which does not answer"
        said.append(f"infers   {status.package}, {active.name} ({active.runtime} {active.precision}){silent}")
        said.append(f"digest   {active.digest}")
    else:
        said.append("infers   with nothing")
    said += [] if status.refused is None else [f"refused  {status.refused}"]
    return said if status.locked is None else [*said, f"locked   {status.locked}"]
