"""Golden samples: inputs and the shipped file's own outputs, for the self-test on the device.

Their file has the same bytes for the same arrays: numpy writes a fixed date into its archives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.package.manifest import Golden
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.score.metrics import Assessment, Measured

GOLDEN_SAMPLES = 8


def write_golden(
    path: Path, artefact: Artefact, samples: NDArray[np.float32], measured: Measured, assessment: Assessment
) -> Golden:
    """Write `input:<name>` [S, 1, *sample shape] and `output:<name>` [S, 1, classes], in the source's layout.

    `samples` is float32 [N, 1, *sample shape]; the first 8 of them are taken.
    """
    count = min(GOLDEN_SAMPLES, len(samples))
    arrays = {
        f"input:{artefact.inputs[0].name}": samples[:count],
        f"output:{artefact.outputs[0].name}": measured.outputs[:count, np.newaxis],
    }
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return Golden(samples=count, tolerance=assessment.tolerance)
