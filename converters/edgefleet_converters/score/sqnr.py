"""Noise of a model's outputs against its reference: signal to noise of each output, and of each slice of its channels.

Over a whole output the ratio hides the classic failure: boxes of 0 to 640 and scores of 0 to 1 that share one int8
scale give 54 dB although every score is 0. So the worst slice counts. Does not judge; `gate` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.score.arrays import in_chunks
from edgefleet_converters.score.interval import Floats

CEILING_DB = 150.0
"""Ratios are cut here: 24 bits of float32 carry 146 dB."""
WORST_KEPT = 8
"""How many slices of an output are told of."""
WHOLE = -1

# Slices whose peaks differ by more cannot share an 8-bit scale: four of its bits are lost.
_KIN = 16.0
# 8 bits over [-peak, peak] leave noise of peak / 442; a slice as quiet as that is still 20 dB above it at peak / 32.
_FLOOR = 1 / 32
# A peak below this share of the output's is rounding: such a slice is constantly zero.
_SILENT = 1e-6


@dataclass(frozen=True, slots=True)
class SliceNoise:
    """One slice of an output: `axis` of the source's layout (`WHOLE`: there are no slices), `index` along it."""

    axis: int
    index: int
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class OutputNoise:
    """One output against the reference's; None where nothing differs, or where it has another kind of numbers."""

    name: str
    whole_db: float | None = None
    worst_db: float | None = None
    """Of the worst slice."""
    slices: tuple[SliceNoise, ...] = ()
    """The worst slices, worst first; none where nothing differs."""
    equal: float | None = None
    """Share of equal elements of an output of integers or truth values."""

    @property
    def text(self) -> str:
        """The output's name, and its worst slice where it has several."""
        if not self.slices or self.slices[0].axis == WHOLE:
            return f"{self.name!r}"
        return f"{self.name!r}, slice {self.slices[0].index} of axis {self.slices[0].axis}"


@dataclass(slots=True)
class _Sums:
    """Of every slice along one axis, over all samples: signal and noise energy, peak, and how many values it has."""

    signal: Floats
    noise: Floats
    peak: Floats
    values: int


def slice_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of an output (its shape with the batch axis) whose slices are judged, in the source's layout.

    The last one; from rank 3 on axis 1 too, for either may hold the channels: [1, 84, 8400] and [1, 8400, 84] both
    occur. The worse of the two counts.
    """
    if len(shape) <= 1:
        return tuple(range(len(shape)))
    return (len(shape) - 1,) if len(shape) == 2 else (1, len(shape) - 1)


def measure_noise(name: str, found: NDArray[np.generic], expected: NDArray[np.generic]) -> OutputNoise:
    """Compare one output [N, *shape] with its reference; values that are not finite are left out, `faults` has them."""
    if expected.dtype.kind != "f":
        return OutputNoise(name, equal=float(np.mean(found == expected)))
    axes = slice_axes(expected.shape[1:]) if expected[0].size > 1 else ()
    if not axes:
        found, expected = found.reshape(len(found), 1), expected.reshape(len(expected), 1)
    sums = _add_up(found, expected, axes or (0,))
    kept = [item for axis, one in sums.items() for item in _slices(one, axis if axes else WHOLE)]
    kept.sort(key=lambda item: item.sqnr_db)
    # Every axis adds up to the same.
    total = next(iter(sums.values()))
    whole = _ratio_db(float(total.signal.sum()), float(total.noise.sum()))
    return OutputNoise(name, whole, kept[0].sqnr_db if kept else None, tuple(kept[:WORST_KEPT]))


def _add_up(found: NDArray[np.generic], expected: NDArray[np.generic], axes: tuple[int, ...]) -> dict[int, _Sums]:
    shape = expected.shape[1:]
    sums = {}
    for axis in axes:
        count = shape[axis]
        sums[axis] = _Sums(np.zeros(count), np.zeros(count), np.zeros(count), expected.size // count)
    for mine, theirs in in_chunks(found, expected):
        signal = theirs.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = mine.astype(np.float64) - signal
        known = np.isfinite(apart)
        if not known.all():
            signal, apart = np.where(known, signal, 0), np.where(known, apart, 0)
        for axis, one in sums.items():
            others = tuple(place for place in range(signal.ndim) if place != axis + 1)
            one.signal += np.sum(signal**2, axis=others)
            one.noise += np.sum(apart**2, axis=others)
            one.peak = np.maximum(one.peak, np.abs(signal).max(axis=others, initial=0))
    return sums


def _slices(sums: _Sums, axis: int) -> list[SliceNoise]:
    floor = sums.values * (_FLOOR * kin_peaks(sums.peak)) ** 2
    signal = np.maximum(sums.signal, floor)
    # Only the worst are kept, and an axis may have thousands of slices.
    with np.errstate(divide="ignore", invalid="ignore"):
        ranked = np.argsort(np.where(sums.noise > 0, signal / sums.noise, np.inf), kind="stable")
    found = []
    for index in ranked[:WORST_KEPT]:
        ratio = _ratio_db(float(signal[index]), float(sums.noise[index]))
        if ratio is not None:
            found.append(SliceNoise(axis, int(index), ratio))
    return found


def kin_peaks(peaks: Floats) -> Floats:
    """For every slice the largest peak among its kin, which sets the least signal that its noise is held against.

    Kin are slices that could share an 8-bit scale: sorted by peak, no step between neighbours is above 16. Without
    this, a class that the samples never show would fail for noise that no score of its kin feels; with one floor for
    the whole output, scores beside boxes would again be hidden. A slice that is always 0 joins the quietest kin.
    """
    order = np.argsort(-peaks, kind="stable")
    result = np.zeros_like(peaks)
    top = last = float(peaks[order[0]])
    silent = _SILENT * top
    for index in order:
        peak = float(peaks[index])
        if peak > silent:
            top = peak if last > _KIN * peak else top
            last = peak
        result[index] = top
    return result


def _ratio_db(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    if signal == 0:
        return -CEILING_DB
    return float(np.clip(10 * np.log10(signal / noise), -CEILING_DB, CEILING_DB))
