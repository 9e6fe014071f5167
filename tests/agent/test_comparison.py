"""The comparison on live inputs: real workers of two variants, a source, and what the probation is told."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from agent.test_bench import installed
from agent.worker_lab import ToldWindows
from edgefleet.protocol.messages import ActiveVariant, State, Window
from edgefleet_agent import agreement, sampled
from edgefleet_agent.comparison import Comparison
from edgefleet_agent.inference import Inference
from edgefleet_agent.journal import Committed, Enrolment, Entry
from edgefleet_agent.probation import Outcome
from edgefleet_agent.probation_gates import Rules
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import Slots
from edgefleet_agent.watch import Watch
from patience import PATIENCE_S
from sdk.wire_examples import ACTIVE, WINDOW


class House:
    """An inference with a source, and a comparison beside it; `counted` and `noted` are what it said."""

    def __init__(self, folder: Path, factors: Mapping[str, str], *, values: int = 2) -> None:
        self.noted: list[tuple[str, str]] = []
        self.counted = [0, 0]
        state = folder / "state"
        paths = installed(folder, state, factors, values)
        self.variants = [ACTIVE.model_copy(update={"digest": digest, "name": name}) for name, digest in paths.items()]
        np.savez(folder / "inputs.npz", x=np.linspace(1, 2, 3 * values, dtype=np.float32).reshape(3, values))
        settings = Settings.model_validate({
            "profile": "generic-x86-64", "state_folder": state,
            "source": {"kind": "replay", "path": folder / "inputs.npz", "rate_per_s": 200},
        })  # fmt: skip
        slots = Slots(state)
        self.inference = Inference(settings, slots, ToldWindows(), self)
        self.comparison = Comparison(settings, slots, self.inference, self._count, self.note)

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def add_window(self, window: Window) -> None:
        assert window.count >= window.errors == 0

    def slot_damaged(self, reason: str) -> None:
        raise AssertionError(reason)

    def variant_failed(self, digest: str, reason: str) -> None:
        raise AssertionError(digest, reason)

    def _count(self, agreed: int, compared: int) -> None:
        self.counted = [self.counted[0] + agreed, self.counted[1] + compared]

    def entry(self, state: State = State.PROBATION, previous: ActiveVariant | None = None) -> Entry:
        enrolment = Enrolment(fleet="home", device="pi", enrolment_id="e1")
        committed = Committed(active=previous or self.variants[0]) if state is State.PROBATION else None
        return Entry(enrolment=enrolment, state=state, active=self.variants[1], previous=committed)

    def run(self, entry: Entry, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline, (self.counted, self.noted)
            select.select(self.inference.descriptors() + self.comparison.descriptors(), [], [], 0.05)
            now = time.monotonic()
            self.inference.tick(entry.active, now)
            self.comparison.tick(entry, now)

    def close(self) -> None:
        self.comparison.close()
        self.inference.stop()


@pytest.fixture(name="_quickly")
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "LEAST_WAIT_S", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_runtime"))


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize(("factor", "agrees"), [("3.0", True), ("-3.0", False)])
def test_live_inputs_go_to_both_while_the_probation_lasts(tmp_path: Path, factor: str, *, agrees: bool) -> None:
    house = House(tmp_path, {"a": "2.0", "b": factor})
    try:
        house.run(house.entry(), lambda: house.counted[1] >= 3)
        assert house.counted[0] == (house.counted[1] if agrees else 0)
        assert house.noted == []
        assert len(house.comparison.descriptors()) == 1
        committed = house.entry(State.COMMITTED)
        house.run(committed, lambda: house.comparison.descriptors() == [])
        before = list(house.counted)
        house.comparison.tick(committed, time.monotonic())
        assert house.counted == before
    finally:
        house.close()


@pytest.mark.usefixtures("_quickly")
def test_a_damaged_variant_before_is_said_and_compared_with_by_nobody(tmp_path: Path) -> None:
    house = House(tmp_path, {"a": "2.0", "b": "3.0"})
    try:
        gone = house.variants[0].model_copy(update={"digest": "sha256:" + "0" * 64})
        house.run(house.entry(previous=gone), lambda: bool(house.noted))
        ((kind, text),) = house.noted
        assert kind == "not_compared"
        assert text.startswith("the committed variant is damaged: ")
    finally:
        house.close()


@pytest.mark.usefixtures("_quickly")
def test_tensors_that_are_too_large_are_said_once(tmp_path: Path) -> None:
    house = House(tmp_path, {"a": "2.0", "b": "3.0"}, values=sampled.MOST_BYTES // 4)
    try:
        house.run(house.entry(), lambda: bool(house.noted))
        assert house.noted == [
            ("not_compared", f"{2 * sampled.MOST_BYTES} bytes of tensors are too many to be compared")
        ]
        assert house.comparison.descriptors() == []
        assert house.counted == [0, 0]
    finally:
        house.close()


def test_a_sample_comes_out_as_it_went_in() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1, -2]], np.int8)
    request, result = sampled.decode(sampled.encode({"x": x.T}, {"y": y}, 0.5), "sha256:0")
    (sent,), (answered,) = request.tensors, result.tensors
    assert (sent.name, sent.dtype, sent.shape, sent.data) == ("x", "float32", (3, 2), x.T.tobytes())
    assert (answered.name, answered.dtype, answered.shape, answered.data) == ("y", "int8", (1, 2), y.tobytes())
    assert (result.digest, result.inference_s) == ("sha256:0", 0.5)
    for broken in ({}, {"inputs": [["x"]], "outputs": [], "inference_s": 1}, {"inputs": 1, "outputs": 1}):
        with pytest.raises(ValueError, match=r"."):
            sampled.decode({"kind": "sampled", **broken}, "sha256:0")


def test_a_probation_fails_by_what_the_comparison_found(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Rules(windows=8))
    for _ in range(8):
        watch.add(WINDOW, on_probation=False)
    watch.begin()
    for _ in range(4):
        watch.compared(10, 50)
        watch.add(WINDOW, on_probation=True)
    verdict = watch.judge(40.0)
    assert verdict is not None
    assert verdict.outcome is Outcome.FAIL
    assert "agreement: 20.0% of 200 inputs, 80% is the least" in verdict.reason
    watch.begin()
    for _ in range(8):
        watch.add(WINDOW, on_probation=True)
    verdict = watch.judge(80.0)
    assert verdict is not None
    assert "agreement: not compared" in verdict.reason
