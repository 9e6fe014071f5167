"""Convert: runs one recipe's steps on the source, in a child process.

Does not judge what comes out; `score` and `gate` do.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from edgefleet.errors import MissingExtraError, UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.metadata import write_metadata
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.recipes import recipe_of
from edgefleet_converters.step import Context, Samples, Settings
from edgefleet_device_profiles.profile import Precision, Runtime

TIMEOUT_S = 1800.0


class ConvertJob(BaseModel):
    """One conversion: a form of the source, the calibration samples (.npz, by input name), and an empty folder."""

    runtime: Runtime
    precision: Precision
    settings: Settings = Settings()
    form: Form = Form.ONNX
    source: Artefact
    calibration: Path | None
    folder: Path
    facts: Facts | None = None
    """What the finished file says of itself; None leaves it as the steps made it."""

    @property
    def label(self) -> str:
        """Runtime and precision, for people."""
        return f"{self.runtime} {self.precision}"


def convert(job: ConvertJob) -> Artefact:
    """Run a job in a child process; raises UnsupportedError when the toolchain fails on this model."""
    try:
        return child.call("edgefleet_converters.convert:run_steps", job, Artefact, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        raise UnsupportedError(
            f"converting to {job.label}",
            f"the conversion failed: {error}",
            f"choose profiles that do not need {job.runtime}, or simplify the model",
        ) from error


def run_steps(text: str) -> Artefact:
    """The child's side: the recipe's steps one after the other, each in a folder of its own."""
    job = ConvertJob.model_validate_json(text)
    recipe = recipe_of(job.runtime, job.precision, micro=job.settings.micro is not None)
    samples = read_samples(job.calibration) if recipe.calibrated and job.calibration else {}
    artefact = job.source
    for position, name in enumerate(recipe.steps[job.form]):
        folder = job.folder / f"{position}-{name}"
        folder.mkdir(parents=True)
        try:
            step = importlib.import_module(f"edgefleet_converters.steps.{name}")
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"converting to {job.label}", error.name or name, recipe.extra) from error
        artefact = step.run(artefact, Context(samples, folder, job.settings, job.source))
    # A microcontroller would carry the facts in its flash, and the C source holds the file as it is.
    if job.facts is None or job.settings.micro:
        return artefact
    folder = job.folder / "metadata"
    folder.mkdir(parents=True)
    return write_metadata(job.runtime, artefact, job.facts, folder)


def read_samples(path: Path) -> Samples:
    """Samples by input name from the .npz that intake wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
