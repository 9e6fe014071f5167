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
from edgefleet.protocol.signed import Desired
from edgefleet_agent.journal import Enrolment, Entry, Journal
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
    active: ActiveVariant


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
        return
    except (OSError, ValidationError, SlotDamagedError) as error:
        state.said.append(("damage", f"nothing could be recovered from the current slot: {str(error).splitlines()[0]}"))
        return
    desired = found.desired
    # A link to another variant's slot cannot be: the file is written into the slot that its digest names.
    state.journal.record(
        enrolment=found.enrolment, desired=desired, deployment=desired.deployment, running=desired.wanted,
        active=found.active, state=State.COMMITTED,
    )  # fmt: skip
    state.said.append(("recovered", f"{found.active.name} of generation {desired.generation}, from its slot"))


def _fit(state: StateFolder, own: Enrolment) -> None:
    """Another enrolment of the same device keeps the variant and the last deployment; another device keeps nothing."""
    entry = state.journal.entry
    if entry.enrolment == own:
        return
    before = entry.enrolment
    fresh = Entry(enrolment=own, connection=entry.connection)
    if (before.fleet, before.device) == (own.fleet, own.device):
        # Desired states of the former enrolment are refused by its id, so their generations need not be known.
        kept = {"active": entry.active, "running": entry.running, "deployment": entry.deployment}
        ended = State.IDLE if entry.active is None else State.COMMITTED
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
