"""A quantile sketch that merges: counts in bins of 1 % relative width, bounded in memory, plain Python.

It keeps no sample and knows no time; which quantiles may be told of how many values is decided by who asks.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Self

RELATIVE_ACCURACY = 0.01
"""How far a quantile may be from the true value, as a fraction of it."""
MAX_BINS = 512
"""More are never kept: the lowest two become one, so that high quantiles stay exact. 512 bins span 1 : 28,000."""
SMALLEST = 1e-9
LARGEST = 1e9
"""Values outside are counted as nought, or as this."""

_GAMMA = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
_PER_LOG = 1 / math.log(_GAMMA)
_MIDDLE = 2 / (_GAMMA + 1)
_RANGE = f"{SMALLEST:g} to {LARGEST:g}"
_KEYS = range(math.ceil(math.log(SMALLEST) * _PER_LOG), math.ceil(math.log(LARGEST) * _PER_LOG) + 1)


class Sketch:
    """DDSketch (Masson, Rim, Lee: VLDB 2019) of values >= 0, with the paper's collapsing of the lowest bins.

    Bin k counts the values in (gamma^(k-1), gamma^k], gamma = 1.01 / 0.99. Merging two sketches gives the sketch
    of all their values, in any order, as long as none had to collapse.
    """

    __slots__ = ("_bins", "_zeros", "count", "total")

    def __init__(self) -> None:
        """Empty."""
        self._bins: dict[int, int] = {}
        self._zeros = 0
        self.count = 0
        self.total = 0.0
        """Sum of the values."""

    def __eq__(self, other: object) -> bool:
        """Equal when bins and sum are."""
        if not isinstance(other, Sketch):
            return NotImplemented
        return (self._zeros, self.total, self._bins) == (other._zeros, other.total, other._bins)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """For people."""
        return f"Sketch(count={self.count}, total={self.total:.6g})"

    def add(self, value: float, n: int = 1) -> None:
        """Count a value `n` times; raises ValueError for one that is negative or not finite, or n < 1."""
        if not 0 <= value < math.inf or n < 1:
            raise ValueError(f"a sketch takes finite values from 0 on, at least once: found {value!r}, {n} times")
        self.count += n
        self.total += value * n
        if value < SMALLEST:
            self._zeros += n
            return
        key = math.ceil(math.log(min(value, LARGEST)) * _PER_LOG)
        self._bins[key] = self._bins.get(key, 0) + n
        if len(self._bins) > MAX_BINS:
            self._collapse()

    def merge(self, other: Sketch) -> None:
        """Add all values of another."""
        self.count += other.count
        self.total += other.total
        self._zeros += other._zeros
        for key, n in other._bins.items():
            self._bins[key] = self._bins.get(key, 0) + n
        self._collapse()

    def _collapse(self) -> None:
        excess = len(self._bins) - MAX_BINS
        if excess <= 0:
            return
        *lowest, kept = sorted(self._bins)[: excess + 1]
        self._bins[kept] += sum(self._bins.pop(key) for key in lowest)

    def quantile(self, q: float) -> float:
        """The value at nearest rank ceil(q * count), within 1 %; raises ValueError when empty or q is not in 0..1."""
        if not self.count or not 0 <= q <= 1:
            raise ValueError(f"quantile {q!r} of {self.count} values")
        # Rounded, or 0.9 of 70 values is rank 64 where 63 is meant.
        rank = max(1, math.ceil(round(q * self.count, 6)))
        if rank <= self._zeros:
            return 0.0
        seen, key = self._zeros, 0
        for key in sorted(self._bins):
            seen += self._bins[key]
            if seen >= rank:
                break
        return math.exp(key / _PER_LOG) * _MIDDLE

    def above(self, value: float) -> int:
        """How many values lie above `value`, but for those within 1 % of it."""
        if value < SMALLEST:
            return self.count - self._zeros
        key = math.ceil(math.log(min(value, LARGEST)) * _PER_LOG)
        return sum(n for at, n in self._bins.items() if at > key)

    def to_json(self) -> dict[str, Any]:
        """{zeros, keys, counts, total}; the first key as it is, each other as its distance from the one before."""
        keys = sorted(self._bins)
        steps = [key - before for before, key in zip([0, *keys], keys, strict=False)]
        return {"zeros": self._zeros, "keys": steps, "counts": [self._bins[key] for key in keys], "total": self.total}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what `to_json` wrote; raises ValueError with one line for anything else."""
        try:
            zeros, steps, counts, total = (found[name] for name in ("zeros", "keys", "counts", "total"))
            whole = set(map(type, (zeros, *steps, *counts))) == {int}
        except (TypeError, KeyError) as error:
            raise ValueError("not a sketch: it has zeros, keys, counts and total") from error
        if not whole or zeros < 0 or min(counts, default=1) < 1 or min(steps[1:], default=1) < 1:
            raise ValueError("not a sketch: its numbers are whole, its counts and distances at least 1")
        if len(steps) != len(counts) or len(steps) > MAX_BINS:
            raise ValueError(f"not a sketch: {len(steps)} keys, {len(counts)} counts, {MAX_BINS} bins at most")
        if type(total) not in (int, float) or not 0 <= total < math.inf:
            raise ValueError(f"not a sketch: its total is {total!r}")
        if steps and not (steps[0] in _KEYS and sum(steps) in _KEYS):
            raise ValueError(f"not a sketch: keys {steps[0]} to {sum(steps)} stand for values beyond {_RANGE}")
        return cls.restored(found)

    @classmethod
    def restored(cls, found: dict[str, Any]) -> Self:
        """Read what `to_json` wrote and was checked when it came: for everything else there is `from_json`."""
        sketch, counts = cls(), found["counts"]
        sketch._bins = dict(zip(itertools.accumulate(found["keys"]), counts, strict=True))
        sketch._zeros, sketch.total = found["zeros"], float(found["total"])
        sketch.count = sketch._zeros + sum(counts)
        return sketch
