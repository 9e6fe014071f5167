"""Golden samples: inputs and the shipped file's own outputs, for the self-test on the device.

Their file has the same bytes for the same arrays: numpy writes a fixed date into its archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgefleet.package.manifest import Golden
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.step import Samples

GOLDEN_SAMPLES = 8


def write_golden(
    path: Path, artefact: Artefact, samples: Samples, measured: Measured, tolerances: Mapping[str, float]
) -> Golden:
    """Write `input:<name>` and `output:<name>`, each [S, *shape] in the source's layout; S is at most 8."""
    arrays = {f"input:{spec.name}": samples[spec.name][:GOLDEN_SAMPLES] for spec in artefact.inputs}
    count = len(next(iter(arrays.values())))
    arrays.update({f"output:{spec.name}": measured.outputs[spec.name][:count] for spec in artefact.outputs})
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return Golden(samples=count, tolerances=dict(tolerances))
