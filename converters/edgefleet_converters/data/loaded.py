"""What a loader hands over: samples and, where it knows them, labels.

Crosses from child processes as an .npz file: a folder of images is larger than what JSON is good for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import child
from edgefleet_converters.intake.input_spec import InputSpec
from edgefleet_converters.step import Samples

TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Samples by input name, [N, *input shape]; labels [N, …] or None."""

    samples: Samples
    labels: NDArray[np.generic] | None


class LoadJob(BaseModel):
    """One data set to load in a child process, and the .npz to write; `folder` is where the person stands."""

    place: str
    folder: Path
    inputs: tuple[TensorSpec, ...]
    spec: InputSpec
    doing: str
    output: Path


class Done(BaseModel):
    """The file is written."""


def load_in_child(function: str, place: str, inputs: Sequence[TensorSpec], spec: InputSpec, doing: str) -> Loaded:
    """Let `module:function` load a data set in a child process; raises its errors, or InputError."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-data-") as folder:
        output = Path(folder) / "data.npz"
        job = LoadJob(place=place, folder=Path.cwd(), inputs=tuple(inputs), spec=spec, doing=doing, output=output)
        try:
            child.call(function, job, Done, timeout_s=TIMEOUT_S)
        except child.ChildFailedError as error:
            raise InputError(doing, f"it failed: {error}", "try it in Python by itself") from error
        with np.load(output, allow_pickle=False) as stored:
            samples = {spec.name: stored[f"sample:{spec.name}"] for spec in inputs}
            return Loaded(samples, stored["labels"] if "labels" in stored.files else None)


def store(job: LoadJob, samples: Samples, labels: NDArray[np.generic] | None) -> Done:
    """The child's side: write what `load_in_child` reads."""
    stored = {f"sample:{name}": array for name, array in samples.items()}
    np.savez(job.output, allow_pickle=False, **stored, **({} if labels is None else {"labels": labels}))
    return Done()
