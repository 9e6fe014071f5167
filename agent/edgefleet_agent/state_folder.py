"""The state folder at start: locked, its journal read or recovered, and fitted to who the device is now.

It holds no rules about what is installed.
"""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet import durable
from edgefleet.errors import BusyError, StorageError
from edgefleet.protocol.messages import ActiveVariant, State
from edgefleet.protocol.signed import Desired, PackageVersion
from edgefleet_agent.journal import Committed, Enrolment, Entry, Journal
from edgefleet_agent.slots import NEW_LINK, SlotDamagedError, Slots

LOCK_FILE = "agent.lock"
SPOOL_FILE = "spool.sqlite"
TRUST_FOLDER = "trust"
CLOCK_FLOOR_FILE = "clock-floor"
CURRENT_LINK = "current"
# No layer of a variant may have a name that begins so.
INSTALLED_FILE = ".installed.json"


class Installed(BaseModel):
    """What stands in a slot beside the variant, for the day on which the journal cannot be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enrolment: Enrolment
    desired: Desired
    """The last accepted one: after a rollback it is not the one that brought this variant."""
    active: ActiveVariant
    running: PackageVersion | None = None
    """What it is a variant of; None: what `desired` wanted."""
    state: State = State.COMMITTED
    reason: str | None = None
    previous: Committed | None = None
    """What is gone back to; of a variant in probation."""


@dataclass(slots=True)
class StateFolder:
    """An opened state folder; `said` is what happened on the way, as (kind, text) of events."""

    folder: Path
    lock: IO[bytes]
    journal: Journal
    slots: Slots
    said: list[tuple[str, str]] = field(default_factory=list)

    @property
    def spool_file(self) -> Path:
        """Unsent telemetry."""
        return self.folder / SPOOL_FILE

    @property
    def trust_folder(self) -> Path:
        """What the trust process keeps."""
        return self.folder / TRUST_FOLDER


def open_folder(folder: Path, own: Enrolment) -> StateFolder:
    """Open or create; raises BusyError when another agent has it, StorageError when it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, own.device)
        # A power cut in the middle of a switch.
        (folder / NEW_LINK).unlink(missing_ok=True)
        slots = Slots(folder)
        journal = Journal(folder, Entry(enrolment=own))
        state = StateFolder(folder, lock, journal, slots)
        if journal.damage is not None:
            state.said.append(("damage", journal.damage))
            _recover(state)
        _fit(state, own)
    except OSError as error:
        raise StorageError(
            f"opening the state folder {folder}", error.strerror or str(error), "check the disk and its permissions"
        ) from error
    return state


def record_installed(slots: Slots, installed: Installed) -> None:
    """Write it into the variant's slot, before that becomes the current one; raises OSError."""
    path = slots.path(installed.active.digest) / INSTALLED_FILE
    durable.write_file(path, installed.model_dump_json().encode())


def _recover(state: StateFolder) -> None:
    """Take the committed variant, and what was accepted for it, from the current slot, once that is verified."""
    slot = (state.folder / CURRENT_LINK).resolve()
    try:
        found = Installed.model_validate_json((slot / INSTALLED_FILE).read_bytes())
        state.slots.check(found.active.digest)
    except FileNotFoundError:
        state.journal.record(state=State.NO_MODEL, reason=f"{state.journal.damage}; there is no current slot")
        return
    except (OSError, ValidationError, SlotDamagedError) as error:
        why = f"nothing could be recovered from the current slot: {str(error).splitlines()[0]}"
        state.said.append(("damage", why))
        state.journal.record(state=State.NO_MODEL, reason=f"{state.journal.damage}; {why}")
        return
    # A link to another variant's slot cannot be: the file is written into the slot that its digest names.
    state.journal.record(**_recovered(state, found))
    entry = state.journal.entry
    name, generation = (entry.active or found.active).name, found.desired.generation
    state.said.append(("recovered", f"{name} of generation {generation}, {entry.state}, from its slot"))


def _recovered(state: StateFolder, found: Installed) -> dict[str, object]:
    """What the journal said, as far as it can be known; a probation whose course is lost ends as one that failed."""
    desired = found.desired
    known = {"enrolment": found.enrolment, "desired": desired, "deployment": desired.deployment}
    before = found.previous
    if found.state is State.PROBATION and before is not None and _is_whole(state.slots, before.active.digest):
        reason = f"the journal was lost while {found.active.name} was in probation"
        return {**known, "active": before.active, "running": before.running, "state": State.ROLLED_BACK,
                "reason": reason}  # fmt: skip
    running = found.running or desired.wanted
    return {**known, "active": found.active, "running": running, "state": found.state, "reason": found.reason}


def _is_whole(slots: Slots, digest: str) -> bool:
    try:
        slots.check(digest)
    except SlotDamagedError:
        return False
    return True


def _fit(state: StateFolder, own: Enrolment) -> None:
    """Another enrolment of the same device keeps the variant and the last deployment; another device keeps nothing."""
    entry = state.journal.entry
    if entry.enrolment == own:
        return
    before = entry.enrolment
    fresh = Entry(enrolment=own, connection=entry.connection)
    if (before.fleet, before.device) == (own.fleet, own.device):
        # Desired states of the former enrolment are refused by its id, so their generations need not be known.
        proven = entry.previous or Committed(active=entry.active, running=entry.running) if entry.active else None
        kept = {
            "active": proven and proven.active, "running": proven and proven.running, "deployment": entry.deployment,
        }  # fmt: skip
        ended = State.IDLE if proven is None else State.COMMITTED
        state.journal.record(**fresh.model_copy(update={**kept, "state": ended}).__dict__)
        state.said.append(("enrolled_again", f"this was the enrolment {before.enrolment_id}"))
        return
    (state.folder / CURRENT_LINK).unlink(missing_ok=True)
    for suffix in ("", "-wal", "-shm"):
        state.spool_file.with_name(state.spool_file.name + suffix).unlink(missing_ok=True)
    if before.fleet != own.fleet:
        shutil.rmtree(state.trust_folder, ignore_errors=True)
    state.journal.record(**fresh.__dict__)
    state.slots.collect(None)
    state.said.append(("begun_anew", f"the state folder was that of {before.device} in the fleet {before.fleet}"))


def _lock(folder: Path, device: str) -> IO[bytes]:
    stream = (folder / LOCK_FILE).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise BusyError(
            f"starting the agent {device}",
            f"another agent is running on the state folder {folder}",
            "stop that one, or give this one a state_folder and an identity of its own",
        ) from error
    return stream


def clock_floor(trust_folder: Path) -> float:
    """When metadata was last verified (Unix time): it is no earlier, whatever the clock says. 0: never."""
    try:
        return float((trust_folder / CLOCK_FLOOR_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0
