"""What a worker counts in a window: all of it, once, and statistics that neither lie nor cost much."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet.sketch import Sketch
from edgefleet_agent import tally as tallies
from edgefleet_agent.tally import OBSERVE_EVERY_S, SAMPLED_VALUES, Tally

Array = NDArray[np.generic]


class Clock:
    """The monotonic clock, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cpu_s = 700.0, 30.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu_s)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def observed(*arrays: Any, outputs: Any = None, clock: Clock | None = None) -> dict[str, Any]:
    """Statistics of input `x` after one observation of each array."""
    tally = Tally()
    for array in arrays:
        tally.observe({"x": np.asarray(array)}, {} if outputs is None else {"y": np.asarray(outputs)})
        if clock is not None:
            clock.now += OBSERVE_EVERY_S
    (found,) = tally.report()["statistics"]["inputs"]
    assert isinstance(found, dict)
    return found


def test_a_report_counts_what_happened(clock: Clock) -> None:
    tally = Tally()
    for run in range(1, 11):
        tally.add(run / 1000, run / 500, 0.0005)
    tally.error()
    tally.labelled(correct=True)
    tally.labelled(correct=False)
    clock.now += 10.5
    clock.cpu_s += 1.5
    report = tally.report()
    assert (report["started_s"], report["duration_s"], report["cpu_s"]) == (700.0, 10.5, 1.5)
    assert (report["count"], report["errors"]) == (10, 1)
    assert report["accuracy"] == {"correct": 1, "labelled": 2}
    sketches = {part: Sketch.from_json(found) for part, found in report["latency"].items()}
    assert {part: sketch.count for part, sketch in sketches.items()} == dict.fromkeys(
        ("preprocess", "inference", "end_to_end"), 10
    )
    assert sketches["inference"].quantile(1.0) == pytest.approx(0.01, rel=0.011)
    assert sketches["end_to_end"].quantile(1.0) == pytest.approx(0.02, rel=0.011)
    assert sketches["preprocess"].total == pytest.approx(0.005)


def test_without_labels_or_tensors_there_is_nothing_of_them(clock: Clock) -> None:
    report = Tally().report()
    assert clock.now == report["started_s"]
    assert (report["accuracy"], report["statistics"]) == (None, {"inputs": [], "outputs": []})


@pytest.mark.parametrize(
    "arrays",
    [
        [[1.0, 2.0, 3.0, 4.0]],
        [[[1.0], [2.0]], [[5.0], [-9.0]], [[0.0], [0.0]]],
        [np.arange(12, dtype=np.uint8).reshape(3, 4), np.full((3, 4), 255, np.uint8)],
        [np.array([1e6, 1e6 + 1], np.float32), np.array([1e6 + 2, 1e6 + 3], np.float32)],
        [np.int64(7)],
        [[True, False, True]],
    ],
)
def test_moments_over_several_arrays_are_those_of_all_values(clock: Clock, arrays: list[Any]) -> None:
    found = observed(*arrays, clock=clock)
    values = np.concatenate([np.ravel(np.asarray(array)) for array in arrays]).astype(np.float64)
    assert (found["name"], found["values"], found["not_finite"]) == ("x", values.size, 0)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std(), abs=1e-6)
    assert (found["min"], found["max"]) == (values.min(), values.max())


def test_what_is_no_number_is_counted_and_left_out(clock: Clock) -> None:
    found = observed([1.0, np.nan, 3.0, np.inf], [-np.inf, 5.0], clock=clock)
    assert (found["values"], found["not_finite"]) == (3, 3)
    assert (found["mean"], found["min"], found["max"]) == (pytest.approx(3.0), 1.0, 5.0)


@pytest.mark.parametrize("array", [[], [np.nan, np.inf]])
def test_without_a_finite_value_there_are_no_moments(clock: Clock, array: list[float]) -> None:
    found = observed(array, clock=clock)
    assert [found[name] for name in ("values", "mean", "std", "min", "max")] == [0, None, None, None, None]


def test_a_spread_that_no_float_holds_is_none_and_the_report_is_json(clock: Clock) -> None:
    found = observed([-1e308, 1e308, 1e200], clock=clock)
    assert json.loads(json.dumps(found, allow_nan=False))["values"] == 3


def test_of_a_large_tensor_so_many_values_are_looked_at_all_over_it(clock: Clock) -> None:
    for size in (SAMPLED_VALUES, SAMPLED_VALUES + 1, 10 * SAMPLED_VALUES + 7):
        found = observed(np.linspace(0.0, 1.0, size), clock=clock)
        assert SAMPLED_VALUES / 2 <= found["values"] <= SAMPLED_VALUES
        assert found["mean"] == pytest.approx(0.5, abs=0.01)
        assert found["max"] > 0.99


def test_tensors_are_looked_at_ten_times_a_second_at_most(clock: Clock) -> None:
    tally = Tally()
    for _ in range(1000):
        tally.observe({"x": np.ones(4)}, {"y": np.ones(2)})
        clock.now += 0.01
    statistics = tally.report()["statistics"]
    # Ten seconds: the first at once, and no two closer than a tenth of a second.
    assert 90 * 4 <= statistics["inputs"][0]["values"] <= 101 * 4
    assert statistics["outputs"][0]["values"] * 2 == statistics["inputs"][0]["values"]


def test_a_model_with_many_tensors_reports_the_first(clock: Clock) -> None:
    tally = Tally()
    arrays: dict[str, Array] = {f"{number}{'n' * 300}": np.ones(1) for number in range(20)}
    tally.observe(arrays, arrays)
    statistics = tally.report()["statistics"]
    assert clock.now == 700.0
    for side in ("inputs", "outputs"):
        assert [tensor["name"][0] for tensor in statistics[side]] == list("01234567")
        assert {len(tensor["name"]) for tensor in statistics[side]} == {tallies.NAME_CHARACTERS}
