"""What every power meter does, and what it says. The port only; the meters lie beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Energy:
    """What was spent between two calls of `Meter.energy`: read from a sensor all the time, or estimated."""

    joules: float
    low_j: float | None
    """With `high_j` the ends of an estimate's error bar; None for what was measured."""
    high_j: float | None
    source: Literal["measured", "estimated"]
    scope: str
    """What the joules are of: package, psys, board_input, rails or battery."""
    reason: str | None
    """Why it was not measured; None when it was."""
    duration_s: float
    """Monotonic time between the two calls."""
    samples: int
    """Readings that a measured value was integrated from (a counter's own updates count); 0 for an estimate."""


class Meter(Protocol):
    """Integrates power over time."""

    @property
    def name(self) -> str:
        """The sensor's name in the profiles' table, or `model`."""
        ...

    period_s: float
    """How often `sample` reads; a benchmark that needs more readings may set it lower."""

    def sample(self, now: float) -> None:
        """Called by the loop with the monotonic time, as often as it likes: reads when it is time to."""
        ...

    def energy(self) -> Energy:
        """Energy since the last call (or since the meter was opened); never raises OSError."""
        ...
