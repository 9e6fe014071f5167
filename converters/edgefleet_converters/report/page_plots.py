"""The plots of the page: size and latency against accuracy, one mark per variant.

Says what is plotted; `plot` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from edgefleet_converters.report import figures
from edgefleet_converters.report.model import Report, ScoreFacts, VariantFacts
from edgefleet_converters.report.plot import Axis, Level, Point, mark, scatter

_Cost = Callable[[VariantFacts], float | None]


def plots(report: Report) -> Iterator[str]:
    """Both plots side by side, and the legend; nothing where no variant was scored."""
    scored = [variant for variant in report.variants if variant.score and variant.score.value is not None]
    if not scored:
        return
    yield '<h2>What accuracy costs</h2>\n<div class="grid2">\n'
    size = Axis("size", figures.size_tick)
    yield _figure(report, scored, size, _size, "Numbers are those of the table below.")
    timed = [variant for variant in scored if variant.latency]
    hosts = ", ".join(dict.fromkeys(variant.latency.measured_on for variant in timed if variant.latency))
    if timed:
        latency = Axis("latency p50", lambda value: f"{value:g} ms")
        yield _figure(report, timed, latency, _latency, f"On {hosts}; other devices differ.")
    yield '</div>\n<ul class="legend">'
    for runtime in dict.fromkeys(variant.runtime for variant in scored):
        yield f"<li>{mark(runtime)}{runtime}</li>"
    yield "<li>filled: passed the gate; hollow: refused; joined: nothing of its runtime is better in both; "
    yield "↓ below the plot</li></ul>\n"


def _size(variant: VariantFacts) -> float | None:
    return variant.size_bytes


def _latency(variant: VariantFacts) -> float | None:
    return variant.latency.p50_ms if variant.latency else None


def _figure(report: Report, variants: Sequence[VariantFacts], axis: Axis, cost: _Cost, note: str) -> str:
    scores = [variant.score for variant in variants if variant.score]
    name, better = scores[0].metric, scores[0].higher_is_better
    points = [_point(variant, axis, cost, variants) for variant in variants]
    worth = Axis(name, lambda value: figures.tick(name, value))
    drawn = scatter(points, axis, worth, _levels(report, scores[0]), higher_is_better=better)
    caption = f"{escape(name)} against {escape(axis.title)}<small>{escape(note)}</small>"
    return f'<figure class="card"><figcaption>{caption}</figcaption>{drawn}</figure>\n'


def _point(variant: VariantFacts, axis: Axis, cost: _Cost, variants: Sequence[VariantFacts]) -> Point:
    score = variant.score
    value, figure = _worth(variant), cost(variant) or 0.0
    shown = f"{variant.number} {variant.name}: {axis.text(figure)}, {figures.loss(score)} against fp32"
    rivals = (other for other in variants if other.accepted and other.runtime is variant.runtime)
    front = variant.accepted and not any(_beats(other, variant, cost) for other in rivals)
    return Point(variant.number, variant.runtime, figure, value, shown, filled=variant.accepted, front=front)


def _beats(one: VariantFacts, other: VariantFacts, cost: _Cost) -> bool:
    """Whether a variant costs no more and is worth no less than another, and is not just as good."""
    sign = 1 if one.score is None or one.score.higher_is_better else -1
    mine, theirs = (cost(one) or 0.0, -sign * _worth(one)), (cost(other) or 0.0, -sign * _worth(other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def _worth(variant: VariantFacts) -> float:
    return (variant.score.value or 0.0) if variant.score else 0.0


def _levels(report: Report, score: ScoreFacts) -> list[Level]:
    """The source's own value, and what the gate allows."""
    limits = report.limits
    if score.metric == "sqnr":
        return [Level(limits.min_sqnr_db, "gate", "limit")]
    if score.reference is None:
        return []
    allowed = 1 - limits.min_agreement if score.metric == "agreement" else limits.max_drop
    limit = score.reference - allowed if score.higher_is_better else score.reference + allowed
    return [Level(score.reference, "fp32 source", "source"), Level(limit, "gate", "limit")]
