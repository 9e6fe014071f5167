"""What the worker computes: percentiles with enough runs, and a self-test that lets nothing wrong pass."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_agent import worker
from edgefleet_agent.sources.replay import Sample
from edgefleet_agent.worker import Variant, latency_summary, run, self_test

Array = NDArray[np.float32]


# Latency ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "p50", "p90", "reason"),
    [
        (0, None, None, "0 runs: p50 needs 7 runs, p90 needs 64 runs"),
        (6, None, None, "6 runs: p50 needs 7 runs, p90 needs 64 runs"),
        (7, 4.0, None, "7 runs: p90 needs 64 runs"),
        (63, 32.0, None, "63 runs: p90 needs 64 runs"),
        (64, 32.0, 58.0, None),
        (100, 50.0, 90.0, None),
        (101, 51.0, 91.0, None),
    ],
)
def test_a_percentile_needs_its_runs(count: int, p50: float | None, p90: float | None, reason: str | None) -> None:
    runs = [float(run) for run in range(count, 0, -1)]
    assert latency_summary(runs) == {"p50_ms": p50, "p90_ms": p90, "reason": reason}
    assert runs == [float(run) for run in range(count, 0, -1)], "the runs must not be sorted in place"


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e4), min_size=64, max_size=300))
def test_a_percentile_is_a_run_and_that_share_is_not_above_it(runs: list[float]) -> None:
    found = latency_summary(runs)
    for share, value in ((0.5, found["p50_ms"]), (0.9, found["p90_ms"])):
        assert value in runs
        assert sum(run <= value for run in runs) >= share * len(runs)
        assert sum(run < value for run in runs) < share * len(runs) + 1e-9


# Self-test --------------------------------------------------------------------------------------------


class FakeModel:
    """Takes x [2, 3, 1] in the file's layout and gives y = 2x there; `spoil` changes what comes out."""

    def __init__(self, spoil: Mapping[int, float] | None = None) -> None:
        self.spoil = spoil or {}
        self.runs = 0
        self.shapes: set[tuple[int, ...]] = set()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["x"].flags["C_CONTIGUOUS"]
        self.shapes.add(inputs["x"].shape)
        output = 2 * inputs["x"]
        if self.runs in self.spoil:
            output = output.copy()
            output.flat[-1] = self.spoil[self.runs] + (0 if math.isnan(self.spoil[self.runs]) else output.flat[-1])
        self.runs += 1
        return {"y": output}


SPEC: dict[str, Any] = {
    "runtime": "fake",
    "model_file": "m",
    "golden": {"samples": 2, "tolerances": {"y": 0.5}},
    "inputs": [{"name": "x", "shape": [1, 2, 3], "permutation": [1, 2, 0]}],
    "outputs": [{"name": "y", "shape": [1, 2, 3], "permutation": [1, 2, 0]}],
}


def variant(monkeypatch: pytest.MonkeyPatch, model: FakeModel, spec: dict[str, Any] = SPEC) -> Variant:
    monkeypatch.setattr(worker, "open_model", lambda _runtime, _path, _threads: model)
    return Variant(Path("slot"), spec)


@pytest.fixture(name="golden")
def _golden(tmp_path: Path) -> Path:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3)
    np.savez(tmp_path / "golden.npz", **{"input:x": x, "output:y": 2 * x})  # type: ignore[arg-type]
    return tmp_path / "golden.npz"


def test_golden_outputs_pass_in_the_files_layout(monkeypatch: pytest.MonkeyPatch, golden: Path) -> None:
    model = FakeModel()
    assert self_test(variant(monkeypatch, model), golden) == {"ok": True, "reason": None, "max_abs_difference": 0.0}
    assert model.shapes == {(2, 3, 1)}
    assert model.runs == 2 * worker.SELF_TEST_RUNS


@pytest.mark.parametrize("run", range(4))
@pytest.mark.parametrize(("by", "ok"), [(0.4, True), (-0.4, True), (0.75, False), (-0.75, False), (1e6, False)])
def test_one_wrong_value_in_any_run_is_found(
    monkeypatch: pytest.MonkeyPatch, golden: Path, run: int, by: float, ok: bool
) -> None:
    found = self_test(variant(monkeypatch, FakeModel({run: by})), golden)
    assert found["ok"] is ok
    assert found["max_abs_difference"] == pytest.approx(abs(by), rel=1e-5)
    assert ok or "0.5 is allowed" in found["reason"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_passes_not_even_beside_good_runs(
    monkeypatch: pytest.MonkeyPatch, golden: Path, value: float
) -> None:
    found = self_test(variant(monkeypatch, FakeModel({0: value})), golden)
    assert (found["ok"], found["max_abs_difference"]) == (False, None)


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 3), (1, 2, 1), (6,)])
def test_an_output_of_another_shape_never_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Broadcasting would stretch one over the other and find no difference."""
    x = np.zeros((2, 1, 2, 3), np.float32)
    np.savez(tmp_path / "golden.npz", **{"input:x": x, "output:y": np.zeros((2, *shape), np.float32)})  # type: ignore[arg-type]
    found = self_test(variant(monkeypatch, FakeModel()), tmp_path / "golden.npz")
    assert (found["ok"], found["max_abs_difference"]) == (False, None)
    assert "0.5 is allowed" in found["reason"]


@pytest.mark.parametrize("permutation", [None, [0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_permutation_is_undone_on_the_way_out(monkeypatch: pytest.MonkeyPatch, permutation: list[int] | None) -> None:
    tensor = {"name": "x", "shape": [2, 3, 4], "permutation": permutation}
    spec = SPEC | {"inputs": [tensor], "outputs": [tensor | {"name": "y"}]}
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(variant(monkeypatch, FakeModel(), spec).infer({"x": x})["y"], 2 * x)


# Inference over a source ------------------------------------------------------------------------------


class Clock:
    """The worker's clock; every inference takes 3 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        tally = worker._Tally
        monkeypatch.setattr(worker, "_Tally", lambda: tally(started_at=1e9 + self.now, started_s=self.now))
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Classifier:
    """Says the class that the input names; fails on negative inputs."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.clock.now += 0.003
        wanted = int(inputs["x"].flat[0])
        if wanted < 0:
            raise RuntimeError("the runtime refused")
        return {"y": np.eye(4, dtype=np.float32)[[wanted]]}


def samples(*pairs: tuple[int, int | None]) -> Iterator[Sample]:
    while True:
        for value, label in pairs:
            yield {"x": np.full((1, 1), value, np.float32)}, label


def reports(
    monkeypatch: pytest.MonkeyPatch, source: Iterator[Sample], count: int, rate_per_s: float = 100.0
) -> list[dict[str, Any]]:
    clock = Clock(monkeypatch)
    tensor = {"name": "x", "shape": [1, 1], "permutation": None}
    spec = SPEC | {"inputs": [tensor], "outputs": [tensor | {"name": "y"}]}
    monkeypatch.setattr(worker, "open_model", lambda *_: Classifier(clock))
    found = []
    for report in run(Variant(Path("slot"), spec), source, rate_per_s, 2.0):
        if "wait_s" in report:
            assert 0 <= report["wait_s"] <= 1 / rate_per_s
            clock.now += report["wait_s"]
        else:
            found.append(report)
            if len(found) == count:
                break
    return found


def test_windows_count_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = reports(monkeypatch, samples((1, 1), (2, 3), (3, None), (-1, 1)), 2)
    assert first["started_at"] == pytest.approx(1e9 + 50.0)
    assert first["duration_s"] == pytest.approx(2.0, abs=0.02)
    assert first["count"] + first["errors"] == pytest.approx(200, abs=2)
    assert first["errors"] == pytest.approx(50, abs=1)
    assert first["accuracy"]["labelled"] == pytest.approx(100, abs=1)
    assert first["accuracy"]["correct"] == pytest.approx(50, abs=1)
    assert first["latency"] == {"p50_ms": pytest.approx(3.0), "p90_ms": pytest.approx(3.0), "reason": None}
    assert second["started_at"] >= first["started_at"] + first["duration_s"]


def test_without_labels_there_is_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = reports(monkeypatch, samples((1, None)), 1)
    assert found["accuracy"] is None


def test_errors_alone_make_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = reports(monkeypatch, samples((-1, 1)), 1)
    assert (found["count"], found["accuracy"]) == (0, None)
    assert found["errors"] > 100
    assert found["latency"]["p50_ms"] is None


def test_late_inferences_are_not_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = reports(monkeypatch, samples((1, 1)), 1, rate_per_s=10_000.0)
    assert found["count"] == pytest.approx(2.0 / 0.003, abs=2)
