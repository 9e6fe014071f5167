"""The golden samples of a variant: what its self-test compares, and what a worker warms up and is measured with.

It starts no process and waits for none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet_agent.variant import Array, Arrays, Variant

SELF_TEST_RUNS = 2


def load(golden_file: Path) -> dict[str, Array]:
    """Arrays `input:<name>` and `output:<name>`, each [samples, ...]; raises OSError or ValueError."""
    with np.load(golden_file, allow_pickle=False) as arrays:
        return dict(arrays)


def inputs(golden: Arrays, variant: Variant) -> list[dict[str, Array]]:
    """The inputs of each sample, in the source model's layout."""
    names = [tensor["name"] for tensor in variant.spec["inputs"]]
    samples = range(variant.spec["golden"]["samples"])
    return [{name: golden[f"input:{name}"][sample] for name in names} for sample in samples]


def self_test(variant: Variant, golden_file: Path) -> dict[str, Any]:
    """Compare with the golden outputs, several times; {ok, reason, max_abs_difference}."""
    tolerances = variant.spec["golden"]["tolerances"]
    worst, reason = 0.0, None
    golden = load(golden_file)
    for _ in range(SELF_TEST_RUNS):
        for sample, given in enumerate(inputs(golden, variant)):
            for name, output in variant.infer(given).items():
                found = _difference(output, golden[f"output:{name}"][sample])
                worst = max(worst, found)
                if found > tolerances[name]:
                    reason = f"golden output {name!r} differs by {found:.4g}, {tolerances[name]:.4g} is allowed"
    difference = worst if math.isfinite(worst) else None
    return {"ok": reason is None, "reason": reason, "max_abs_difference": difference}


def _difference(output: Array, expected: Array) -> float:
    """Largest absolute difference; infinite when the shapes differ or a value is not finite."""
    if output.shape != expected.shape:
        return math.inf
    # In float64, where unsigned numbers and booleans subtract too.
    difference = float(np.max(np.abs(np.subtract(output, expected, dtype=np.float64)), initial=0.0))
    return difference if math.isfinite(difference) else math.inf
