"""Figures over several windows: enough runs, nothing measured mixed with an estimate, energy that means something."""

from __future__ import annotations

from typing import Any

import pytest

from edgefleet.protocol.measurements import EstimatedEnergy, MeasuredEnergy, Thermal
from edgefleet.protocol.messages import Window
from edgefleet.sketch import Sketch
from edgefleet.spans import Figure, Span, energy_per_inference, merge, net_of_idle, percentile
from sdk.wire_examples import ESTIMATED_WINDOW, WINDOW, latency


def sketch_of(count: int) -> Sketch:
    sketch = Sketch()
    for run in range(1, count + 1):
        sketch.add(run / 1000)
    return sketch


def window(**changes: Any) -> Window:
    return WINDOW.model_copy(update=changes)


def measured(joules: float, duration_s: float = 10.0, samples: int = 10_000, scope: str = "package") -> MeasuredEnergy:
    return MeasuredEnergy(joules=joules, duration_s=duration_s, samples=samples, scope=scope)


def estimated(joules: float, reason: str = "no sensor", scope: str = "package") -> EstimatedEnergy:
    return EstimatedEnergy(
        joules=joules, low_j=joules / 2, high_j=joules * 2, duration_s=10.0, scope=scope, reason=reason
    )


# Percentiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "wanted"), [(0.5, 7), (0.9, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_needs_its_runs(q: float, wanted: int) -> None:
    assert percentile(sketch_of(wanted - 1), q) == Figure(None, f"{wanted - 1} runs: p{q * 100:.0f} needs {wanted}")
    found = percentile(sketch_of(wanted), q)
    assert found.reason is None
    assert found.value == pytest.approx(sketch_of(wanted).quantile(q))
    assert percentile(Sketch(), q).value is None


def test_windows_too_short_for_a_percentile_have_one_together() -> None:
    short = window(count=8, latency=latency(*[run / 1000 for run in range(1, 9)]))
    assert percentile(merge([short]).inference, 0.9).reason == "8 runs: p90 needs 64"
    # Of 80 runs, 10 each of 1 to 8 ms: the 72nd.
    assert percentile(merge([short] * 10).inference, 0.9).value == pytest.approx(0.008, rel=0.011)


# Merging ----------------------------------------------------------------------------------------------


def test_everything_adds_up() -> None:
    span = merge([WINDOW, window(accuracy=None, duration_s=9.5)])
    assert (span.windows, span.duration_s, span.count, span.errors) == (2, 20.0, 400, 2)
    assert (span.correct, span.labelled) == (190, 200)
    assert (span.preprocess.count, span.inference.count, span.end_to_end.count) == (400, 400, 400)
    assert span.end_to_end.quantile(1.0) == pytest.approx(0.0025, rel=0.01)
    assert span.achieved_per_s == 20.0


@pytest.mark.parametrize(("span_s", "windows"), [(1.0, 1), (10.5, 1), (10.6, 2), (31.5, 3), (32.0, 4), (1000.0, 5)])
def test_so_many_of_the_newest_windows_as_last_long_enough(span_s: float, windows: int) -> None:
    assert merge([WINDOW] * 5, span_s).windows == windows


def test_no_windows_are_no_figures() -> None:
    span = merge([])
    assert span == Span()
    assert (span.energy, span.achieved_per_s) == (None, None)
    assert energy_per_inference(span.energy) == Figure(None, "no inference")


def test_merging_leaves_the_windows_as_they_were() -> None:
    before = WINDOW.model_dump_json()
    merge([WINDOW, WINDOW])
    assert WINDOW.model_dump_json() == before


# Energy -----------------------------------------------------------------------------------------------


def test_energy_is_gross_and_what_the_idle_board_draws_is_told_beside_it() -> None:
    total = merge([window(energy=measured(35.0)), window(energy=measured(45.0))]).energy
    assert total is not None
    assert (total.watts, total.inferences) == (4.0, 400)
    assert energy_per_inference(total) == Figure(0.2)
    assert net_of_idle(total, 1.0) == Figure(0.15)
    assert net_of_idle(total, 100.0) == Figure(0.0)


@pytest.mark.parametrize("order", [1, -1])
def test_measured_is_never_added_to_estimated_nor_one_scope_to_another(order: int) -> None:
    energies = [estimated(1000.0), measured(20.0), estimated(1000.0), measured(30.0), measured(1.0, scope="psys")]
    span = merge([window(energy=energy) for energy in energies[::order]])
    assert {key: total.joules for key, total in span.energies.items()} == {
        ("estimated", "package"): 2000.0, ("measured", "package"): 50.0, ("measured", "psys"): 1.0
    }  # fmt: skip
    total = span.energy
    assert total is not None
    assert (total.source, total.scope, total.joules, total.duration_s) == ("measured", "package", 50.0, 20.0)
    # The inferences of the two measured windows alone.
    assert energy_per_inference(total) == Figure(50.0 / 400)


def test_estimates_keep_their_range_and_their_reason() -> None:
    total = merge([window(energy=estimated(10.0, "new")), window(energy=estimated(20.0, "old"))]).energy
    assert total is not None
    assert (total.joules, total.low_j, total.high_j) == (30.0, 15.0, 60.0)
    # Windows come newest first.
    assert total.reason == "new"
    assert energy_per_inference(total) == Figure(30.0 / 400)


@pytest.mark.parametrize(
    ("energy", "reason"),
    [
        (measured(9.0, duration_s=9.9), "9.9 s: energy needs 10 s"),
        (measured(9.0, samples=99), "99 readings of the sensor: energy needs 100"),
        (measured(9.0, duration_s=59.0, samples=590), "59.0 s: this sensor needs 60 s"),
        (measured(9.0, duration_s=10.0, samples=100), "10.0 s: this sensor needs 60 s"),
        (measured(9.0, duration_s=60.0, samples=600), None),
        (measured(9.0, duration_s=59.0, samples=591), None),
        (measured(9.0, duration_s=10.0, samples=101), None),
        (estimated(9.0), None),
    ],
)
def test_energy_needs_its_time_and_its_readings(energy: MeasuredEnergy | EstimatedEnergy, reason: str | None) -> None:
    found = energy_per_inference(merge([window(energy=energy)]).energy)
    assert found.reason == reason
    assert found.value == (None if reason else 9.0 / 200)
    assert net_of_idle(merge([window(energy=energy)]).energy, 0.1).reason == reason


def test_a_throttled_window_says_so_instead_of_a_figure() -> None:
    hot = window(thermal=Thermal(throttled=True))
    total = merge([WINDOW, hot, WINDOW, window(thermal=Thermal(throttled=None))]).energy
    assert energy_per_inference(total) == Figure(None, "throttled in 1 of 4 windows")


def test_nothing_is_divided_by_no_inference() -> None:
    idle = window(count=0, latency=latency(), energy=measured(20.0))
    assert energy_per_inference(merge([idle]).energy) == Figure(None, "no inference")
    assert merge([ESTIMATED_WINDOW]).energy is not None
