"""What a packaging run found, in the words of the report.

Pure mapping: computes nothing but sums of what is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import gate
from edgefleet_converters.analysis import Analysis
from edgefleet_converters.assembly import marks
from edgefleet_converters.cache_key import tool_versions
from edgefleet_converters.choose import Candidate, Timing
from edgefleet_converters.report.build import environment, finite
from edgefleet_converters.report.model import (
    AttemptFacts,
    DataFacts,
    LatencyFacts,
    LayerFacts,
    LimitFacts,
    ScoreFacts,
    SensitivityFacts,
    SourceFacts,
    VariantFacts,
)
from edgefleet_converters.score.latency import Latency
from edgefleet_converters.score.metrics import Assessment
from edgefleet_converters.score.versions import runtime_range
from edgefleet_converters.trials import Bench, Climb, Climbed, Trial
from edgefleet_device_profiles.profile import Profile
from edgefleet_device_profiles.roofline import widths

Latencies = Mapping[str, Latency | str]


def candidates(climbs: Sequence[Climb], latencies: Latencies, memory_bytes: Mapping[str, int]) -> tuple[Candidate, ...]:
    """What the choice looks at; `memory_bytes` by variant, calculated."""
    return tuple(_candidate(climb, latencies.get(climb.planned.name), memory_bytes) for climb in climbs)


def _candidate(climb: Climb, latency: Latency | str | None, memory_bytes: Mapping[str, int]) -> Candidate:
    planned, kept = climb.planned, climb.kept
    timing = None
    if isinstance(latency, Latency) and latency.measured_on.profile is not None:
        timing = Timing(latency.measured_on.profile, latency.p50_ms)
    return Candidate(
        name=planned.name,
        runtime=planned.runtime,
        precision=planned.precision,
        profiles=planned.profiles,
        size_bytes=kept.tried.size_bytes,
        refusal=None if kept.verdict.accepted else reason(climb),
        loss=kept.tried.loss,
        memory_bytes=memory_bytes.get(planned.name),
        timing=timing,
        versions=_versions(climb),
    )


def memory_bytes(profiles: Sequence[Profile], analysis: Analysis | None, climbed: Climbed) -> dict[str, int]:
    """Calculated memory of each variant where it needs most: its files, and the activations alive at once."""
    if analysis is None:
        return {}
    known = {profile.id: profile for profile in profiles}
    return {
        climb.planned.name: climb.kept.tried.size_bytes
        + max(
            analysis.activation_bytes(widths(known[name], climb.planned.precision)) for name in climb.planned.profiles
        )
        for climb in climbed.climbs
    }


def _versions(climb: Climb) -> str | None:
    measured, artefact = climb.kept.measured, climb.kept.artefact
    if measured is None or artefact is None:
        return None
    return runtime_range(climb.planned.runtime, artefact, measured.runtime_version)


def reason(climb: Climb) -> str:
    """The gate's reason, and the way there where it was not straight."""
    return "; ".join(text for text in (climb.kept.verdict.reason, climb.story) if text)


def variant_facts(climbs: Sequence[Climb], latencies: Latencies) -> tuple[VariantFacts, ...]:
    """One record for each variant; numbers and what ships are `build_report`'s."""
    return tuple(_variant(climb, latencies.get(climb.planned.name)) for climb in climbs)


def _variant(climb: Climb, latency: Latency | str | None) -> VariantFacts:
    kept = climb.kept
    return VariantFacts(
        number=1,
        name=climb.planned.name,
        runtime=climb.planned.runtime,
        precision=climb.planned.precision,
        reasons=climb.planned.reasons,
        size_bytes=kept.artefact.size_bytes if kept.artefact else None,
        score=_score(kept),
        latency=_latency(latency) if isinstance(latency, Latency) else None,
        status=kept.verdict.status,
        accepted=kept.verdict.accepted,
        reason=reason(climb),
        shipped=False,
        marks=marks(climb),
        attempts=tuple(_attempt(trial) for trial in climb.trials),
        float_layers=kept.attempt.settings.float_tensors,
    )


def _attempt(trial: Trial) -> AttemptFacts:
    return AttemptFacts(
        label=trial.attempt.label,
        why=trial.attempt.why,
        status=trial.verdict.status,
        reason=trial.verdict.reason,
        size_bytes=trial.artefact.size_bytes if trial.artefact else None,
    )


def _score(trial: Trial) -> ScoreFacts | None:
    if not isinstance(trial.found, Assessment) or trial.measured is None:
        return None
    score = trial.found.score
    noisy = [item for item in trial.found.noise if item.worst_db is not None and item.worst_db == score.sqnr_db]
    return ScoreFacts(
        metric=score.metric,
        higher_is_better=score.higher_is_better,
        value=finite(score.value),
        reference=finite(score.reference),
        drop_upper=finite(score.drop_upper),
        samples=score.samples,
        runtime_version=score.runtime_version,
        agreement=score.agreement,
        sqnr_db=finite(score.sqnr_db),
        worst_slice=noisy[0].text if noisy else None,
        peak_rss_bytes=trial.measured.peak_rss_bytes,
    )


def _latency(latency: Latency) -> LatencyFacts:
    host = latency.measured_on
    return LatencyFacts(
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        note=latency.p90_reason,
        runs=latency.runs,
        threads=latency.threads,
        measured_on=f"{host.cpu_model}, {host.cores} cores, {host.architecture}",
        profile=host.profile,
    )


def source_facts(bench: Bench, analysis: Analysis | None) -> SourceFacts:
    """The model that was given."""
    source = bench.source
    return SourceFacts(
        origin=source.origin,
        kind=source.kind,
        digest=source.digest,
        size_bytes=source.reference[1].size_bytes,
        inputs=tuple(_described(spec) for spec in source.inputs),
        outputs=tuple(_described(spec) for spec in source.outputs),
        parameters=analysis.parameters if analysis else None,
        macs=analysis.macs if analysis else None,
    )


def _described(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def data_facts(origins: tuple[str, str], files: tuple[Path, Path], counts: tuple[int, int]) -> tuple[DataFacts, ...]:
    """Calibration and evaluation: as the person wrote them, as files of arrays, and how many samples."""
    calibration, evaluation = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return (
        DataFacts(role="calibration", origin=origins[0], samples=counts[0], digest=calibration),
        DataFacts(role="evaluation", origin=origins[1], samples=counts[1], digest=evaluation),
    )


def sensitivity_facts(climbed: Climbed) -> SensitivityFacts | None:
    """The layers that cost the accuracy; None where nothing failed."""
    culprits = climbed.culprits
    if culprits is None:
        return None
    floats = {name for climb in climbed.climbs for name in climb.kept.attempt.settings.float_tensors}
    layers = tuple(
        LayerFacts(
            tensor=layer.tensor,
            operator=layer.operator,
            sqnr_db=finite(layer.sqnr_db),
            macs_share=layer.macs_share,
            in_float=layer.tensor in floats,
        )
        for layer in culprits.layers
        if layer.sqnr_db is not None
    )
    return SensitivityFacts(layers=layers, notes=tuple(conflict.text for conflict in culprits.conflicts))


def limit_facts(limits: gate.Limits) -> LimitFacts:
    """What the gate allowed."""
    return LimitFacts(max_drop=limits.max_drop, min_sqnr_db=limits.min_sqnr_db, min_agreement=limits.min_agreement)


def tools(climbs: Sequence[Climb]) -> dict[str, str]:
    """Versions of all that had a part in it."""
    return environment(tool_versions(extra) for extra in sorted({climb.planned.recipe.extra for climb in climbs}))
