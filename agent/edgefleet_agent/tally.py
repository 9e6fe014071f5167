"""What a worker counts within one window: inferences, errors, durations as sketches, and what the tensors look like.

It keeps no value and no time of any single inference, and judges nothing; the main process makes a telemetry window
of its report.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.sketch import Sketch

OBSERVE_EVERY_S = 0.1
"""Tensors are looked at this often at most, so that a fast model is not slowed down by its own statistics."""
SAMPLED_VALUES = 4096
"""Of a larger tensor every so-manieth value is looked at."""
OBSERVED_TENSORS = 8
"""Of inputs, and of outputs: the first ones."""
NAME_CHARACTERS = 128

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(slots=True)
class _Moments:
    """Mean, spread and ends of one tensor's finite values, over several arrays (Chan, Golub, LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    not_finite: int = 0

    def add(self, array: NDArray[np.generic]) -> None:
        """Take in an array of numbers or booleans, of any shape."""
        values = np.ravel(array)
        # ceil: never more than SAMPLED_VALUES of them.
        values = values[:: -(-values.size // SAMPLED_VALUES) or 1].astype(np.float64)
        finite = values[np.isfinite(values)]
        self.not_finite += values.size - finite.size
        if not finite.size:
            return
        # What a float cannot hold becomes infinite, and is reported as null.
        with np.errstate(over="ignore", invalid="ignore"):
            mean, count = float(finite.mean()), self.count + finite.size
            apart = mean - self.mean
            self.squares += float(np.square(finite - mean).sum()) + apart * apart * self.count * finite.size / count
        self.mean += apart * finite.size / count
        self.count = count
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))

    def report(self, name: str) -> dict[str, Any]:
        """Numbers for JSON; null where there was no finite value."""
        some = self.count > 0 and math.isfinite(self.squares)
        return {
            "name": name[:NAME_CHARACTERS],
            "values": self.count,
            "not_finite": self.not_finite,
            "mean": self.mean if some else None,
            "std": math.sqrt(self.squares / self.count) if some else None,
            "min": self.low if some else None,
            "max": self.high if some else None,
        }


class Tally:
    """One window, from its making on."""

    def __init__(self) -> None:
        """Begin a window now."""
        self.started_s = time.monotonic()
        self._started_cpu_s = time.process_time()
        self._preprocess, self._inference, self._end_to_end = Sketch(), Sketch(), Sketch()
        self._errors = self._correct = self._labelled = 0
        self._observed_s = -math.inf
        self._inputs: dict[str, _Moments] = {}
        self._outputs: dict[str, _Moments] = {}

    def add(self, inference_s: float, end_to_end_s: float, preprocess_s: float) -> None:
        """Count an inference that gave a result, with its durations in seconds."""
        self._inference.add(inference_s)
        self._end_to_end.add(end_to_end_s)
        self._preprocess.add(preprocess_s)

    def error(self) -> None:
        """Count an inference that the runtime refused."""
        self._errors += 1

    def labelled(self, correct: bool) -> None:
        """Count an answer to an input whose label is known."""
        self._labelled += 1
        self._correct += correct

    def observe(self, inputs: Arrays, outputs: Arrays) -> None:
        """Look at what went in and came out, ten times a second at most; call it after the clock was read."""
        now_s = time.monotonic()
        if now_s - self._observed_s < OBSERVE_EVERY_S:
            return
        self._observed_s = now_s
        for arrays, moments in ((inputs, self._inputs), (outputs, self._outputs)):
            for name in list(arrays)[:OBSERVED_TENSORS]:
                moments.setdefault(name, _Moments()).add(arrays[name])

    def report(self) -> dict[str, Any]:
        """The window as the main process wants it, for JSON; `started_s` is on the monotonic clock."""
        return {
            "started_s": self.started_s,
            "duration_s": time.monotonic() - self.started_s,
            "cpu_s": time.process_time() - self._started_cpu_s,
            "count": self._inference.count,
            "errors": self._errors,
            "latency": {
                "preprocess": self._preprocess.to_json(),
                "inference": self._inference.to_json(),
                "end_to_end": self._end_to_end.to_json(),
            },
            "accuracy": {"correct": self._correct, "labelled": self._labelled} if self._labelled else None,
            "statistics": {
                "inputs": [moments.report(name) for name, moments in self._inputs.items()],
                "outputs": [moments.report(name) for name, moments in self._outputs.items()],
            },
        }
