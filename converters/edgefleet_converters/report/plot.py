"""A scatter plot as inline SVG: what a variant costs against what it is worth, the best ones of a runtime joined.

Draws what it is given; colours and fonts are the page's, by class. Up is always better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

from edgefleet_device_profiles.profile import Runtime

_WIDTH, _HEIGHT = 480, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 44
_MARK = 5.5
_LABEL_PX = 12
_PADDING = 0.12

# Told apart without colour too: around the origin, half a mark wide.
SHAPES: Mapping[Runtime, str] = MappingProxyType(
    {
        Runtime.LITERT: "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0z",
        Runtime.OPENVINO: "M-.9 -.9h1.8v1.8h-1.8z",
        Runtime.ONNXRUNTIME: "M0 -1.25L1.25 0L0 1.25L-1.25 0z",
        Runtime.COREML: "M0 -1.2L1.15 .9H-1.15z",
        Runtime.EXECUTORCH: "M0 1.2L1.15 -.9H-1.15z",
        Runtime.TENSORRT: "M-.4 -1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z",
    }
)


@dataclass(frozen=True, slots=True)
class Point:
    """One variant; `front` joins it with the other best ones of its runtime."""

    number: int
    series: Runtime
    x: float
    y: float
    shown: str
    """Name and figures, for whoever points at it."""
    filled: bool
    front: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its title, and how a value on it is written."""

    title: str
    text: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line with a name."""

    y: float
    name: str
    style: str


def mark(series: Runtime, *, filled: bool = True) -> str:
    """A runtime's mark for a legend."""
    style = "mark" if filled else "mark hollow"
    return f'<svg class="key s-{series}" viewBox="-8 -8 16 16" aria-hidden="true">{_shape(series, 0, 0, style)}</svg>'


def scatter(points: Sequence[Point], x: Axis, y: Axis, levels: Sequence[Level], *, higher_is_better: bool) -> str:
    """The plot. Points far below all the others stand at the lower edge, with an arrow: they would flatten the rest."""
    scale = _Scale.over(points, levels, higher_is_better=higher_is_better)
    body = (*_grid(scale, x, y), *_levels(scale, levels, points), *_fronts(scale, points), *_marks(scale, points))
    title = escape(f"{y.title} against {x.title}")
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(body)}</svg>"
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values → places in the plot; x begins at zero, `low` is what the lower edge stands for."""

    x_high: float
    low: float
    high: float

    @classmethod
    def over(cls, points: Sequence[Point], levels: Sequence[Level], *, higher_is_better: bool) -> _Scale:
        values = [point.y for point in points if point.filled] + [level.y for level in levels]
        values = values or [point.y for point in points]
        worst, best = (min(values), max(values)) if higher_is_better else (max(values), min(values))
        room = (best - worst) * _PADDING or abs(best) * _PADDING or 1.0
        if not higher_is_better and best == worst:
            room = -room
        return cls(max(point.x for point in points) * (1 + _PADDING) or 1.0, worst - room, best + room)

    def left(self, x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / self.x_high

    def top(self, y: float) -> float:
        part = (y - self.low) / (self.high - self.low)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(max(part, 0.0), 1.0))

    def is_off(self, y: float) -> bool:
        return (y - self.low) / (self.high - self.low) < 0


_LEAST_STEP = 1e-290


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two values: steps of 1, 2 or 5 times a power of ten."""
    low, high = min(low, high), max(low, high)
    rough = (high - low) / wanted
    # Numbers this small have no logarithm, or no tenth: there is nothing to count on such an axis.
    if rough < _LEAST_STEP:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(scale: _Scale, x: Axis, y: Axis) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in ticks(scale.low, scale.high):
        top = scale.top(value)
        yield f'<path class="grid" d="M{_LEFT} {top:.1f}H{right}"/>'
        yield f'<text class="tick end" x="{_LEFT - 6}" y="{top + 4:.1f}">{escape(y.text(value))}</text>'
    for value in ticks(0.0, scale.x_high):
        left = scale.left(value)
        yield f'<path class="grid" d="M{left:.1f} {_TOP}V{bottom}"/>'
        yield f'<text class="tick middle" x="{left:.1f}" y="{bottom + 16}">{escape(x.text(value))}</text>'
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
    yield f'<text class="title middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}">{escape(x.title)} →</text>'


def _levels(scale: _Scale, levels: Sequence[Level], points: Sequence[Point]) -> Iterator[str]:
    for level in levels:
        top = scale.top(level.y)
        yield f'<path class="level {level.style}" d="M{_LEFT} {top:.1f}H{_WIDTH - _RIGHT}"/>'
        options = [(left, top + down) for down in (-4, 13) for left in (_LEFT + 4, _WIDTH - _RIGHT - 66)]
        free = (place for place in options if not any(_covers(place, scale, point) for point in points))
        left, height = next(free, options[0])
        yield f'<text class="tick level-name" x="{left}" y="{height:.1f}">{escape(level.name)}</text>'


def _covers(place: tuple[float, float], scale: _Scale, point: Point) -> bool:
    """Whether a mark or its number would stand on a name of 64 pixels that begins there."""
    across, down = scale.left(point.x) - place[0], scale.top(point.y) - place[1]
    return -12 < across < 76 and -16 < down < 24


def _fronts(scale: _Scale, points: Sequence[Point]) -> Iterator[str]:
    for series in dict.fromkeys(point.series for point in points):
        best = sorted((point for point in points if point.front and point.series is series), key=lambda point: point.x)
        if len(best) > 1:
            path = "L".join(f"{scale.left(point.x):.1f} {scale.top(point.y):.1f}" for point in best)
            yield f'<path class="front s-{series}" d="M{path}"/>'


def _marks(scale: _Scale, points: Sequence[Point]) -> Iterator[str]:
    places = [(scale.left(point.x), scale.top(point.y)) for point in points]
    labels = _labels(places)
    for point, (left, top), (text_left, text_top) in zip(points, places, labels, strict=True):
        style = "mark" if point.filled else "mark hollow"
        arrow = "↓" if scale.is_off(point.y) else ""
        yield (
            f'<g class="s-{point.series}"><title>{escape(point.shown)}</title>{_shape(point.series, left, top, style)}'
            f'<text class="number" x="{text_left:.1f}" y="{text_top:.1f}">{point.number}{arrow}</text></g>'
        )


def _shape(series: Runtime, left: float, top: float, style: str) -> str:
    place = f"translate({left:.1f} {top:.1f}) scale({_MARK})"
    return f'<path class="{style}" transform="{place}" d="{SHAPES[series]}"/>'


# Where a number may stand beside its mark: its centre, in pixels.
_SIDES = ((0, -13), (13, 0), (-13, 0), (0, 14), (12, -11), (-12, -11), (12, 12), (-12, 12), (0, -26), (24, 0), (0, 27))


def _labels(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Baseline of each number, where it covers no mark and no other number, if there is such a place."""
    taken = list(places)
    found = []
    for left, top in places:
        options = [(left + across, top + down) for across, down in _SIDES]
        inside = [option for option in options if _TOP <= option[1] <= _HEIGHT - _BOTTOM - 2 and option[0] < _WIDTH - 8]
        best = max(inside or options, key=lambda option: min(_room(option, other) for other in taken))
        free = next((option for option in inside if all(_room(option, other) >= 1 for other in taken)), best)
        taken.append(free)
        found.append((free[0], free[1] + _LABEL_PX * 0.36))
    return found


def _room(one: tuple[float, float], other: tuple[float, float]) -> float:
    """1 or more where two marks or numbers do not touch."""
    return max(abs(one[0] - other[0]) / 13, abs(one[1] - other[1]) / 11)
