"""The main flow of `edgefleet package`: intake, plan, convert and score, choose, write.

Loads no toolchain into this process: conversions and inference run in child processes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import EdgefleetError, InputError
from edgefleet.package.layout import write_package
from edgefleet_converters import choose, data, gate, reporting
from edgefleet_converters.analysis import Analysis, analyze, fits
from edgefleet_converters.artefact import Form
from edgefleet_converters.assembly import assemble
from edgefleet_converters.cache import Cache
from edgefleet_converters.conversion.source import read_model
from edgefleet_converters.intake import Asked, read_source
from edgefleet_converters.intake.input_spec import InputSpec, read_input_spec
from edgefleet_converters.intake.source import Source
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.plan import Plan, Unfit, fits_everywhere, make_plan
from edgefleet_converters.progress import Event, Progress, Stage, local_executor
from edgefleet_converters.report.build import build_report
from edgefleet_converters.report.model import PackageFacts, Report
from edgefleet_converters.report.write import write_report
from edgefleet_converters.score.hook import check_hook
from edgefleet_converters.score.host import fingerprint
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_converters.score.task import AUTO, choose_task
from edgefleet_converters.step import Samples
from edgefleet_converters.suitability import RULES
from edgefleet_converters.timing import time_variants
from edgefleet_converters.trials import Bench, Climbed, climb_all
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile
from edgefleet_device_profiles.roofline import widths

# The version becomes the layout's reference name, so it must be what an OCI tag may be; names are as strict.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Request:
    """What to package, and what may ship; places of data are files, folders or `module:function`."""

    model: str
    profiles: tuple[Profile, ...]
    calibration: str
    evaluation: str
    name: str
    version: str
    release: int
    folder: Path
    labels: Path | None = None
    input_spec: Path | None = None
    metric: str = AUTO
    limits: gate.Limits = field(default_factory=gate.Limits)
    objective: choose.Objective = choose.Objective.LATENCY
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True, slots=True)
class PackageResult:
    """The package's folder and index digest, the report and its folder, and the decisions."""

    folder: Path
    digest: str
    report: Report
    report_folder: Path
    decisions: tuple[choose.Decision, ...]


@dataclass(slots=True)
class _Notes:
    """Passes events on, and keeps the warnings for the report."""

    progress: Progress
    warnings: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if event.stage is Stage.WARNING:
            self.warnings.append(event.text)
        self.progress(event)


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What intake hands on."""

    bench: Bench
    samples: Samples
    analysis: Analysis | None
    counts: tuple[int, int]


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
    notes = _Notes(progress)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-package-")))
        workers = executor or stack.enter_context(local_executor())
        inputs = _intake(request, work, notes, workers, cache)
        plan = make_plan(request.profiles, tuple(inputs.bench.source.forms), _unfit(inputs.analysis))
        climbed = climb_all(inputs.bench, plan.variants)
        latencies = _latencies(inputs.bench, climbed)
        decisions = _choose(request, inputs, climbed, latencies)
        digest = _write(request, inputs, climbed, decisions)
        # A package without its report is half of what was asked for.
        stack.push(partial(_withdraw, request.folder))
        report = _report(request, inputs, (plan, climbed, decisions), latencies, digest, notes.warnings)
        folder = write_report(report, request.folder)
    return PackageResult(request.folder, digest, report, folder, decisions)


def _withdraw(folder: Path, error: type[BaseException] | None, *_about: object) -> None:
    if error is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _intake(request: Request, work: Path, progress: Progress, executor: Executor, cache: Cache | None) -> _Inputs:
    """Read and check everything that the person gave, before any work is done on it."""
    progress(Event(Stage.INTAKE, request.model))
    _check_request(request)
    source = read_source(request.model, work, request.asked, progress)
    spec = read_input_spec(request.input_spec, source.inputs) if request.input_spec else InputSpec()
    calibration = data.load_calibration(request.calibration, source.inputs, spec)
    evaluation = data.load_evaluation(request.evaluation, source.inputs, spec, request.labels)
    _check_labels(request, source, evaluation.labels)
    for note in (*source.notes, *_data_notes(request, spec, calibration, evaluation.samples)):
        progress(Event(Stage.WARNING, note))
    files = (work / "calibration.npz", work / "samples.npz")
    np.savez(files[0], allow_pickle=False, **calibration)
    np.savez(files[1], allow_pickle=False, **evaluation.samples)
    bench = Bench(
        source=source,
        facts=Facts(
            name=request.name,
            source_digest=source.digest,
            preprocessing=spec.preprocessing(source.inputs),
            labels=spec.labels,
        ),
        profiles={profile.id: profile for profile in request.profiles},
        labels=evaluation.labels,
        metric=request.metric,
        calibration_file=files[0],
        samples_file=files[1],
        work=work,
        limits=request.limits,
        progress=progress,
        executor=executor,
        cache=cache,
    )
    counts = (data.count(calibration), data.count(evaluation.samples))
    return _Inputs(bench, evaluation.samples, _analysis(source, progress), counts)


def _check_request(request: Request) -> None:
    doing = f"packaging to {request.folder}"
    if not request.profiles:
        raise InputError(doing, "no device profile", "name at least one")
    for what, text in (("name", request.name), ("version", request.version)):
        if not _TAG.fullmatch(text):
            raise InputError(doing, f"{text!r} cannot be a {what}", "use letters, digits, '.', '_', '-'")
    if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")


def _check_labels(request: Request, source: Source, labels: NDArray[np.generic] | None) -> None:
    """Raise InputError for labels that are not a classifier's, or that the metric cannot use, before any work."""
    scores = source.outputs[0]
    classified = scores.dtype.startswith("float") and len(scores.shape) == 2 and scores.shape[1] > 1
    if labels is not None and classified and request.metric in (AUTO, "top1", "top5"):
        numbers = labels.dtype.kind in "iu" or labels.ndim == 1
        if numbers or data.is_one_hot(labels, scores.shape[1]):
            data.check_classes(labels, scores, f"reading the evaluation data {request.evaluation}")
    count = 1 if labels is None else len(labels)
    shaped = {spec.name: np.broadcast_to(np.zeros((), spec.dtype), (count, *spec.shape)) for spec in source.outputs}
    task = choose_task(request.metric, shaped, labels)
    if task.function is not None:
        check_hook(task.function)


def _data_notes(request: Request, spec: InputSpec, calibration: Samples, evaluation: Samples) -> list[str]:
    """What the person should know of the data; raises InputError where they cannot be right."""
    notes = [
        *data.check_normalisation(calibration, spec, f"checking the calibration data {request.calibration}"),
        *data.check_normalisation(evaluation, spec, f"checking the evaluation data {request.evaluation}"),
    ]
    if data.count(calibration) < data.FEWEST_CALIBRATION_SAMPLES:
        notes.append(f"only {data.count(calibration)} calibration samples; int8 ranges from fewer than 32 are guesses")
    if shared := data.overlap(calibration, evaluation):
        notes.append(f"{shared} evaluation samples are calibration samples too: the accuracy is not of unseen data")
    return notes


def _analysis(source: Source, progress: Progress) -> Analysis | None:
    """What the model costs; None where there is no ONNX form to look at."""
    artefact = source.forms.get(Form.ONNX)
    if artefact is None:
        return None
    try:
        return analyze(read_model(artefact.files[0]))
    except EdgefleetError as error:
        progress(Event(Stage.WARNING, f"the model's cost is not known: {error}"))
        return None


def _unfit(analysis: Analysis | None) -> Unfit:
    """Why a pair is not even tried: the device is too small, or the precision does not suit such a model."""
    if analysis is None:
        return fits_everywhere

    def unfit(profile: Profile, allowed: AllowedRuntime, precision: Precision) -> str | None:
        rule = RULES.get((allowed.name, precision))
        if rule is not None and (reason := rule(analysis)):
            return reason
        fit = fits(analysis, profile, precision)
        return None if fit.ok else f"it needs {fit.limit} of {fit.need:.4g} {fit.unit}, there are {fit.have:.4g}"

    return unfit


def _latencies(bench: Bench, climbed: Climbed) -> reporting.Latencies:
    """Time of each variant that may ship and can run here, with nothing else running."""
    jobs = {
        climb.planned.name: LatencyJob(
            runtime=climb.planned.runtime, artefact=climb.kept.artefact, samples=bench.samples_file
        )
        for climb in climbed.climbs
        if climb.kept.verdict.accepted and climb.kept.artefact and climb.kept.measured
    }
    bench.progress(Event(Stage.TIME, ", ".join(jobs)))
    host = fingerprint([catalogue.load(name) for name in catalogue.names()])
    found = time_variants(jobs, host, bench.cache, bench.work)
    for name, latency in found.items():
        if isinstance(latency, str):
            bench.progress(Event(Stage.WARNING, f"no latency of {name}: {latency}"))
    return found


def _choose(
    request: Request, inputs: _Inputs, climbed: Climbed, latencies: reporting.Latencies
) -> tuple[choose.Decision, ...]:
    """What ships for whom; raises GateError when a profile is left with nothing."""
    offered = reporting.candidates(climbed.climbs, latencies, _memory_bytes(request, inputs.analysis, climbed))
    decisions = choose.choose(offered, request.profiles, request.objective)
    choose.require_cover(decisions, request.profiles)
    return decisions


def _memory_bytes(request: Request, analysis: Analysis | None, climbed: Climbed) -> dict[str, int]:
    """Calculated memory of each variant where it needs most: its files, and the activations alive at once."""
    if analysis is None:
        return {}
    profiles = {profile.id: profile for profile in request.profiles}
    return {
        climb.planned.name: climb.kept.tried.size_bytes
        + max(
            analysis.activation_bytes(widths(profiles[name], climb.planned.precision))
            for name in climb.planned.profiles
        )
        for climb in climbed.climbs
    }


def _write(request: Request, inputs: _Inputs, climbed: Climbed, decisions: Sequence[choose.Decision]) -> str:
    """Write the variants that somebody keeps; returns the index digest."""
    wanted = set(choose.kept(decisions))
    variants = [
        assemble(inputs.bench, inputs.samples, climb, climbed.reference)
        for climb in climbed.climbs
        if climb.planned.name in wanted
    ]
    inputs.bench.progress(Event(Stage.WRITE, str(request.folder)))
    return write_package(
        request.folder,
        name=request.name,
        version=request.version,
        release=request.release,
        variants=variants,
    )


def _report(
    request: Request,
    inputs: _Inputs,
    found: tuple[Plan, Climbed, Sequence[choose.Decision]],
    latencies: reporting.Latencies,
    digest: str,
    warnings: Sequence[str],
) -> Report:
    plan, climbed, decisions = found
    bench = inputs.bench
    return build_report(
        package=PackageFacts(
            name=request.name,
            version=request.version,
            release=request.release,
            folder=str(request.folder),
            digest=digest,
        ),
        source=reporting.source_facts(bench, inputs.analysis),
        data=reporting.data_facts(
            (request.calibration, request.evaluation), (bench.calibration_file, bench.samples_file), inputs.counts
        ),
        limits=reporting.limit_facts(request.limits),
        objective=request.objective,
        profiles=request.profiles,
        variants=reporting.variant_facts(climbed.climbs, latencies),
        decisions=decisions,
        refused=[(pair.profile, pair.runtime, pair.precision, pair.reason) for pair in plan.refused],
        sensitivity=reporting.sensitivity_facts(climbed),
        notes=warnings,
        environment=reporting.tools(climbed.climbs),
    )
