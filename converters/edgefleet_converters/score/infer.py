"""Runs a model file over a data set in its own runtime, in a child process, and hands back its outputs.

Does not compare: `metrics` does. Latency is not measured here: the host's says nothing about the devices.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.score.metrics import Measured
from edgefleet_device_profiles.profile import Runtime

TIMEOUT_S = 300.0

RUNNERS: Mapping[Runtime, str] = MappingProxyType(
    {
        Runtime.LITERT: "edgefleet_converters.score.litert_runner",
        Runtime.ONNXRUNTIME: "edgefleet_converters.score.onnxruntime_runner",
        Runtime.OPENVINO: "edgefleet_converters.score.openvino_runner",
    }
)


class Runner(Protocol):
    """A loaded model file with one input and one output, as the file has them (not as the source has)."""

    version: str

    def infer(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one sample."""


class InferJob(BaseModel):
    """One file to run over samples (.npy, float32 [N, 1, *sample shape]); outputs go to another .npy."""

    runtime: Runtime
    artefact: Artefact
    samples: Path
    repeats: int
    outputs: Path


class _Answer(BaseModel):
    runtime_version: str


def infer(job: InferJob) -> Measured:
    """Run a job in a child process; raises ChildFailedError when the runtime refuses, crashes or hangs."""
    answer = child.call("edgefleet_converters.score.infer:run_file", job, _Answer, timeout_s=TIMEOUT_S)
    outputs: NDArray[np.float32] = np.load(job.outputs)
    count = len(outputs) - job.repeats
    return Measured(outputs[:count], outputs[count:], answer.runtime_version)


def run_file(text: str) -> _Answer:
    """The child's side: every sample once, then the first `repeats` of them again."""
    job = InferJob.model_validate_json(text)
    runner: Runner = importlib.import_module(RUNNERS[job.runtime]).open_model(job.artefact)
    samples: NDArray[np.float32] = np.load(job.samples)
    entry, exit_ = job.artefact.inputs[0].permutation, job.artefact.outputs[0].permutation
    outputs = []
    for sample in (*samples, *samples[: job.repeats]):
        stored = sample if entry is None else np.ascontiguousarray(sample.transpose(entry))
        found = runner.infer(stored)
        outputs.append(found if exit_ is None else found.transpose(np.argsort(exit_)))
    np.save(job.outputs, np.concatenate(outputs).astype(np.float32))
    return _Answer(runtime_version=runner.version)
