"""Scoring on other versions of a runtime than ours, in environments of their own: those that devices may still have.

A file is judged by the worst of its versions. Which version a device has is the device's own business.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel

from edgefleet_converters import environments
from edgefleet_converters.progress import Progress
from edgefleet_converters.score.infer import Answer, InferJob, restored_output, stored_input
from edgefleet_converters.score.metrics import Measured
from edgefleet_device_profiles.profile import Runtime


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """A version of a runtime as devices report it, and the environment and script that run files in it."""

    version: str
    environment: str
    script: str


OTHER_VERSIONS: Mapping[Runtime, tuple[OtherVersion, ...]] = MappingProxyType(
    {
        # The last tflite-runtime: all that 32-bit boards can have. It read per-channel weights of operators marked
        # version 1 as per-tensor ones without a word: a classifier fell from 75 % to 10 %.
        Runtime.LITERT: (OtherVersion("0.2.14.0", "tflite-runtime-2.14", "tflite_scoring:run"),),
    }
)


class _ForeignJob(BaseModel):
    file: Path
    feeds: Path
    outputs: Path
    repeats: int
    passes: int


def versions_carried(runtime: Runtime, device_ranges: Iterable[str], file_range: str) -> tuple[OtherVersion, ...]:
    """Versions that some device may have and that the file may run on; both as PEP 440 specifiers."""
    allowed = [SpecifierSet(text) for text in device_ranges]
    own = SpecifierSet(file_range)
    return tuple(
        other
        for other in OTHER_VERSIONS.get(runtime, ())
        if own.contains(other.version) and any(devices.contains(other.version) for devices in allowed)
    )


def infer_on(other: OtherVersion, job: InferJob, progress: Progress) -> Measured:
    """Run a job in that version, in a child process; the job's `outputs` is not written.

    Raises ChildFailedError when it refuses the file, crashes or hangs; UnsupportedError, TransportError or StorageError
    when the environment cannot be made, which says nothing about the file.
    """
    with np.load(job.samples, allow_pickle=False) as stored:
        samples = dict(stored)
    with tempfile.TemporaryDirectory(prefix="edgefleet-version-") as folder:
        work = Path(folder)
        stacks = {
            spec.name: np.stack([stored_input(sample, spec) for sample in samples[spec.name]])
            for spec in job.artefact.inputs
        }
        np.savez(work / "feeds.npz", allow_pickle=False, **stacks)
        foreign = _ForeignJob(
            file=job.artefact.files[0].resolve(),
            feeds=work / "feeds.npz",
            outputs=work / "outputs.npz",
            repeats=job.repeats,
            passes=job.passes,
        )
        answer = environments.call(
            environments.ENVIRONMENTS[other.environment],
            other.script,
            foreign,
            Answer,
            timeout_s=job.timeout_s,
            progress=progress,
            memory_bytes=job.memory_bytes,
        )
        with np.load(foreign.outputs, allow_pickle=False) as stored:
            found = dict(stored)
    count = len(next(iter(samples.values())))
    return _measured(job, found, count, other, answer)


def _measured(
    job: InferJob, found: Mapping[str, np.ndarray], count: int, other: OtherVersion, answer: Answer
) -> Measured:
    """Outputs back in the source's layout, the repetitions apart."""
    once, again = {}, {}
    for spec in job.artefact.outputs:
        array = np.stack([restored_output(stored, spec) for stored in found[spec.name]])
        once[spec.name] = array[:count]
        again[spec.name] = array[count:].reshape(job.passes - 1, -1, *array.shape[1:])
    return Measured(once, again, other.version, answer.peak_rss_bytes)
