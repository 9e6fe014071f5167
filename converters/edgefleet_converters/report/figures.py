"""Numbers of the report as text, the same in every form of it.

A figure that nobody has is a dash, never a zero.
"""

from __future__ import annotations

from edgefleet_converters.report.model import LatencyFacts, ScoreFacts, VariantFacts

NONE = "–"
# Metrics that are shares of the samples.
_SHARES = frozenset({"top1", "top5", "agreement"})
_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size(size_bytes: int | None) -> str:
    """Bytes in decimal units, three digits."""
    if size_bytes is None:
        return NONE
    for unit, factor in _UNITS:
        if size_bytes >= factor:
            return f"{_three(size_bytes / factor)} {unit}"
    return f"{size_bytes} B"


def size_tick(size_bytes: float) -> str:
    """A size on an axis, with no more digits than it needs."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if size_bytes >= factor), ("B", 1))
    return f"{size_bytes / factor:g} {unit}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def metric(name: str, value: float | None) -> str:
    """A metric's value: per cent for shares, dB for noise."""
    if value is None:
        return NONE
    if name in _SHARES:
        return f"{value:.2%}"
    return f"{value:.1f} dB" if name == "sqnr" else f"{value:.4g}"


def tick(name: str, value: float) -> str:
    """A metric's value on an axis, with no more digits than it needs."""
    return f"{round(100 * value, 6):g}%" if name in _SHARES else f"{value:g}"


def loss(score: ScoreFacts | None) -> str:
    """The loss against the source with its sign turned: +0.10 means better."""
    if score is None or score.loss is None:
        return NONE
    # -0.0 would say that something was lost.
    change = 0.0 - score.loss
    return f"{100 * change:+.2f} pt" if score.metric in _SHARES else f"{change:+.3g}"


def worst_case(score: ScoreFacts | None) -> str:
    """The largest loss that the 95 % interval allows, as a change."""
    if score is None or score.drop_upper is None:
        return NONE
    change = 0.0 - score.drop_upper
    return f"{100 * change:+.2f} pt" if score.metric in _SHARES else f"{change:+.3g}"


def share(value: float | None, digits: int = 2) -> str:
    """A part of one, in per cent."""
    return NONE if value is None else f"{value:.{digits}%}"


def decibels(value: float | None, digits: int = 1) -> str:
    """Signal to noise."""
    return NONE if value is None else f"{value:.{digits}f} dB"


def latency(found: LatencyFacts | None) -> str:
    """The median."""
    if found is None:
        return NONE
    return f"{_three(found.p50_ms)} ms" if found.p50_ms >= 1 else f"{_three(1000 * found.p50_ms)} µs"


def memory(score: ScoreFacts | None) -> str:
    """Peak resident memory of the process that ran the file."""
    return size(score.peak_rss_bytes if score else None)


def verdict(variant: VariantFacts) -> str:
    """One word, and the marks that it carries."""
    word = "ships" if variant.shipped else "dropped" if variant.accepted else "refused"
    return ", ".join((word, *variant.marks))


def count(value: int | None) -> str:
    """A large number."""
    if value is None:
        return NONE
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= factor:
            return f"{_three(value / factor)} {unit}"
    return str(value)
