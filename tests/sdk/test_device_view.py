"""One device as `edgefleet fleet show` shows it: figures with their reasons, tensors now and before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.cli import app
from edgefleet.errors import InputError
from edgefleet.protocol.measurements import Statistics, TensorStatistics
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.store import Store
from sdk.wire_examples import FACTS, MANIFEST, STATE, WINDOW, event, latency, telemetry

PI = "pi-1"


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / STORE_FILE)
    with store.transaction():
        store.add_facts(PI, FACTS, 1000.0)
    yield store
    store.close()


def runs_a_variant(store: Store, **changes: object) -> None:
    store.set_state(PI, STATE.model_copy(update={"enrolment_id": FACTS.enrolment_id, **changes}), 1000.0)
    store._db.execute("UPDATE devices SET digest = ?, variant = 'litert-int8' WHERE device = ?", (MANIFEST, PI))


def measured(store: Store, seq: int, now: float, *values: float, device: str = PI, digest: str = MANIFEST) -> None:
    finite = [value for value in values if math.isfinite(value)]
    tensor = TensorStatistics(
        name="x", values=len(finite), not_finite=len(values) - len(finite),
        mean=statistics.fmean(finite) if finite else None, std=statistics.pstdev(finite) if finite else None,
        min=min(finite, default=None), max=max(finite, default=None),
    )  # fmt: skip
    window = WINDOW.model_copy(update={"statistics": Statistics(inputs=(tensor,)), "digest": digest})
    store.add_telemetry(device, telemetry(seq, window=window), now)


def shown(tmp_path: Path, device: str = PI) -> str:
    result = CliRunner().invoke(app, ["fleet", "show", device, "--data", str(tmp_path)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_device_with_everything(store: Store, tmp_path: Path) -> None:
    with store.transaction():
        runs_a_variant(store, reason="the gate [red]latency[/red]\x1b[2J said no")
        for seq in range(1, 61):
            store.add_telemetry(PI, telemetry(seq), 1000.0 + 10 * seq)
        for seq in range(61, 75):
            store.add_event(PI, event(seq), 2000.0)
    output = shown(tmp_path)
    assert f"runs litert-int8\n  {MANIFEST}" in output
    assert "in all: 12000 runs, 60 errors, 60 windows, 95.00% of 12000 right" in output
    assert "newest: 304 s in 29 windows" in output
    # What a device says is neither markup nor a command to the terminal.
    assert "the gate [red]latency[/red]" in output
    assert "\x1b" not in output
    assert "power: 3.585 W measured, package\nenergy a run: 183.8 mJ" in output
    assert ["inference", "1.488", "2.265", "2.265"] in [line.split() for line in output.splitlines()]
    assert "event 65" in output
    assert "event 64" not in output


def test_what_cannot_be_given_says_why(store: Store, tmp_path: Path) -> None:
    few = WINDOW.model_copy(update={"latency": latency(0.001, times=9), "count": 9, "duration_s": 5.0})
    few = few.model_copy(update={"energy": WINDOW.energy.model_copy(update={"duration_s": 5.0})})
    with store.transaction():
        runs_a_variant(store)
        store.add_telemetry(PI, telemetry(1, window=few), 1000.0)
    output = shown(tmp_path)
    assert "9 runs: p90 needs 64; 9 runs: p99 needs 662" in output
    assert "energy a run: – (5.0 s: energy needs 10 s)" in output


def test_a_device_that_only_said_hello(store: Store, tmp_path: Path) -> None:
    assert store.device(PI) is not None
    output = shown(tmp_path)
    assert "waiting, generation 0" in output
    assert "it runs no variant" in output
    with pytest.raises(InputError, match="never said hello here; look at: edgefleet fleet list"):
        shown(tmp_path, "pi-2")


def test_inputs_of_the_last_minutes_stand_beside_all_that_are_kept(store: Store, tmp_path: Path) -> None:
    with store.transaction():
        runs_a_variant(store)
        measured(store, 1, 1000.0, 0.0, 2.0)
        measured(store, 2, 1100.0, 0.0, 2.0)
        measured(store, 3, 1500.0, 5.0, 7.0, math.inf)
        # Neither of these is of this variant on this device.
        measured(store, 4, 1500.0, 900.0, digest="sha256:" + "9" * 64)
        measured(store, 3, 1500.0, 900.0, device="pi-2")
    (newest,), (kept,) = store.tensors(PI, MANIFEST, 300.0), store.tensors(PI, MANIFEST)
    assert (newest.values, newest.not_finite, newest.mean, newest.std) == (2, 1, 6.0, 1.0)
    assert kept.mean == pytest.approx(16 / 6)
    assert (kept.values, kept.low, kept.high) == (6, 0.0, 7.0)
    shift = (6.0 - 16 / 6) / statistics.pstdev([0, 2, 0, 2, 5, 7])
    row = ["input", "x", "6", "2.667", f"{shift:+.2f}", "1", f"{kept.std:.4g}", "5", "7", "1"]
    assert row in [line.split() for line in shown(tmp_path).splitlines()]


# Each of them opens a store.
@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), min_size=1, max_size=5))
def test_several_windows_are_as_all_their_values(windows: list[list[float]]) -> None:
    store = Store(Path(":memory:"))
    for seq, values in enumerate(windows, start=1):
        measured(store, seq, 1000.0, *values)
    (found,) = store.tensors(PI, MANIFEST)
    together = [value for values in windows for value in values]
    assert (found.values, found.low, found.high) == (
        len(together), min(together, default=None), max(together, default=None)
    )  # fmt: skip
    if together:
        assert found.mean == pytest.approx(statistics.fmean(together), abs=1e-9)
        assert found.std == pytest.approx(statistics.pstdev(together), abs=1e-4)
    else:
        assert (found.mean, found.std) == (None, None)
    store.close()
