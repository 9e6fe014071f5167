"""The main flow of `edgefleet package`: intake, plan, convert, score, gate, write.

Loads no toolchain into this process: conversions and inference run in child processes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from packaging.version import Version

from edgefleet.errors import InputError
from edgefleet.package.layout import write_package
from edgefleet.package.manifest import Score, VariantFiles, VariantSpec
from edgefleet_converters import data, gate
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.cache import Cache
from edgefleet_converters.golden import write_golden
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.plan import PlannedVariant, RefusedPair, make_plan
from edgefleet_converters.progress import Event, Progress, Stage, local_executor
from edgefleet_converters.score.metrics import Assessment, Measured
from edgefleet_converters.step import Samples
from edgefleet_converters.trials import Bench, Trial, try_all
from edgefleet_device_profiles.profile import Profile, Runtime

# The version becomes the layout's reference name, so it must be what an OCI tag may be.
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


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
    refused: tuple[RefusedPair, ...]


def package(
    request: Request,
    progress: Progress = lambda _event: None,
    *,
    executor: Executor | None = None,
    cache: Cache | None = None,
) -> PackageResult:
    """Make, score and write the variants that the profiles want; on this machine's processors unless told otherwise.

    Raises an EdgefleetError, and has written nothing to `request.folder` then.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-package-")))
        workers = executor or stack.enter_context(local_executor())
        bench, samples = _intake(request, work, progress, workers, cache)
        plan = make_plan(request.profiles, tuple(bench.source.forms))
        trials = try_all(bench, plan.variants)
        outcomes = _gate(trials)
        digest = _write(request, samples, trials, bench)
    return PackageResult(request.folder, digest, outcomes, plan.refused)


def _intake(
    request: Request, work: Path, progress: Progress, executor: Executor, cache: Cache | None
) -> tuple[Bench, Samples]:
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
    doing = f"reading the evaluation data {request.evaluation}"
    if evaluation.labels is None:
        raise InputError(doing, "no array 'y'", "store one class number for each sample")
    labels = data.check_classes(evaluation.labels, source.outputs[0], doing)
    files = (work / "calibration.npz", work / "samples.npz")
    np.savez(files[0], allow_pickle=False, **calibration)
    np.savez(files[1], allow_pickle=False, **evaluation.samples)
    limits = gate.Limits(max_drop=request.max_drop)
    return Bench(source, labels, *files, work, limits, progress, executor, cache), evaluation.samples


def _check_request(request: Request) -> None:
    doing = f"packaging to {request.folder}"
    if not request.profiles:
        raise InputError(doing, "no device profile", "name at least one")
    if not _VERSION.fullmatch(request.version):
        raise InputError(doing, f"{request.version!r} cannot be a version", "use letters, digits, '.', '_', '-'")
    if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")


def _gate(trials: tuple[Trial, ...]) -> tuple[VariantOutcome, ...]:
    """Outcomes of all variants; raises GateError when a profile is left with none."""
    gate.require_cover([(trial.planned, trial.verdict) for trial in trials])
    return tuple(
        VariantOutcome(
            trial.planned,
            trial.artefact.size_bytes if trial.artefact else 0,
            None if isinstance(trial.found, str) else trial.found.score,
            trial.verdict,
        )
        for trial in trials
    )


def _write(request: Request, samples: Samples, trials: tuple[Trial, ...], bench: Bench) -> str:
    """Write the accepted variants; returns the index digest."""
    variants = [
        _variant_files(bench, samples, trial.planned, trial.artefact, trial.measured, trial.found)
        for trial in trials
        if trial.verdict.accepted and trial.artefact and trial.measured and not isinstance(trial.found, str)
    ]
    bench.progress(Event(Stage.WRITE, str(request.folder)))
    return write_package(
        request.folder,
        name=request.name,
        version=request.version,
        release=request.release,
        variants=variants,
    )


def _variant_files(
    bench: Bench,
    samples: Samples,
    planned: PlannedVariant,
    artefact: Artefact,
    measured: Measured,
    assessment: Assessment,
) -> VariantFiles:
    golden_file = bench.work / f"{planned.name}.golden.npz"
    spec = VariantSpec(
        name=planned.name,
        runtime=planned.runtime,
        precision=planned.precision,
        runtime_version=_runtime_range(planned.runtime, artefact, Version(measured.runtime_version)),
        model_file=artefact.files[0].name,
        inputs=artefact.inputs,
        outputs=artefact.outputs,
        golden=write_golden(golden_file, artefact, samples, measured, assessment),
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
