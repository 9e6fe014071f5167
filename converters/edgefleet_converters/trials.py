"""Trials: planned variants converted, run as shipped, compared with the source and judged.

A conversion that fails or a runtime that crashes is one trial with a reason, never the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet_converters import gate
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.cache import Cache
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.golden import GOLDEN_SAMPLES
from edgefleet_converters.intake.source import Source
from edgefleet_converters.jobs import run_conversion, run_inference
from edgefleet_converters.ladder import Attempt, first_attempts
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.progress import Progress, Stage, run_jobs
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.metrics import Assessment, Measured, assess
from edgefleet_device_profiles.profile import Runtime

SOURCE_NAME = "fp32 source"
# Form of the source → the runtime that runs it as the fp32 reference.
REFERENCE_RUNTIMES: Mapping[Form, Runtime] = MappingProxyType(
    {Form.ONNX: Runtime.ONNXRUNTIME, Form.TFLITE: Runtime.LITERT}
)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every trial shares: the source, the data as files in the work folder, and the gate's limits."""

    source: Source
    labels: NDArray[np.int64]
    calibration_file: Path
    samples_file: Path
    work: Path
    limits: gate.Limits
    progress: Progress
    executor: Executor
    cache: Cache | None


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One attempt at one variant; without an artefact it could not be made, without `measured` not be run."""

    planned: PlannedVariant
    attempt: Attempt
    artefact: Artefact | None
    measured: Measured | None
    found: Assessment | str
    """The assessment, or one line on why there is none."""
    verdict: gate.Verdict


_Key = tuple[PlannedVariant, Attempt]


def try_all(bench: Bench, planned: Sequence[PlannedVariant]) -> tuple[Trial, ...]:
    """The best trial of each planned variant, in order; raises InputError when the source itself cannot run."""
    keys = [(variant, attempt) for variant in planned for attempt in first_attempts(variant)]
    made = _converted(bench, keys)
    reference, measured = _scored(bench, made)
    return tuple(_trial(bench, key, made[key], measured.get(key), reference) for key in keys)


def _converted(bench: Bench, keys: Sequence[_Key]) -> dict[_Key, Artefact | str]:
    jobs = {key: _conversion(bench, *key) for key in keys}
    return run_jobs(jobs, Stage.CONVERT, bench.progress, _label, bench.executor)


def _scored(bench: Bench, made: Mapping[_Key, Artefact | str]) -> tuple[Measured, dict[_Key, Measured | str]]:
    """Outputs of the fp32 source, and of every attempt that could be made."""
    form, source = bench.source.reference
    runtime = REFERENCE_RUNTIMES[form]
    jobs: dict[_Key | None, Callable[[], Measured | str]] = {None: _inference(bench, runtime, source, "source")}
    for key, artefact in made.items():
        if isinstance(artefact, Artefact):
            jobs[key] = _inference(bench, key[0].runtime, artefact, _folder(*key))
    measured = run_jobs(
        jobs, Stage.SCORE, bench.progress, lambda key: _label(key) if key else SOURCE_NAME, bench.executor
    )
    reference = measured.pop(None)
    if isinstance(reference, str):
        raise InputError(f"running the fp32 source in {runtime}", reference, "check the model")
    return reference, {key: found for key, found in measured.items() if key is not None}


def _trial(
    bench: Bench, key: _Key, artefact: Artefact | str, measured: Measured | str | None, reference: Measured
) -> Trial:
    if isinstance(artefact, str):
        return Trial(*key, None, None, artefact, gate.judge(artefact, bench.limits))
    if measured is None or isinstance(measured, str):
        found = measured or "it was not run"
        return Trial(*key, artefact, None, found, gate.judge(found, bench.limits))
    assessment = assess(measured, reference, bench.labels, precision=key[0].precision)
    return Trial(*key, artefact, measured, assessment, gate.judge(assessment, bench.limits))


def _label(key: _Key) -> str:
    planned, attempt = key
    return planned.name if attempt.settings == planned.settings else f"{planned.name} ({attempt.label})"


def _folder(planned: PlannedVariant, attempt: Attempt) -> str:
    return f"{planned.name}-{attempt.label}"


def _conversion(bench: Bench, planned: PlannedVariant, attempt: Attempt) -> Callable[[], Artefact | str]:
    """The job that makes the variant's files."""
    recipe = RECIPES[planned.runtime, planned.precision]
    form = next(form for form in recipe.steps if form in bench.source.forms)
    job = ConvertJob(
        runtime=planned.runtime,
        precision=planned.precision,
        settings=attempt.settings,
        form=form,
        source=bench.source.forms[form],
        calibration=bench.calibration_file if recipe.calibrated else None,
        folder=bench.work / _folder(planned, attempt),
    )
    return partial(run_conversion, job, bench.cache)


def _inference(bench: Bench, runtime: Runtime, artefact: Artefact, name: str) -> Callable[[], Measured | str]:
    """The job that runs one file over the samples."""
    job = InferJob(
        runtime=runtime,
        artefact=artefact,
        samples=bench.samples_file,
        repeats=GOLDEN_SAMPLES,
        outputs=bench.work / f"{name}.outputs.npz",
    )
    return partial(run_inference, job, bench.cache)
