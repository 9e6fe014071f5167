"""What a telemetry window is made of: when it was, and what was measured in it.

Nothing here is derived: percentiles, watts and energy per inference are computed over several windows, in `spans`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgefleet.protocol.record import Count, Part
from edgefleet.sketch import MAX_BINS, Sketch

MAX_TENSORS = 8
NotNegative = Annotated[float, Field(ge=0)]


class Clock(StrEnum):
    """How far a device's wall clock can be believed."""

    SYNCED = "synced"
    """The kernel says that it follows a time server."""
    FLOOR = "floor"
    """It lies before what is known to be past; that moment is given in its place."""
    UNSYNCED = "unsynced"
    """Nobody vouches for it."""


class Stamp(Part):
    """A moment. Durations between two of one boot come from `monotonic_s`; `wall_s` may have jumped."""

    boot_id: str
    monotonic_s: float
    """CLOCK_MONOTONIC of that boot."""
    wall_s: float
    """Seconds since 1970."""
    clock: Clock


class Durations(Part):
    """Durations of one window in seconds, as `Sketch.to_json` writes them."""

    zeros: Count
    keys: Annotated[tuple[int, ...], Field(max_length=MAX_BINS)]
    counts: Annotated[tuple[Count, ...], Field(max_length=MAX_BINS)]
    total: NotNegative

    @model_validator(mode="after")
    def _is_a_sketch(self) -> Self:
        self.sketch()
        return self

    @property
    def count(self) -> int:
        """How many."""
        return self.zeros + sum(self.counts)

    def sketch(self) -> Sketch:
        """A sketch of one's own, to be merged into."""
        return Sketch.from_json({name: getattr(self, name) for name in ("zeros", "keys", "counts", "total")})

    @classmethod
    def of(cls, sketch: Sketch) -> Self:
        """The message part of a sketch."""
        return cls.model_validate(sketch.to_json())


class Latency(Part):
    """How long inferences took; each of the three has every inference of the window."""

    preprocess: Durations
    """From the input as it came to the tensors that the file takes."""
    inference: Durations
    """The runtime's call alone."""
    end_to_end: Durations
    """From the input as it came to the outputs in the source model's layout."""


class MeasuredEnergy(Part):
    """What was drawn in a window, read from a sensor."""

    source: Literal["measured"] = "measured"
    joules: NotNegative
    duration_s: NotNegative
    """Time that the joules were drawn in; the window's own, but for a moment."""
    samples: Count
    """Readings that they were integrated from; of a counter, its updates."""
    scope: str
    """Of what: package, psys, board_input, rails, battery."""


class EstimatedEnergy(Part):
    """What was drawn in a window, from a model; the truth lies between low and high."""

    source: Literal["estimated"] = "estimated"
    joules: NotNegative
    low_j: NotNegative
    high_j: NotNegative
    duration_s: NotNegative
    scope: str
    reason: str
    """Why it was not measured."""


Energy = Annotated[MeasuredEnergy | EstimatedEnergy, Field(discriminator="source")]


class Thermal(Part):
    """Heat and clock of the processor; null is what the board does not tell, and `reason` why."""

    temperature_c: float | None = None
    frequency_mhz: float | None = None
    throttled: bool | None = None
    """Slowed down, at any time in the window."""
    undervoltage: bool | None = None
    throttled_since_boot: bool | None = None
    undervoltage_since_boot: bool | None = None
    reason: str | None = None


class Memory(Part):
    """Proportional set size (PSS, proc(5)) of the agent's two lasting processes; null: it cannot be read."""

    agent_bytes: Count | None
    worker_bytes: Count | None


class TensorStatistics(Part):
    """Values of one input or output, of some of the window's inferences; null: none of them was finite."""

    name: Annotated[str, Field(max_length=128)]
    values: Count
    """Finite values that were looked at."""
    not_finite: Count
    mean: float | None
    std: NotNegative | None
    min: float | None
    max: float | None


class Statistics(Part):
    """What the tensors look like, in the source model's layout: for drift."""

    inputs: Annotated[tuple[TensorStatistics, ...], Field(max_length=MAX_TENSORS)] = ()
    outputs: Annotated[tuple[TensorStatistics, ...], Field(max_length=MAX_TENSORS)] = ()


class Accuracy(Part):
    """How many of the window's labelled inputs were answered correctly."""

    correct: Count
    labelled: Count
