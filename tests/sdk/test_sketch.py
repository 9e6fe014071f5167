"""Quantile sketches: their accuracy, their bounds, their merging, and what is not one."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from edgefleet.sketch import LARGEST, MAX_BINS, RELATIVE_ACCURACY, SMALLEST, Sketch

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def nearest_rank(values: list[float], q: float) -> float:
    return sorted(values)[max(1, math.ceil(round(q * len(values), 6))) - 1]


def values(shape: str, count: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return {
        "uniform": lambda: [draw.uniform(0.001, 0.1) for _ in range(count)],
        "long tail": lambda: [draw.lognormvariate(-5, 1.0) for _ in range(count)],
        "two humps": lambda: [draw.gauss(draw.choice((0.01, 0.2)), 0.001) for _ in range(count)],
        "all the same": lambda: [0.0123] * count,
    }[shape]()


@pytest.mark.parametrize("shape", ["uniform", "long tail", "two humps", "all the same"])
@pytest.mark.parametrize("count", [1, 2, 7, 70, 5000])
def test_every_quantile_is_within_one_percent_of_the_value_at_its_rank(shape: str, count: int) -> None:
    found = values(shape, count, seed=count)
    sketch = sketch_of(found)
    for q in QUANTILES:
        # A hair more than 1 %: the logarithm of a value at a bin's very edge is rounded.
        assert sketch.quantile(q) == pytest.approx(nearest_rank(found, q), rel=RELATIVE_ACCURACY * 1.0001)
    assert sketch.count == count
    assert sketch.total == pytest.approx(sum(found))


def test_merging_is_adding_all_values_in_any_order() -> None:
    parts = [values("long tail", 300, seed) for seed in range(5)]
    whole = sketch_of([value for part in parts for value in part])
    forwards, backwards = Sketch(), Sketch()
    for part in parts:
        forwards.merge(sketch_of(part))
    for part in reversed(parts):
        backwards.merge(sketch_of(part))
    for merged in (forwards, backwards):
        assert merged.count == whole.count
        assert {**merged.to_json(), "total": 0} == {**whole.to_json(), "total": 0}
        assert merged.total == pytest.approx(whole.total)


def test_a_value_counted_n_times_is_n_values() -> None:
    sketch = Sketch()
    sketch.add(0.5, 3)
    assert sketch == sketch_of([0.5] * 3)


def test_bins_are_bounded_and_high_quantiles_stay() -> None:
    spread = [10 ** (exponent / 100) for exponent in range(-800, 800)]
    sketch = sketch_of(spread)
    assert len(sketch.to_json()["keys"]) == MAX_BINS
    assert sketch.count == len(spread)
    for q in (0.75, 0.9, 0.99, 1.0):
        assert sketch.quantile(q) == pytest.approx(nearest_rank(spread, q), rel=RELATIVE_ACCURACY * 1.0001)
    doubled = sketch_of(spread)
    doubled.merge(sketch_of([value * 1e3 for value in spread if value < 1e5]))
    assert len(doubled.to_json()["keys"]) == MAX_BINS


def test_what_is_out_of_range_is_counted_at_its_end() -> None:
    sketch = sketch_of([0.0, SMALLEST / 2, LARGEST * 10])
    assert (sketch.quantile(0.5), sketch.count) == (0.0, 3)
    assert sketch.quantile(1.0) == pytest.approx(LARGEST, rel=RELATIVE_ACCURACY * 1.0001)
    assert Sketch.from_json(sketch.to_json()) == sketch
    edges = sketch_of([SMALLEST, LARGEST])
    assert Sketch.from_json(edges.to_json()) == edges


def test_it_survives_json_and_is_small() -> None:
    sketch = sketch_of([*values("two humps", 1000, 1), 0.0])
    text = json.dumps(sketch.to_json(), separators=(",", ":"))
    again = Sketch.from_json(json.loads(text))
    assert again == sketch
    assert again.quantile(0.9) == sketch.quantile(0.9)
    assert Sketch.from_json(Sketch().to_json()) == Sketch()
    # A window of one model: a few dozen bins.
    assert len(text) < 500


@pytest.mark.parametrize("value", [-1e-12, math.nan, math.inf, -math.inf])
def test_what_is_no_duration_is_refused(value: float) -> None:
    sketch = Sketch()
    with pytest.raises(ValueError, match="finite"):
        sketch.add(value)
    with pytest.raises(ValueError, match="at least once"):
        sketch.add(1.0, 0)
    assert sketch.count == 0


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_there_is_no_quantile_of_nothing_nor_outside_0_to_1(q: float) -> None:
    with pytest.raises(ValueError, match="of 0 values"):
        Sketch().quantile(0.5)
    with pytest.raises(ValueError, match="of 1 values"):
        sketch_of([1.0]).quantile(q)


GOOD: dict[str, Any] = {"zeros": 0, "keys": [-5, 2], "counts": [1, 1], "total": 1.5}


@pytest.mark.parametrize(
    "found",
    [
        {},
        [],
        None,
        {**GOOD, "zeros": -1},
        {**GOOD, "zeros": 0.5},
        {**GOOD, "zeros": True},
        {**GOOD, "keys": [-5]},
        {**GOOD, "keys": [-5, 0]},
        {**GOOD, "keys": [-5, -1]},
        {**GOOD, "keys": [-5, "2"]},
        {**GOOD, "keys": 5},
        {**GOOD, "keys": [-5000, 2]},
        {**GOOD, "keys": [-5, 5000]},
        {**GOOD, "counts": [1, 0]},
        {**GOOD, "counts": [1, 1.0]},
        {**GOOD, "total": -1.0},
        {**GOOD, "total": math.nan},
        {**GOOD, "total": math.inf},
        {**GOOD, "total": None},
        {**GOOD, "total": True},
        {**GOOD, "keys": [1] * (MAX_BINS + 1), "counts": [1] * (MAX_BINS + 1)},
    ],
)
def test_what_is_no_sketch_is_refused_with_one_line(found: Any) -> None:
    with pytest.raises(ValueError, match=r"^not a sketch: [^\n]+$"):
        Sketch.from_json(found)


def test_how_many_lie_above_a_value() -> None:
    sketch = Sketch()
    for value in (0.0, *range(1, 101)):
        sketch.add(float(value))
    assert [sketch.above(value) for value in (0.0, 0.5, 200.0, 1e12)] == [100, 100, 0, 0]
    for value in (3.0, 10.0, 50.0, 90.0):
        assert 100 - value * 1.02 - 1 <= sketch.above(value) <= 100 - value
    assert sketch.above(sketch.quantile(0.9)) <= 11
