"""The main flow of `edgefleet package`: intake, plan, convert, score, gate, write.

Loads no toolchain into this process: conversions and inference run in child processes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version

from edgefleet.errors import InputError
from edgefleet.package.layout import write_package
from edgefleet.package.manifest import Score, VariantFiles, VariantSpec
from edgefleet_converters import data, gate
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.golden import GOLDEN_SAMPLES, write_golden
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.intake.source import Source
from edgefleet_converters.plan import PlannedVariant, make_plan
from edgefleet_converters.progress import Event, Progress, Stage, run_jobs
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_converters.score.metrics import Assessment, Measured, assess
from edgefleet_device_profiles.profile import Profile, Runtime

# The version becomes the layout's reference name, so it must be what an OCI tag may be.
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SOURCE_NAME = "fp32 source"
# Form of the source → the runtime that runs it as the fp32 reference.
REFERENCE_RUNTIMES = {Form.ONNX: Runtime.ONNXRUNTIME, Form.TFLITE: Runtime.LITERT}


@dataclass(frozen=True, slots=True)
class Request:
    """What to package; `max_drop` is the top-1 loss that may ship, as a fraction (0.01 = one point)."""

    model: Path
    profiles: tuple[Profile, ...]
    calibration: Path
    evaluation: Path
    name: str
    version: str
    release: int
    folder: Path
    max_drop: float = 0.01
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VariantOutcome:
    """What became of one planned variant; `score` is None when it could not be run."""

    planned: PlannedVariant
    size_bytes: int
    score: Score | None
    verdict: gate.Verdict


@dataclass(frozen=True, slots=True)
class PackageResult:
    """The package's folder and index digest, and what is, and what is not, in it."""

    folder: Path
    digest: str
    variants: tuple[VariantOutcome, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What intake hands on: the checked source and data, and the same as files in the work folder."""

    source: Source
    evaluation: data.Evaluation
    labels: NDArray[np.int64]
    work: Path
    calibration_file: Path
    samples_file: Path


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One variant's file and what was measured on it; `found` is a line of text when it could not be run."""

    planned: PlannedVariant
    artefact: Artefact
    measured: Measured | None
    found: Assessment | str


def package(request: Request, progress: Progress = lambda _event: None) -> PackageResult:
    """Make, score and write the variants that the profiles want.

    Raises an EdgefleetError, and has written nothing to `request.folder` then.
    """
    with tempfile.TemporaryDirectory(prefix="edgefleet-package-") as work:
        inputs = _intake(request, Path(work), progress)
        plan = make_plan(request.profiles)
        artefacts = _convert(inputs, plan, progress)
        trials = _score(inputs, artefacts, progress)
        outcomes = _gate(trials, request.max_drop)
        digest = _write(request, inputs, trials, outcomes, progress)
    return PackageResult(request.folder, digest, outcomes)


def _intake(request: Request, work: Path, progress: Progress) -> _Inputs:
    """Read and check everything that the person gave, before any work is done on it."""
    progress(Event(Stage.INTAKE, str(request.model)))
    _check_request(request)
    source = read_onnx(request.model, work, shapes=request.shapes, dims=request.dims)
    for note in source.notes:
        progress(Event(Stage.WARNING, note))
    calibration = data.load_calibration(request.calibration, source.inputs)
    evaluation = data.load_evaluation(request.evaluation, source.inputs)
    if data.count(calibration) < data.FEWEST_CALIBRATION_SAMPLES:
        text = f"only {data.count(calibration)} calibration samples; int8 ranges from fewer than 32 are guesses"
        progress(Event(Stage.WARNING, text))
    if evaluation.labels is None:
        doing = f"reading the evaluation data {request.evaluation}"
        raise InputError(doing, "no array 'y'", "store one class number for each sample")
    labels = data.check_classes(
        evaluation.labels, source.outputs[0], f"reading the evaluation data {request.evaluation}"
    )
    files = (work / "calibration.npz", work / "samples.npz")
    np.savez(files[0], allow_pickle=False, **calibration)
    np.savez(files[1], allow_pickle=False, **evaluation.samples)
    return _Inputs(source, evaluation, labels, work, *files)


def _check_request(request: Request) -> None:
    doing = f"packaging to {request.folder}"
    if not request.profiles:
        raise InputError(doing, "no device profile", "name at least one")
    if not _VERSION.fullmatch(request.version):
        raise InputError(doing, f"{request.version!r} cannot be a version", "use letters, digits, '.', '_', '-'")
    if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")


def _convert(inputs: _Inputs, plan: tuple[PlannedVariant, ...], progress: Progress) -> dict[PlannedVariant, Artefact]:
    """Run every recipe of the plan."""
    jobs = {
        planned: partial(
            convert,
            ConvertJob(
                runtime=planned.runtime,
                precision=planned.precision,
                settings=planned.settings,
                source=inputs.source.forms[Form.ONNX],
                calibration=inputs.calibration_file,
                folder=inputs.work / planned.name,
            ),
        )
        for planned in plan
    }
    return run_jobs(jobs, Stage.CONVERT, progress, lambda planned: planned.name)


def _score(inputs: _Inputs, artefacts: Mapping[PlannedVariant, Artefact], progress: Progress) -> tuple[_Trial, ...]:
    """Run the fp32 source and every variant over the evaluation data, and compare."""
    form, reference = inputs.source.reference
    jobs = {_SOURCE_NAME: partial(_measure, inputs, REFERENCE_RUNTIMES[form], reference, "source")}
    for planned, artefact in artefacts.items():
        jobs[planned.name] = partial(_measure, inputs, planned.runtime, artefact, planned.name)
    measured = run_jobs(jobs, Stage.SCORE, progress, str)
    source = measured[_SOURCE_NAME]
    if isinstance(source, str):
        raise InputError("running the fp32 source in ONNX Runtime", source, "check the model")
    trials = []
    for planned, artefact in artefacts.items():
        found = measured[planned.name]
        if isinstance(found, str):
            trials.append(_Trial(planned, artefact, None, found))
        else:
            trials.append(_Trial(planned, artefact, found, assess(found, source, inputs.labels)))
    return tuple(trials)


def _measure(inputs: _Inputs, runtime: Runtime, artefact: Artefact, name: str) -> Measured | str:
    """Outputs of one file, or one line on why there are none: a crash of the runtime is a finding."""
    job = InferJob(
        runtime=runtime,
        artefact=artefact,
        samples=inputs.samples_file,
        repeats=GOLDEN_SAMPLES,
        outputs=inputs.work / f"{name}.outputs.npz",
    )
    try:
        return infer(job)
    except ChildFailedError as error:
        return str(error)


def _gate(trials: tuple[_Trial, ...], max_drop: float) -> tuple[VariantOutcome, ...]:
    """Verdicts on all variants; raises GateError when a profile is left with none."""
    judged = [(trial, gate.judge(trial.found, max_drop)) for trial in trials]
    gate.require_cover([(trial.planned, verdict) for trial, verdict in judged])
    return tuple(
        VariantOutcome(
            trial.planned,
            trial.artefact.size_bytes,
            None if isinstance(trial.found, str) else trial.found.score,
            verdict,
        )
        for trial, verdict in judged
    )


def _write(
    request: Request,
    inputs: _Inputs,
    trials: tuple[_Trial, ...],
    outcomes: tuple[VariantOutcome, ...],
    progress: Progress,
) -> str:
    """Write the accepted variants; returns the index digest."""
    variants = [
        _variant_files(inputs, trial, trial.measured, trial.found)
        for trial, outcome in zip(trials, outcomes, strict=True)
        if outcome.verdict.accepted and trial.measured is not None and not isinstance(trial.found, str)
    ]
    progress(Event(Stage.WRITE, str(request.folder)))
    return write_package(
        request.folder,
        name=request.name,
        version=request.version,
        release=request.release,
        variants=variants,
    )


def _variant_files(inputs: _Inputs, trial: _Trial, measured: Measured, assessment: Assessment) -> VariantFiles:
    planned, artefact = trial.planned, trial.artefact
    golden_file = inputs.work / f"{planned.name}.golden.npz"
    spec = VariantSpec(
        name=planned.name,
        runtime=planned.runtime,
        precision=planned.precision,
        runtime_version=_runtime_range(planned.runtime, artefact, Version(measured.runtime_version)),
        model_file=artefact.files[0].name,
        inputs=artefact.inputs,
        outputs=artefact.outputs,
        golden=write_golden(golden_file, artefact, inputs.evaluation.samples, measured, assessment),
        score=assessment.score,
        architectures=planned.architectures,
    )
    return VariantFiles(spec, artefact.files, golden_file)


def _runtime_range(runtime: Runtime, artefact: Artefact, scored_on: Version) -> str:
    """Versions of the runtime that the file may run on: what its operators ask for, else no older than was proven."""
    proven = f"{scored_on.major}.{scored_on.minor}"
    if runtime is not Runtime.LITERT:
        return f">={proven}"
    from edgefleet_converters.tflite.runtime_versions import litert_range  # noqa: PLC0415 - only for such files

    return litert_range(artefact.files[0].read_bytes(), proven)
