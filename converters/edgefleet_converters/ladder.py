"""The ladder: how a planned variant is tried, and how it is tried again when the gate refuses it.

Pure: it knows what was tried and found, and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.step import Settings


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to make a planned variant."""

    settings: Settings
    why: str

    @property
    def label(self) -> str:
        """What is special about it, as part of a folder's name."""
        floats = f"-mixed{len(self.settings.float_tensors)}" if self.settings.float_tensors else ""
        return f"{self.settings.ranges}{floats}"


def first_attempts(planned: PlannedVariant) -> tuple[Attempt, ...]:
    """What is tried at once."""
    return (Attempt(planned.settings, "as the profiles want it"),)
