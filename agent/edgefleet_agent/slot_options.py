"""What a benchmark on this device chose for a variant, kept in its slot: it comes and goes with the model's files.

It is no part of the package, so no digest covers it; what cannot be read of it is as if it were not there.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet import durable
from edgefleet_agent.settings import RuntimeSettings

# No layer's file may begin with a dot.
FILE = ".options.json"


class SlotOptions(BaseModel):
    """Settings that were measured to be best here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    threads: int = Field(ge=1, le=256)


def record(slot: Path, chosen: SlotOptions) -> None:
    """Keep a choice in a slot, durably; raises OSError."""
    durable.write_file(slot / FILE, chosen.model_dump_json().encode())


def applied(slot: Path, settings: RuntimeSettings) -> RuntimeSettings:
    """The settings with what was chosen for this slot."""
    try:
        chosen = SlotOptions.model_validate_json((slot / FILE).read_bytes())
    except (OSError, ValidationError):
        return settings
    return settings.model_copy(update={"threads": chosen.threads})
