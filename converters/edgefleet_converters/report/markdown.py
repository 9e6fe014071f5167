"""The report as Markdown: for a pull request, a wiki, or a terminal pager.

GitHub's tables; text from outside is escaped, so that a layer's name cannot change the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from edgefleet_converters.report import figures
from edgefleet_converters.report.model import ProfileFacts, Report, SensitivityFacts, VariantFacts

# What Markdown or HTML inside it would take for markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~&!])")


def to_markdown(report: Report) -> str:
    """The whole report, ending in a newline."""
    sections: Iterable[Iterator[str]] = (
        _head(report),
        _variants(report),
        *(_profile(profile) for profile in report.profiles),
        *(_ladder(variant) for variant in report.variants if len(variant.attempts) > 1 or variant.float_layers),
        _sensitivity(report.sensitivity),
        _notes(report),
        _environment(report),
    )
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def _text(value: object) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join('---:' if title in right else '---' for title in titles)}|"
    for row in rows:
        yield f"| {' | '.join(_text(cell) for cell in row)} |"
    yield ""


_COLUMNS = (
    "#",
    "variant",
    "size",
    "metric",
    "value",
    "change",
    "at worst (95 %)",
    "agreement",
    "worst slice",
    "latency p50",
    "peak memory",
    "verdict",
)


def _head(report: Report) -> Iterator[str]:
    package, source = report.package, report.source
    yield f"# {_text(package.name)} {_text(package.version)} (release {package.release})"
    yield ""
    yield f"- package: {_text(package.folder)}, index `{package.digest}`"
    yield f"- source: {_text(source.origin)} ({source.kind}, {figures.size(source.size_bytes)}), `{source.digest}`"
    cost = f"{figures.count(source.parameters)} parameters, {figures.count(source.macs)} multiply-accumulates"
    yield f"- model: {cost}; {_text(', '.join(source.inputs))} → {_text(', '.join(source.outputs))}"
    for data in report.data:
        yield f"- {data.role}: {data.samples} samples of {_text(data.origin)}, `{data.digest}`"
    limits = report.limits
    allowed = f"a loss of {limits.max_drop:g}, agreement {limits.min_agreement:.0%}, SQNR {limits.min_sqnr_db:g} dB"
    yield f"- gate: {allowed}; objective: {report.objective}"
    yield ""


def _variants(report: Report) -> Iterator[str]:
    yield "## Variants"
    yield ""
    yield from _table(_COLUMNS, (_figures(variant) for variant in report.variants), _COLUMNS[2:-1])
    for variant in report.variants:
        yield f"- **{_text(variant.name)}** {variant.status}: {_text(variant.reason)}"
    yield ""
    hosts = dict.fromkeys(variant.latency.measured_on for variant in report.variants if variant.latency)
    for host in hosts:
        yield f"Latency was measured on {_text(host)}; it says nothing about other devices."
        yield ""


def _figures(variant: VariantFacts) -> Sequence[object]:
    score = variant.score
    return (
        variant.number,
        variant.name,
        figures.size(variant.size_bytes),
        score.metric if score else figures.NONE,
        figures.metric(score.metric, score.value) if score else figures.NONE,
        figures.loss(score),
        figures.worst_case(score),
        figures.share(score.agreement if score else None),
        figures.decibels(score.sqnr_db if score else None),
        figures.latency(variant.latency),
        figures.memory(score),
        figures.verdict(variant),
    )


def _profile(profile: ProfileFacts) -> Iterator[str]:
    yield f"## {_text(profile.title)} (`{profile.id}`)"
    yield ""
    rows = [(found.runtime, found.rank or "", found.variant, found.fate, found.reason) for found in profile.decisions]
    yield from _table(("runtime", "rank", "variant", "decision", "why"), rows, ("rank",))
    if profile.refused:
        yield "Not tried:"
        yield ""
        yield from _table(
            ("runtime", "precision", "why"),
            [(found.runtime, found.precision, found.reason) for found in profile.refused],
        )


def _ladder(variant: VariantFacts) -> Iterator[str]:
    yield f"## How {_text(variant.name)} was made"
    yield ""
    rows = [
        (attempt.label, attempt.why, figures.size(attempt.size_bytes), attempt.status, attempt.reason)
        for attempt in variant.attempts
    ]
    yield from _table(("attempt", "why", "size", "gate", "reason"), rows, ("size",))
    if variant.float_layers:
        yield f"Kept in float: {', '.join(_text(layer) for layer in variant.float_layers)}."
        yield ""


def _sensitivity(found: SensitivityFacts | None) -> Iterator[str]:
    if found is None:
        return
    yield "## Layers that cost the accuracy"
    yield ""
    yield "SQNR of the model's worst output slice when that layer alone is quantised; the lowest costs most."
    yield ""
    rows = [
        (
            layer.tensor,
            layer.operator,
            figures.decibels(layer.sqnr_db),
            f"{layer.macs_share:.1%}",
            _kept(layer.in_float),
        )
        for layer in found.layers
    ]
    yield from _table(("layer", "operator", "SQNR", "share of MACs", ""), rows, ("SQNR", "share of MACs"))
    for note in found.notes:
        yield f"- {_text(note)}"
    yield ""


def _kept(in_float: bool) -> str:
    return "kept in float" if in_float else ""


def _notes(report: Report) -> Iterator[str]:
    if report.notes:
        yield "## Warnings"
        yield ""
        yield from (f"- {_text(note)}" for note in report.notes)
        yield ""


def _environment(report: Report) -> Iterator[str]:
    yield "## Made with"
    yield ""
    yield ", ".join(f"{_text(name)} {_text(version)}" for name, version in report.environment.items())
