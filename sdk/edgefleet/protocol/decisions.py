"""What a device chose among a package's variants, and what others may take over from it.

A decision travels as the text of an event of kind `decision`, and so is acknowledged only when it is stored; a prior is
the body of the reply to a request. Nothing is chosen here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from edgefleet.package.digest import Digest
from edgefleet.protocol.record import Count, Message, MessageError, Part

DECISION_EVENT = "decision"
CONTRADICTION_EVENT = "prior_contradicted"
"""Its text is the index digest, and what did not hold."""
MAX_CANDIDATES = 16
MAX_DECISION_BYTES = 16 * 1024
"""An event's text is no longer; what a larger one says is wrong would take its parser many times its size."""
CLASS_PATTERN = r"^h[0-9a-f]{16}$"

HardwareClass = Annotated[str, Field(pattern=CLASS_PATTERN)]
Seconds = Annotated[float, Field(ge=0)]
Short = Annotated[str, Field(max_length=300)]
Threads = Annotated[int, Field(ge=1, le=1024)]


class Objective(StrEnum):
    """What the chosen variant is to be best in."""

    LATENCY = "latency"
    """The 90th percentile of an inference with the conversions at its borders."""
    ENERGY = "energy"
    """Gross joules an inference, where they are measured."""
    SIZE = "size"
    """Bytes of the variant."""


class Conditions(StrEnum):
    """What else went on, by which the measurements are to be read."""

    IDLE = "idle"
    """Nothing else of ours ran."""
    LIVE = "live"
    """The committed variant went on inferring."""
    THROTTLED_STEADY = "throttled-steady"
    """The processor was throttled most of the time, as it will be when this runs for long."""


class Standing(StrEnum):
    """How a candidate came out."""

    CHOSEN = "chosen"
    """It is the one."""
    TIED = "tied"
    """Within 3 % of the best, and not the smallest of those."""
    BEHIND = "behind"
    """Measured, and not the best."""
    HOPELESS = "hopeless"
    """So far behind that it was not measured to the end."""
    OVER_BUDGET = "over_budget"
    """It exceeds a limit of the device's profile."""
    FAILED = "failed"
    """It could not be measured."""


class CandidateRecord(Part):
    """One variant in one setting; null is what was not measured, or of too few runs."""

    digest: Digest
    name: Annotated[str, Field(max_length=63)]
    threads: Threads
    size_bytes: Count
    standing: Standing
    reason: Short
    runs: Count
    p50_s: Seconds | None
    p90_s: Seconds | None
    """With the conversions at its borders."""
    low_s: Seconds | None
    high_s: Seconds | None
    """Ends of the p90's 95 % interval."""
    inference_p90_s: Seconds | None
    """Of the runtime's call alone, as telemetry windows have it."""
    energy_j: Seconds | None
    """Gross joules an inference."""
    memory_bytes: Count | None


class DecisionRecord(Message):
    """A benchmark on one device: candidates, numbers, the choice and why."""

    hardware_class: HardwareClass
    index_digest: Digest
    objective: Objective
    conditions: Conditions
    throttled_share: Annotated[float, Field(ge=0, le=1)]
    complete: bool
    """Everything was measured for as long as the rules ask."""
    chosen: Digest | None
    """Null: no candidate may run here."""
    threads: Threads | None
    reason: Annotated[str, Field(max_length=1000)]
    command: Short
    """Measures the same again on that device."""
    agent_version: Annotated[str, Field(max_length=64)]
    candidates: Annotated[tuple[CandidateRecord, ...], Field(max_length=MAX_CANDIDATES, fail_fast=True)]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse a payload; raises MessageError with one line."""
        if len(payload) > MAX_DECISION_BYTES:
            raise MessageError(f"DecisionRecord: {len(payload)} bytes, at most {MAX_DECISION_BYTES} are read")
        return super().decode(payload)

    @property
    def winner(self) -> CandidateRecord | None:
        """The chosen candidate's numbers."""
        return next((one for one in self.candidates if one.standing is Standing.CHOSEN), None)


class Prior(Message):
    """What devices of one hardware class found to be best among the variants of one package version."""

    hardware_class: HardwareClass
    index_digest: Digest
    objective: Objective
    digest: Digest
    threads: Threads
    inference_p90_s: Seconds
    devices: Count
    """That chose the same."""
    at: float
    """When the last of them did, seconds since 1970."""
