"""Trials: planned variants converted, run as shipped, compared with the source and judged, rung by rung of the ladder.

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

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters import gate
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.cache import Cache
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.golden import GOLDEN_SAMPLES
from edgefleet_converters.intake.source import Source
from edgefleet_converters.jobs import run_conversion, run_inference, run_sensitivity
from edgefleet_converters.ladder import (
    Attempt,
    Tried,
    best,
    explain,
    first_attempts,
    next_attempts,
    wants_culprits,
)
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.progress import Event, Progress, Stage, run_jobs
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.metrics import Assessment, Measured, assess, check_source
from edgefleet_converters.score.versions import judge_versions
from edgefleet_converters.sensitivity import Sensitivity, SensitivityJob
from edgefleet_device_profiles.profile import Precision, Profile, Runtime

SOURCE_NAME = "fp32 source"
# Form of the source → the runtime that runs it as the fp32 reference.
REFERENCE_RUNTIMES: Mapping[Form, Runtime] = MappingProxyType(
    {Form.ONNX: Runtime.ONNXRUNTIME, Form.TFLITE: Runtime.LITERT}
)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every trial shares: the source, the data as files in the work folder, and the gate's limits."""

    source: Source
    facts: Facts
    profiles: Mapping[str, Profile]
    labels: NDArray[np.generic] | None
    metric: str
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

    attempt: Attempt
    artefact: Artefact | None
    measured: Measured | None
    found: Assessment | str
    """The assessment, or one line on why there is none."""
    verdict: gate.Verdict

    @property
    def tried(self) -> Tried:
        """What the ladder looks at."""
        loss = sqnr_db = None
        if isinstance(self.found, Assessment):
            score = self.found.score
            loss = score.reference - score.value if score.higher_is_better else score.value - score.reference
            sqnr_db = score.sqnr_db
        size_bytes = self.artefact.size_bytes if self.artefact else 0
        return Tried(self.attempt, self.verdict.status, loss, sqnr_db, size_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Climb:
    """One planned variant: all its trials in order, the best of them, and one line on the way there."""

    planned: PlannedVariant
    trials: tuple[Trial, ...]
    kept: Trial
    story: str


@dataclass(frozen=True, slots=True, eq=False)
class Climbed:
    """All variants, what the fp32 source gave, and the layers that cost the accuracy where anybody asked."""

    climbs: tuple[Climb, ...]
    reference: Measured
    culprits: Sensitivity | None


_Key = tuple[PlannedVariant, Attempt]


def climb_all(bench: Bench, planned: Sequence[PlannedVariant]) -> Climbed:
    """Try every planned variant until the gate passes it or the ladder ends.

    Raises InputError when the source itself cannot run or be compared with.
    """
    trials: dict[PlannedVariant, list[Trial]] = {variant: [] for variant in planned}
    pending = [(variant, attempt) for variant in planned for attempt in first_attempts(variant)]
    reference: Measured | None = None
    culprits: Sensitivity | None = None
    while pending:
        made = _converted(bench, pending)
        reference, measured = _scored(bench, made, reference)
        for key in pending:
            trials[key[0]].append(_trial(bench, key, made[key], measured.get(key), reference))
        tried = {variant: [trial.tried for trial in found] for variant, found in trials.items()}
        if culprits is None and any(wants_culprits(variant, found) for variant, found in tried.items()):
            culprits = _culprits(bench)
        pending = [
            (variant, attempt)
            for variant, found in tried.items()
            for attempt in next_attempts(variant, found, culprits)
        ]
    if reference is None:
        raise InputError("choosing variants", "nothing is planned", "choose another profile")
    return Climbed(tuple(_climb(*pair, culprits) for pair in trials.items()), reference, culprits)


def _climb(planned: PlannedVariant, trials: Sequence[Trial], culprits: Sensitivity | None) -> Climb:
    tried = [trial.tried for trial in trials]
    kept = trials[tried.index(best(tried))]
    mixed = any(one.attempt.settings.float_tensors for one in tried)
    return Climb(planned, tuple(trials), kept, explain(planned, tried, culprits if mixed else None))


def _culprits(bench: Bench) -> Sensitivity | None:
    """The layers that cost the accuracy; None where the source has no ONNX form or they cannot be found."""
    source = bench.source.forms.get(Form.ONNX)
    if source is None:
        return None
    bench.progress(Event(Stage.CONVERT, "looking for the layers that cost the accuracy"))
    found = run_sensitivity(SensitivityJob(source=source, samples=bench.calibration_file), bench.cache, bench.work)
    if isinstance(found, str):
        bench.progress(Event(Stage.WARNING, found))
        return None
    return found


def _converted(bench: Bench, keys: Sequence[_Key]) -> dict[_Key, Artefact | str]:
    jobs = {key: _conversion(bench, *key) for key in keys}
    return run_jobs(jobs, Stage.CONVERT, bench.progress, _label, bench.executor)


def _scored(
    bench: Bench, made: Mapping[_Key, Artefact | str], known: Measured | None
) -> tuple[Measured, dict[_Key, Measured | str]]:
    """Outputs of the fp32 source unless they are known, and of every attempt that could be made and can run here."""
    form, source = bench.source.reference
    jobs: dict[_Key | None, Callable[[], Measured | str]] = {}
    if known is None:
        jobs[None] = _inference(bench, REFERENCE_RUNTIMES[form], source, "source")
    for key, artefact in made.items():
        if isinstance(artefact, Artefact) and key[0].recipe.scored:
            jobs[key] = _inference(bench, key[0].runtime, artefact, _folder(*key))
    if not jobs and known:
        return known, {}
    measured = run_jobs(
        jobs, Stage.SCORE, bench.progress, lambda key: _label(key) if key else SOURCE_NAME, bench.executor
    )
    reference = known or measured.pop(None)
    if isinstance(reference, str):
        raise InputError(f"running the fp32 source in {REFERENCE_RUNTIMES[form]}", reference, "check the model")
    if known is None:
        check_source(reference)
        _doubt(bench, reference)
    return reference, {key: found for key, found in measured.items() if key is not None}


def _doubt(bench: Bench, reference: Measured) -> None:
    """Warn of a source that is as bad as can be: no gate can find a loss there."""
    found = _assess(bench, Precision.FP32, reference, reference)
    if isinstance(found, str):
        raise InputError("scoring the fp32 source", found, "choose another metric, or fix the function")
    score = found.score
    if found.guess is not None and score.reference <= found.guess:
        text = f"{score.metric} of the fp32 source is {score.reference:.4f}, no better than guessing"
        remedy = "check the labels, their order and the normalisation of the evaluation data"
        bench.progress(Event(Stage.WARNING, f"{text}, so that no loss can be found: {remedy}"))


def _trial(
    bench: Bench, key: _Key, artefact: Artefact | str, measured: Measured | str | None, reference: Measured
) -> Trial:
    planned, attempt = key
    if isinstance(artefact, str):
        return Trial(attempt, None, None, artefact, gate.judge(artefact, bench.limits))
    if not planned.recipe.scored:
        text = f"{planned.runtime} does not run on this host: nobody has measured this file"
        return Trial(attempt, artefact, None, text, gate.Verdict(gate.Status.UNPROVEN, text))
    if measured is None or isinstance(measured, str):
        found = measured or "it was not run"
        return Trial(attempt, artefact, None, found, gate.judge(found, bench.limits))
    assessment = _assess(bench, planned.precision, measured, reference)
    verdicts = {measured.runtime_version: gate.judge(assessment, bench.limits)}
    verdicts |= judge_versions(
        _infer_job(bench, planned.runtime, artefact, _folder(*key)),
        measured.runtime_version,
        [bench.profiles[name] for name in planned.profiles],
        lambda other: _judge(bench, planned, other, reference),
        bench.progress,
    )
    return Trial(attempt, artefact, measured, assessment, gate.worst(verdicts))


def _assess(bench: Bench, precision: Precision, measured: Measured, reference: Measured) -> Assessment | str:
    """The assessment, or one line on why the person's own metric has none for these outputs."""
    try:
        return assess(measured, reference, bench.labels, precision=precision, metric=bench.metric)
    except UnsupportedError as error:
        return str(error)


def _judge(bench: Bench, planned: PlannedVariant, found: Measured | str, reference: Measured) -> gate.Verdict:
    assessed = found if isinstance(found, str) else _assess(bench, planned.precision, found, reference)
    return gate.judge(assessed, bench.limits)


def _label(key: _Key) -> str:
    planned, attempt = key
    return planned.name if attempt.settings == planned.settings else f"{planned.name} ({attempt.label})"


def _folder(planned: PlannedVariant, attempt: Attempt) -> str:
    return f"{planned.name}-{attempt.label}"


def _conversion(bench: Bench, planned: PlannedVariant, attempt: Attempt) -> Callable[[], Artefact | str]:
    """The job that makes the variant's files."""
    recipe = planned.recipe
    form = next(form for form in recipe.steps if form in bench.source.forms)
    job = ConvertJob(
        runtime=planned.runtime,
        precision=planned.precision,
        settings=attempt.settings,
        form=form,
        source=bench.source.forms[form],
        calibration=bench.calibration_file if recipe.calibrated else None,
        folder=bench.work / _folder(planned, attempt),
        facts=bench.facts,
    )
    return partial(run_conversion, job, bench.cache)


def _inference(bench: Bench, runtime: Runtime, artefact: Artefact, name: str) -> Callable[[], Measured | str]:
    """The job that runs one file over the samples."""
    return partial(run_inference, _infer_job(bench, runtime, artefact, name), bench.cache)


def _infer_job(bench: Bench, runtime: Runtime, artefact: Artefact, name: str) -> InferJob:
    return InferJob(
        runtime=runtime,
        artefact=artefact,
        samples=bench.samples_file,
        repeats=GOLDEN_SAMPLES,
        outputs=bench.work / f"{name}.outputs.npz",
    )
