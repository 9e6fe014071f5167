"""Runs a model file over a data set in its own runtime, in a child process, and hands back its outputs.

Does not compare: `metrics` does. Latency is not measured here: other children run at the same time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet.package.manifest import TensorSpec
from edgefleet.package.quantization import dequantized, quantized
from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.score.arrays import Arrays
from edgefleet_converters.score.metrics import Measured
from edgefleet_device_profiles.profile import Runtime

TIMEOUT_S = 900.0
# Half of the machine's memory: two children run at a time on the smallest of them.
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

RUNNERS: Mapping[Runtime, str] = MappingProxyType(
    {
        Runtime.EXECUTORCH: "edgefleet_converters.score.executorch_runner",
        Runtime.LITERT: "edgefleet_converters.score.litert_runner",
        Runtime.ONNXRUNTIME: "edgefleet_converters.score.onnxruntime_runner",
        Runtime.OPENVINO: "edgefleet_converters.score.openvino_runner",
    }
)


class Runner(Protocol):
    """A loaded model file: takes and gives arrays as the file has them (not as the source has)."""

    version: str

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """Run one sample: every input by name to every output by name."""


class InferJob(BaseModel):
    """One file to run over samples (.npz, by input name, [N, *input shape]); outputs go to another .npz."""

    runtime: Runtime
    artefact: Artefact
    samples: Path
    repeats: int
    """How many of the first samples are run `passes - 1` times more."""
    passes: int = 3
    outputs: Path
    timeout_s: float = TIMEOUT_S
    memory_bytes: int = MEMORY_BYTES
    """What it may allocate, mapped files not counted."""


class Answer(BaseModel):
    """What a run has to say besides its outputs."""

    runtime_version: str
    peak_rss_bytes: int


def infer(job: InferJob) -> Measured:
    """Run a job in a child process; raises ChildFailedError if the runtime refuses, crashes, hangs or eats memory."""
    answer = child.call(
        "edgefleet_converters.score.infer:run_file",
        job,
        Answer,
        timeout_s=job.timeout_s,
        memory_bytes=job.memory_bytes,
    )
    return read_outputs(job.outputs, job.artefact, answer)


def read_outputs(path: Path, artefact: Artefact, answer: Answer) -> Measured:
    """What a run left in its .npz, with what it said."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    names = [spec.name for spec in artefact.outputs]
    return Measured(
        outputs={name: arrays[f"once:{name}"] for name in names},
        repeated={name: arrays[f"again:{name}"] for name in names},
        runtime_version=answer.runtime_version,
        peak_rss_bytes=answer.peak_rss_bytes,
    )


def run_file(text: str) -> Answer:
    """The child's side: every sample once, then the first `repeats` of them in each further pass."""
    job = InferJob.model_validate_json(text)
    runner = open_runner(job.runtime, job.artefact)
    with np.load(job.samples, allow_pickle=False) as stored:
        samples = dict(stored)
    count = len(next(iter(samples.values())))
    once = [infer_sample(runner, job.artefact, samples, place) for place in range(count)]
    again = [
        [infer_sample(runner, job.artefact, samples, place) for place in range(min(job.repeats, count))]
        for _ in range(job.passes - 1)
    ]
    arrays = {}
    for spec in job.artefact.outputs:
        arrays[f"once:{spec.name}"] = np.stack([found[spec.name] for found in once])
        arrays[f"again:{spec.name}"] = np.stack([[found[spec.name] for found in run] for run in again])
    np.savez(job.outputs, allow_pickle=False, **arrays)
    return Answer(runtime_version=runner.version, peak_rss_bytes=peak_rss_bytes())


def peak_rss_bytes() -> int:
    """Largest resident memory of this program, from /proc/self/status.

    Not getrusage's ru_maxrss: that one survives exec, and begins with the parent's memory.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def open_runner(runtime: Runtime, artefact: Artefact, threads: int = 1) -> Runner:
    """Load a file in its runtime, in this process."""
    runner: Runner = importlib.import_module(RUNNERS[runtime]).open_model(artefact, threads)
    return runner


def infer_sample(runner: Runner, artefact: Artefact, samples: Arrays, place: int) -> Arrays:
    """One sample in the source's layout and type through a file in its own, and back."""
    found = runner.infer({spec.name: stored_input(samples[spec.name][place], spec) for spec in artefact.inputs})
    return {spec.name: restored_output(found[spec.name], spec) for spec in artefact.outputs}


def stored_input(array: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """An input as the file takes it."""
    # A sample of rank 0 comes out of its stack as a number.
    array = np.asarray(array)
    if spec.permutation is not None:
        array = np.ascontiguousarray(array.transpose(spec.permutation))
    border = spec.quantization
    return array if border is None else quantized(array, border.dtype, border.scale, border.zero_point)


def restored_output(array: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """An output as the source would give it."""
    if spec.quantization is not None:
        array = dequantized(array, spec.quantization.scale, spec.quantization.zero_point)
    return np.array(array if spec.permutation is None else array.transpose(np.argsort(spec.permutation)))
