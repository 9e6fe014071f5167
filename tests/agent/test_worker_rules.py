"""What the worker does: self-tests that let nothing wrong pass, windows over a source, requests in shared memory."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet.sketch import Sketch
from edgefleet_agent.channel import Message
from edgefleet_agent.golden import SELF_TEST_RUNS, self_test
from edgefleet_agent.runtimes import Options
from edgefleet_agent.serving import NOTHING_NEW_S, Samples, Serving
from edgefleet_agent.shared_arrays import SharedArrays
from edgefleet_agent.sources import Sample
from edgefleet_agent.tensors import Region
from edgefleet_agent.variant import Variant

Array = NDArray[np.float32]


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
    monkeypatch.setattr("edgefleet_agent.variant.open_model", lambda _runtime, _path, _options: model)
    return Variant(Path("slot"), spec, Options())


@pytest.fixture(name="golden")
def _golden(tmp_path: Path) -> Path:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3)
    np.savez(tmp_path / "golden.npz", **{"input:x": x, "output:y": 2 * x})  # type: ignore[arg-type]
    return tmp_path / "golden.npz"


def test_golden_outputs_pass_in_the_files_layout(monkeypatch: pytest.MonkeyPatch, golden: Path) -> None:
    model = FakeModel()
    assert self_test(variant(monkeypatch, model), golden) == {"ok": True, "reason": None, "max_abs_difference": 0.0}
    assert model.shapes == {(2, 3, 1)}
    assert model.runs == 2 * SELF_TEST_RUNS


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


class Agent:
    """The channel's other end: its clock goes on while the worker waits, and messages come at their times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end_s: float, *messages: tuple[float, Message]) -> None:
        self.now = 50.0
        self.came = [*messages, (end_s, {"kind": "leave"})]
        self.said: list[Message] = []
        for clock in ("perf_counter", "monotonic"):
            monkeypatch.setattr(time, clock, lambda: self.now)

    def receive(self, wait_s: float | None) -> Message | None:
        at, message = self.came[0]
        if wait_s is not None and 50.0 + at > self.now + wait_s:
            self.now += wait_s
            return None
        self.now = max(self.now, 50.0 + at)
        del self.came[0]
        return message

    def send(self, message: Message) -> None:
        self.said.append(message)

    def send_line(self, line: str) -> None:
        self.said.append(json.loads(line))

    def windows(self) -> list[Message]:
        return [message for message in self.said if message["kind"] == "window"]


class Classifier:
    """Says the class that the input names, in 3 ms; fails on negative inputs."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.agent.now += 0.003
        wanted = int(inputs["x"].flat[0])
        if wanted < 0:
            raise RuntimeError("the runtime refused")
        return {"y": np.eye(4, dtype=np.float32)[[wanted]]}


def samples(*pairs: tuple[int, int | None] | None) -> Iterator[Sample | None]:
    while True:
        for pair in pairs:
            yield None if pair is None else Sample({"x": np.full((1, 1), pair[0], np.float32)}, pair[1])


TENSOR: dict[str, Any] = {"name": "x", "dtype": "float32", "shape": [1, 1], "permutation": None}
ONE_VALUE = SPEC | {"inputs": [TENSOR], "outputs": [TENSOR | {"name": "y"}]}
BEGIN: tuple[float, Message] = (0.0, {"kind": "begin"})


def serve(
    monkeypatch: pytest.MonkeyPatch, agent: Agent, opens: Callable[[], Iterator[Sample | None]] | None,
    rate_per_s: float = 100.0,
) -> Agent:  # fmt: skip
    """Serve until the agent says leave; windows are of two seconds."""
    monkeypatch.setattr("edgefleet_agent.variant.open_model", lambda *_: Classifier(agent))
    opened = Variant(Path("slot"), ONE_VALUE, Options())
    source = None if opens is None else lambda: Samples(opens, rate_per_s)
    Serving(agent, opened, SharedArrays(Region.make(), ONE_VALUE), source, 2.0).run()
    return agent


def test_windows_count_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch, 4.5, BEGIN)
    serve(monkeypatch, agent, lambda: samples((1, 1), (2, 3), (3, None), (-1, 1)))
    first, second, last = agent.windows()
    assert first["started_s"] == 50.0
    assert first["duration_s"] == pytest.approx(2.0, abs=0.02)
    assert first["count"] + first["errors"] == pytest.approx(200, abs=2)
    assert first["errors"] == pytest.approx(50, abs=1)
    assert first["accuracy"]["labelled"] == pytest.approx(100, abs=1)
    assert first["accuracy"]["correct"] == pytest.approx(50, abs=1)
    for part, quantile_s in (("preprocess", 0.0), ("inference", 0.003), ("end_to_end", 0.003)):
        sketch = Sketch.from_json(first["latency"][part])
        assert sketch.count == first["count"]
        assert sketch.quantile(0.9) == pytest.approx(quantile_s, rel=0.011)
    assert second["started_s"] == pytest.approx(first["started_s"] + first["duration_s"])
    # Whoever leaves says what it did since the last window.
    assert last["count"] + last["errors"] == pytest.approx(50, abs=3)


def test_without_labels_there_is_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = serve(monkeypatch, Agent(monkeypatch, 1.0, BEGIN), lambda: samples((1, None)))
    assert agent.windows()[0]["accuracy"] is None


def test_what_a_source_made_of_a_picture_counts_as_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Sample({"x": np.ones((1, 1), np.float32)}, preprocess_s=0.02)
    found = serve(monkeypatch, Agent(monkeypatch, 2.1, BEGIN), lambda: itertools.repeat(picture)).windows()[0]
    quantiles = {part: Sketch.from_json(of).quantile(0.5) for part, of in found["latency"].items()}
    wanted = {"preprocess": 0.02, "inference": 0.003, "end_to_end": 0.023}
    assert quantiles == {part: pytest.approx(seconds, rel=0.011) for part, seconds in wanted.items()}


def test_errors_alone_make_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    found = serve(monkeypatch, Agent(monkeypatch, 2.1, BEGIN), lambda: samples((-1, 1))).windows()[0]
    assert (found["count"], found["accuracy"]) == (0, None)
    assert found["errors"] > 100
    assert found["latency"]["inference"] == Sketch().to_json()


def test_late_inferences_are_not_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = serve(monkeypatch, Agent(monkeypatch, 2.1, BEGIN), lambda: samples((1, 1)), 10_000.0).windows()[0]
    assert found["count"] == pytest.approx(2.0 / 0.003, abs=2)


def test_before_it_is_told_to_begin_a_worker_opens_no_source_and_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(monkeypatch, 60.0, (30.0, {"kind": "begin"}))
    opened_at = []

    def opens() -> Iterator[Sample | None]:
        opened_at.append(agent.now)
        return samples((1, 1))

    serve(monkeypatch, agent, opens)
    assert opened_at == [80.0]
    assert agent.windows()[0]["started_s"] == 80.0


def test_without_a_source_windows_are_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = serve(monkeypatch, Agent(monkeypatch, 10.5, BEGIN), None).windows()
    assert [window["count"] for window in windows] == [0] * 6


def test_a_source_that_has_nothing_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    found = serve(monkeypatch, Agent(monkeypatch, 2.1, BEGIN), lambda: samples(None, (1, None))).windows()[0]
    assert found["count"] == pytest.approx(2.0 / (NOTHING_NEW_S + 0.01), rel=0.1)


def fails_at_once() -> Iterator[Sample | None]:
    raise OSError(19, "No such device")


def fails_after_a_while() -> Iterator[Sample | None]:
    """As a camera does, whose driver is opened beside."""
    yield None
    raise OSError(19, "No such device")


@pytest.mark.parametrize("fails", [fails_at_once, fails_after_a_while])
def test_a_source_that_fails_is_opened_later_and_later_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[], Iterator[Sample | None]]
) -> None:
    agent = Agent(monkeypatch, 150.0, BEGIN)
    opened_at: list[float] = []

    def opens() -> Iterator[Sample | None]:
        opened_at.append(agent.now)
        return fails()

    serve(monkeypatch, agent, opens)
    apart = [later - earlier for earlier, later in itertools.pairwise(opened_at)]
    assert apart == pytest.approx([1, 2, 4, 8, 16, 32, 60], abs=0.1)
    assert [one["reason"] for one in agent.said if one["kind"] == "source_failed"] == [
        "OSError: [Errno 19] No such device"
    ]


def test_a_source_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    short: Iterator[Sample | None] = itertools.islice(samples((1, None)), 1)
    ends = [short, samples((1, None))]
    agent = serve(monkeypatch, Agent(monkeypatch, 3.0, BEGIN), lambda: ends.pop(0))
    assert sum(window["count"] for window in agent.windows()) == pytest.approx(200, abs=3)
    # Once is nothing to speak of: the worker that leaves had the camera.
    assert "source_failed" not in [one["kind"] for one in agent.said]


# Requests in shared memory ----------------------------------------------------------------------------


def asked(value: float | None = None, **changes: Any) -> Message:
    """A request for one value, at the beginning of the memory; without a value: as before."""
    places = [["x", "float32", [1, 1], 64, 4]]
    layout = {} if value is None else {"inputs": places, "outputs": None}
    return {"kind": "infer", **layout, **changes}


def answers(monkeypatch: pytest.MonkeyPatch, *messages: Message) -> list[Message]:
    came = [(1.0 + place, message) for place, message in enumerate(messages)]
    agent = serve(monkeypatch, Agent(monkeypatch, 60.0, *came), None)
    return [message for message in agent.said if message["kind"] != "window"]


def test_where_outputs_lie_is_said_only_when_it_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = answers(monkeypatch, asked(0.0), asked())
    assert first["outputs"] == [("y", "float32", (1, 4), 128, 16)]
    assert second == {"kind": "inferred"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": []}, "the inputs are none; the model wants x"),
        ({"inputs": [["z", "float32", [1, 1], 64, 4]]}, "the inputs are z; the model wants x"),
        ({"inputs": [["x", "float32", [1, 1], 64, 4]] * 2}, "the inputs are x, x; the model wants x"),
        ({"inputs": [["x", "int8", [1, 1], 64, 1]]}, "the input 'x' is int8 [1, 1]; the model wants float32 [1, 1]"),
        ({"inputs": [["x", "float32", [1], 64, 4]]}, "the input 'x' is float32 [1]; the model wants float32 [1, 1]"),
        ({"inputs": [["x", "float32", [1, 1], 64, 8]]}, "the input 'x' has 8 bytes, which float32 [1, 1] has not"),
        ({"outputs": ["y", "z"]}, "there is no output 'z'; the model has y"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_refused_each_time(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    refused = answers(monkeypatch, asked(1.0, **changes), asked(), asked(1.0))
    for message in refused[:2]:
        assert message == {"kind": "not_inferred", "failure": "refused", "reason": said}
    assert refused[2]["kind"] == "inferred"


def test_requests_go_before_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is due all the time."""
    requests = [(1.0, asked(0.0)) for _ in range(50)]
    agent = Agent(monkeypatch, 1.9, BEGIN, *requests)
    serve(monkeypatch, agent, lambda: samples((1, 1)), 10_000.0)
    assert agent.now == pytest.approx(51.9, abs=0.01)
    (window,) = agent.windows()
    assert window["accuracy"]["labelled"] == pytest.approx((1.9 - 50 * 0.003) / 0.003, abs=3)
    assert window["count"] == window["accuracy"]["labelled"] + 50
