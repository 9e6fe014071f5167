"""Outputs, scores and metrics as the tests of scoring make them up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgefleet.package.manifest import Score
from edgefleet_converters.score.metrics import Assessment, Measured
from edgefleet_converters.score.sqnr import OutputNoise

Arrays = Mapping[str, NDArray[np.generic]]


def measured(outputs: Arrays | NDArray[np.generic], repeated: Arrays | None = None) -> Measured:
    """Outputs of a run, the first two samples repeated twice without a change unless said otherwise."""
    named = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    again = repeated or {name: np.stack([array[:2], array[:2]]) for name, array in named.items()}
    return Measured(named, again, "1.0", 1)


def assessment(
    value: float,
    reference: float = 0.99,
    *,
    metric: str = "top1",
    higher_is_better: bool = True,
    upper: float | None = None,
    samples: int = 500,
    faults: tuple[str, ...] = (),
    noise: tuple[OutputNoise, ...] = (),
) -> Assessment:
    """What `assess` would say of such a variant; the metric is about the output `out`."""
    score = Score(
        metric=metric,
        higher_is_better=higher_is_better,
        value=value,
        reference=reference,
        drop_upper=upper,
        samples=samples,
        runtime_version="1.0",
        max_abs_difference=0.1,
    )
    return Assessment(score, {"out": 0.1}, faults, noise, None if metric == "sqnr" else "out")


def mean_error(outputs: Arrays, labels: NDArray[np.generic]) -> float:
    """A metric of the person's own."""
    return float(np.mean(np.abs(np.subtract(outputs["out"].reshape(len(labels), -1)[:, 0], labels, dtype=np.float64))))


mean_error.higher_is_better = False  # type: ignore[attr-defined] # how such a function says it


def best_box(outputs: Arrays, labels: NDArray[np.generic]) -> float:
    """Another, for which more is better; it says nothing about that."""
    return float(np.mean(outputs["out"].reshape(len(labels), -1).argmax(axis=1) == labels))


def undefined(outputs: Arrays, _labels: NDArray[np.generic]) -> float:
    """Not a number for outputs of zeros only."""
    return float("nan") if not outputs["out"].any() else 1.0


def broken(_outputs: Arrays, _labels: NDArray[np.generic]) -> float:
    raise KeyError("boxes")
