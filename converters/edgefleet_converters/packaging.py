"""The main flow of `edgefleet package`: intake, plan, convert and score, choose, write.

Loads no toolchain into this process: conversions and inference run in child processes.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from edgefleet.errors import EdgefleetError, InputError, StorageError
from edgefleet.package.layout import write_package
from edgefleet_converters import admission, choose, data, gate, reporting
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
from edgefleet_converters.score.host import fingerprint
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_converters.score.task import AUTO
from edgefleet_converters.step import Samples
from edgefleet_converters.suitability import RULES
from edgefleet_converters.timing import time_variants
from edgefleet_converters.trials import Bench, Climbed, climb_all
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG})


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
        stack.push(partial(_translate, request.model))
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


def _translate(model: str, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
    """What the disk refuses on the way is one line too."""
    if isinstance(error, OSError) and error.errno in _DISK:
        remedy = "free some space, or name another folder in TMPDIR"
        raise StorageError(f"packaging {model}", error.strerror or str(error), remedy) from error


def _withdraw(folder: Path, error: type[BaseException] | None, *_about: object) -> None:
    if error is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _intake(request: Request, work: Path, progress: Progress, executor: Executor, cache: Cache | None) -> _Inputs:
    """Read and check everything that the person gave, before any work is done on it."""
    progress(Event(Stage.INTAKE, request.model))
    doing = f"packaging to {request.folder}"
    if not request.profiles:
        raise InputError(doing, "no device profile", "name at least one")
    admission.check_names(request.name, request.version, doing)
    admission.check_place(request.folder, doing)
    source = read_source(request.model, work, request.asked, progress)
    spec = read_input_spec(request.input_spec, source.inputs) if request.input_spec else InputSpec()
    calibration = data.load_calibration(request.calibration, source.inputs, spec)
    evaluation = data.load_evaluation(request.evaluation, source.inputs, spec, request.labels)
    labels = evaluation.labels
    admission.check_labels(labels, source.outputs, request.metric, f"reading the evaluation data {request.evaluation}")
    sets = {f"calibration data {request.calibration}": calibration}
    sets[f"evaluation data {request.evaluation}"] = evaluation.samples
    for note in (*source.notes, *admission.data_notes(sets, spec)):
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
            labels=spec.labels or source.labels,
        ),
        profiles={profile.id: profile for profile in request.profiles},
        labels=labels,
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
    offered = reporting.candidates(
        climbed.climbs, latencies, reporting.memory_bytes(request.profiles, inputs.analysis, climbed)
    )
    decisions = choose.choose(offered, request.profiles, request.objective)
    choose.require_cover(decisions, request.profiles)
    return decisions


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
