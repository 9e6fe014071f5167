"""The report as one page that needs nothing else: no script, no font, no picture from anywhere.

Everything that came from outside (names of layers, files and tools) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from edgefleet_converters.choose import Fate
from edgefleet_converters.report import figures, page_plots
from edgefleet_converters.report.model import (
    DecisionFacts,
    ProfileFacts,
    Report,
    SensitivityFacts,
    VariantFacts,
)
from edgefleet_converters.report.plot import mark

_STYLE = Path(__file__).with_name("page.css")
_FATES = {Fate.KEPT: "good", Fate.DROPPED: "soft", Fate.OVER_BUDGET: "warn", Fate.REFUSED: "bad"}
_CEILING_DB = 60.0
"""Where a bar is full: nobody tells such noise from none."""


def to_html(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.package.name} {report.package.version}: packaging report")
    sections = (
        *_head(report),
        *page_plots.plots(report),
        *_variants(report),
        *_devices(report),
        *_ladders(report),
        *_sensitivity(report.sensitivity, report.limits.min_sqnr_db),
        *_refused(report),
        *_provenance(report),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _head(report: Report) -> Iterator[str]:
    package, made = report.package, report.variants
    name = f"{escape(package.name)} {escape(package.version)}"
    yield f'<h1>{name} <span class="soft">release {package.release}</span></h1>'
    yield f'<p class="soft">{escape(report.source.origin)} for {_kinds(len(report.profiles))}, '
    yield f"best by {report.objective}. Index <code>{escape(package.digest)}</code></p>\n"
    shipped = [variant for variant in made if variant.shipped]
    smallest = min((variant.size_bytes for variant in shipped if variant.size_bytes is not None), default=None)
    tiles = (
        (f"{len(shipped)} of {len(made)}", "variants ship"),
        (str(sum(not variant.accepted for variant in made)), "refused by the gate"),
        (figures.size(smallest), f"smallest, from {figures.size(report.source.size_bytes)}"),
        (_worst_change(shipped), "largest loss that ships"),
        (str(sum(bool(variant.marks) for variant in shipped)), "ship with a mark"),
    )
    yield '<div class="tiles">'
    yield from (f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    yield "</div>\n"
    if report.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        yield f'<ul class="plain warn">{notes}</ul>\n'


def _kinds(count: int) -> str:
    return "one kind of device" if count == 1 else f"{count} kinds of device"


def _worst_change(shipped: Sequence[VariantFacts]) -> str:
    scored = [variant.score for variant in shipped if variant.score and variant.score.loss is not None]
    return figures.loss(max(scored, key=lambda score: score.loss or 0.0, default=None))


def _variants(report: Report) -> Iterator[str]:
    yield '<h2>Variants</h2>\n<div class="card"><table class="stack"><thead><tr>'
    yield "".join(f'<th class="{style}">{title}</th>' for title, style in _COLUMNS)
    yield "</tr></thead><tbody>\n"
    for variant in report.variants:
        yield _variant_row(variant, report.source.size_bytes)
    yield "</tbody></table></div>\n"
    yield '<p class="soft">Accuracy is that of the shipped file in its own runtime; “at worst” is the upper end of the '
    yield "95 % interval of the loss; SQNR is that of the worst slice of any output. "
    hosts = dict.fromkeys(variant.latency.measured_on for variant in report.variants if variant.latency)
    yield "".join(f"Latency was measured on {escape(host)} and says nothing about other devices. " for host in hosts)
    yield "Memory is the peak of the process that ran the file.</p>\n"


_COLUMNS = (
    ("#", "n"),
    ("variant", ""),
    ("size", "n"),
    ("metric", "n"),
    ("change", "n"),
    ("at worst", "n"),
    ("agreement", "n"),
    ("SQNR", "n"),
    ("latency p50", "n"),
    ("memory", "n"),
    ("verdict", ""),
)


def _variant_row(variant: VariantFacts, source_bytes: int) -> str:
    score, latency = variant.score, variant.latency
    ratio = f" <span class='soft'>{variant.size_bytes / source_bytes:.2f}×</span>" if variant.size_bytes else ""
    p90 = f"p90 {latency.p90_ms:.3g} ms" if latency and latency.p90_ms is not None else latency.note if latency else ""
    worst = f"worst: {score.worst_slice}" if score and score.worst_slice else ""
    cells = (
        _cell(figures.size(variant.size_bytes), "size") + ratio,
        _cell(
            figures.metric(score.metric, score.value) if score else figures.NONE, score.metric if score else "metric"
        ),
        _cell(figures.loss(score), "change"),
        _cell(figures.worst_case(score), "at worst (95 %)"),
        _cell(figures.share(score.agreement if score else None), "agreement"),
        _cell(figures.decibels(score.sqnr_db if score else None), "SQNR", worst),
        _cell(figures.latency(latency), "latency p50", p90),
        _cell(figures.memory(score), "peak memory"),
    )
    style = "good" if variant.shipped else "soft" if variant.accepted else "bad"
    word, *marks = figures.verdict(variant).split(", ")
    tags = "".join(f' <span class="tag warn">{escape(tag)}</span>' for tag in marks)
    reason = f'<tr><td class="bare"></td><td colspan="10" class="why">{escape(variant.reason)}</td></tr>\n'
    return (
        f'<tr><td class="n bare">{variant.number}</td>'
        f'<td class="name" data-is="{variant.number}">'
        f"{mark(variant.runtime, filled=variant.accepted)}{escape(variant.name)}</td>"
        f"{''.join(f'{cell}</td>' for cell in cells)}"
        f'<td data-is="verdict" class="verdict {style} fate">{escape(word)}{tags}</td></tr>\n'
        f"{'' if variant.shipped and not marks else reason}"
    )


def _cell(text: str, name: str, hint: str = "") -> str:
    """An open cell; `hint` is shown to whoever points at it."""
    title = f' title="{escape(hint)}"' if hint else ""
    return f'<td class="n" data-is="{escape(name)}"{title}>{escape(text)}'


def _devices(report: Report) -> Iterator[str]:
    yield '<h2>What each device gets</h2>\n<div class="grid2">\n'
    for profile in report.profiles:
        yield f'<section class="card"><h3>{escape(profile.title)}</h3>'
        yield f'<p class="soft"><code>{escape(profile.id)}</code>, {escape(profile.architecture)}</p>'
        yield f"<table><tbody>{''.join(_decisions(profile))}</tbody></table></section>\n"
    yield "</div>\n"


def _decisions(profile: ProfileFacts) -> Iterator[str]:
    for runtime in dict.fromkeys(found.runtime for found in profile.decisions):
        own = [found for found in profile.decisions if found.runtime is runtime]
        yield f'<tr><th colspan="3" scope="rowgroup">{mark(runtime)}{runtime}</th></tr>\n'
        yield from (_decision(found) for found in own)


def _decision(found: DecisionFacts) -> str:
    rank = f"{found.rank}." if found.rank else ""
    name = escape(found.variant.removeprefix(f"{found.runtime}-"))
    return (
        f'<tr><td class="name">{rank} {name}</td><td class="fate {_FATES[found.fate]}">{found.fate}</td>'
        f'<td class="why">{escape(found.reason)}</td></tr>\n'
    )


def _ladders(report: Report) -> Iterator[str]:
    told = [variant for variant in report.variants if len(variant.attempts) > 1 or variant.float_layers]
    if told:
        yield "<h2>How they were made</h2>\n"
    for variant in told:
        rows = "".join(
            f'<tr><td class="name">{escape(found.label)}</td><td class="n">{figures.size(found.size_bytes)}</td>'
            f'<td class="fate">{escape(found.status)}</td>'
            f'<td class="why">{escape(found.why)}; {escape(found.reason)}</td></tr>'
            for found in variant.attempts
        )
        layers = ", ".join(f"<code>{escape(layer)}</code>" for layer in variant.float_layers)
        kept = f"<p>Kept in float, because they cost the accuracy: {layers}.</p>" if layers else ""
        yield f'<details class="card"{" open" if layers else ""}><summary>{escape(variant.name)}: '
        yield f"{len(variant.attempts)} attempts</summary>"
        yield f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>{kept}</details>\n'


def _sensitivity(found: SensitivityFacts | None, limit_db: float) -> Iterator[str]:
    if found is None:
        return
    yield "<h2>Layers that cost the accuracy</h2>\n"
    yield '<div class="card"><p class="soft">Signal to noise of the worst output slice when that layer alone '
    yield f'is in int8. Shorter is worse; the line is the gate’s {limit_db:g} dB.</p><div class="bars">\n'
    for layer in found.layers:
        value = layer.sqnr_db
        width = 100 * min(max(_CEILING_DB if value is None else value, 0.0), _CEILING_DB) / _CEILING_DB
        style = ' class="below"' if value is not None and value < limit_db else ""
        tag = ' <span class="tag warn">in float</span>' if layer.in_float else ""
        yield f'<span class="layer"><code>{escape(layer.tensor)}</code> <span class="soft">{escape(layer.operator)}, '
        yield f"{layer.macs_share:.1%} of MACs</span>{tag}</span>"
        yield f'<span class="track"><i{style} style="width:{width:.1f}%"></i>'
        yield f'<u style="left:{100 * limit_db / _CEILING_DB:.1f}%"></u></span>'
        yield f'<span class="n">{"exact" if value is None else figures.decibels(value)}</span>\n'
    yield "</div>"
    yield "".join(f'<p class="soft">{escape(note)}</p>' for note in found.notes)
    yield "</div>\n"


def _refused(report: Report) -> Iterator[str]:
    rows = [
        f'<tr><td class="name">{escape(profile.id)}</td><td>{found.runtime} {found.precision}</td>'
        f'<td class="why">{escape(found.reason)}</td></tr>'
        for profile in report.profiles
        for found in profile.refused
    ]
    if rows:
        yield '<h2>Not tried</h2>\n<div class="card scroll"><table><thead><tr><th>device</th><th>recipe</th>'
        yield f"<th>why</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"


def _provenance(report: Report) -> Iterator[str]:
    source, limits = report.source, report.limits
    allowed = (
        f"loss at most {limits.max_drop:g}; without labels, agreement at least {limits.min_agreement:.0%} "
        f"or SQNR at least {limits.min_sqnr_db:g} dB"
    )
    rows = [
        ("model", f"{source.origin} ({source.kind}, {figures.size(source.size_bytes)})", source.digest),
        ("cost", f"{figures.count(source.parameters)} parameters, {figures.count(source.macs)} MACs", ""),
        ("inputs", ", ".join(source.inputs), ""),
        ("outputs", ", ".join(source.outputs), ""),
        *((data.role, f"{data.samples} samples of {data.origin}", data.digest) for data in report.data),
        ("gate", allowed, ""),
        ("package", report.package.folder, report.package.digest),
        ("made with", ", ".join(f"{name} {version}" for name, version in report.environment.items()), ""),
    ]
    yield '<h2>What went in</h2>\n<div class="card scroll"><table><tbody>'
    for name, text, digest in rows:
        code = f"<br><code class='soft'>{escape(digest)}</code>" if digest else ""
        yield f'<tr><th scope="row">{name}</th><td>{escape(text)}{code}</td></tr>\n'
    yield "</tbody></table></div>\n"
