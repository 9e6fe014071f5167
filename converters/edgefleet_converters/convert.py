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
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.recipes import RECIPES
from edgefleet_device_profiles.profile import Precision, Runtime

TIMEOUT_S = 600.0


class ConvertJob(BaseModel):
    """One conversion: the source, the calibration samples (.npy) and an empty folder to work in."""

    runtime: Runtime
    precision: Precision
    source: Artefact
    calibration: Path
    folder: Path


def convert(job: ConvertJob) -> Artefact:
    """Run a job in a child process; raises UnsupportedError when the toolchain fails on this model."""
    try:
        return child.call("edgefleet_converters.convert:run_steps", job, Artefact, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        raise UnsupportedError(
            f"converting to {job.runtime} {job.precision}",
            f"the conversion failed: {error}",
            f"choose profiles that do not need {job.runtime}, or simplify the model",
        ) from error


def run_steps(text: str) -> Artefact:
    """The child's side: the recipe's steps one after the other, each in a folder of its own."""
    job = ConvertJob.model_validate_json(text)
    recipe = RECIPES[job.runtime, job.precision]
    artefact, calibration = job.source, np.load(job.calibration)
    for position, name in enumerate(recipe.steps):
        folder = job.folder / f"{position}-{name}"
        folder.mkdir(parents=True)
        try:
            step = importlib.import_module(f"edgefleet_converters.steps.{name}")
        except ModuleNotFoundError as error:
            doing = f"converting to {job.runtime} {job.precision}"
            raise MissingExtraError(doing, error.name or name, recipe.extra) from error
        artefact = step.run(artefact, calibration, folder)
    return artefact
