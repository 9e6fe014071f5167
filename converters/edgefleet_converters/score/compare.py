"""The child's side of the check of a file for any runtime: the source in ONNX Runtime, the file in its own.

Judges nothing. What LiteRT's own check says beside it, `conversion.comparison` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.conversion.check import Comparison
from edgefleet_converters.conversion.differences import of_values
from edgefleet_converters.score.infer import infer_sample, open_runner
from edgefleet_device_profiles.profile import Runtime


class CompareJob(BaseModel):
    """A source in ONNX, a file made from it, and samples (.npz, by input name, [N, *input shape])."""

    runtime: Runtime
    source: Artefact
    artefact: Artefact
    samples: Path


def run_job(text: str) -> Comparison:
    """Run every sample through both, and measure each output's difference."""
    job = CompareJob.model_validate_json(text)
    with np.load(job.samples, allow_pickle=False) as stored:
        samples = dict(stored)
    count = len(next(iter(samples.values())))
    try:
        expected = _outputs(Runtime.ONNXRUNTIME, job.source, samples)
    except Exception as error:  # noqa: BLE001 - it raises classes of its own for models it cannot run
        first = (str(error).strip().splitlines() or [""])[0]
        return Comparison(samples=count, without_reference=f"ONNX Runtime cannot run the model: {first}")
    found = _outputs(job.runtime, job.artefact, samples)
    differences = [
        of_values(spec.name, [one[spec.name] for one in found], [one[spec.name] for one in expected])
        for spec in job.source.outputs
    ]
    return Comparison(samples=count, outputs=tuple(differences))


def _outputs(
    runtime: Runtime, artefact: Artefact, samples: Mapping[str, NDArray[np.generic]]
) -> list[Mapping[str, NDArray[np.generic]]]:
    runner = open_runner(runtime, artefact)
    count = len(next(iter(samples.values())))
    return [infer_sample(runner, artefact, samples, place) for place in range(count)]
