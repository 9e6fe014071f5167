"""What becomes of a case or a graph, and how a lowering and its run come to a verdict; for both conformance suites.

Compares nothing: each suite says by itself what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import Lowered


class Verdict(StrEnum):
    """What became of a case."""

    PASSED = "passed"
    """Every output is right."""
    REFUSED = "refused"
    """The lowering said by name what it cannot express."""
    WRONG = "wrong"
    """A file was written and computes something else, or with more transposes than allowed."""
    CRASHED = "crashed"
    """The lowering or the runtime failed in any other way, or took too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason, which is empty for a case that passed, and what was measured."""

    verdict: Verdict
    reason: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


def outcome_of(lowering: Callable[[], Lowered], running: Callable[[Lowered], Outcome]) -> Outcome:
    """What `running` says of a file, or why it did not come to that; never raises."""
    try:
        lowered = lowering()
    except UnsupportedError as error:
        return Outcome(Verdict.REFUSED, error.found)
    except Exception as error:  # noqa: BLE001 - anything else is what is looked for
        return Outcome(Verdict.CRASHED, f"lowering: {type(error).__name__}: {error}")
    try:
        return running(lowered)
    except Exception as error:  # noqa: BLE001 - the runtime's own errors are of several types
        return Outcome(Verdict.CRASHED, f"runtime: {type(error).__name__}: {error}")
