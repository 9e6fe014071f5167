"""A benchmark under way: children that answer, crash, hang or cannot be started; and real workers."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edgefleet.package.digest import digest_of
from edgefleet.package.layout import GOLDEN_FILE
from edgefleet.package.manifest import Golden, TensorSpec, VariantSpec
from edgefleet.protocol.decisions import Conditions, DecisionRecord, Objective, Standing
from edgefleet_agent import benchmark, benchmark_record, slot_options
from edgefleet_agent.benchmark import Asked, Benchmark, Entrant, Sensors
from edgefleet_agent.benchmark_decision import Decision, Limits
from edgefleet_agent.benchmark_record import About
from edgefleet_agent.benchmark_rules import Lengths, Round
from edgefleet_agent.power.meter import Energy
from edgefleet_agent.settings import RuntimeSettings, WorkerSettings
from edgefleet_agent.thermal import ThermalReading
from edgefleet_device_profiles.profile import Precision, Runtime
from patience import PATIENCE_S

MIB = 2**20
SPEC = VariantSpec(
    name="litert-int8", runtime=Runtime.LITERT, precision=Precision.INT8, runtime_version=">=2", model_file="m",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
    golden=Golden(samples=1, tolerances={"y": 0.0}), architectures=("amd64",),
)  # fmt: skip
SHORT = Lengths(Round(0.2, 4), Round(0.5, 4), Round(0.5, 4))


@dataclass
class World:
    """A clock, children that take `seconds` an inference by it, and sensors that tell what is said here."""

    seconds: dict[int, float]
    now: float = 0.0
    available_bytes: int | None = 1024 * MIB
    source: Literal["measured", "estimated"] = "measured"
    watts: float = 2.0
    throttled: bool | None = False
    breaks: Callable[[int, int], str | None] = lambda *_: None
    """(threads, its turns so far) → how a child breaks: `failed`, `ended` or `hangs`; None: it does not."""
    started: list[int] = field(default_factory=list)
    children: list[FakeChild] = field(default_factory=list)

    def start(self, entrant: Entrant) -> FakeChild:
        threads = entrant.candidate.threads
        if self.breaks(threads, 0) == "unstartable":
            raise OSError(11, "Resource temporarily unavailable")
        self.started.append(threads)
        child = FakeChild(self, threads)
        self.children.append(child)
        return child

    @property
    def alive(self) -> int:
        return sum(not child.killed for child in self.children)


@dataclass
class FakeChild:
    """Answers at once, and moves the clock by what it took."""

    world: World
    threads: int
    turns: int = 0
    killed: bool = False
    ended: bool = False
    said: list[dict[str, Any]] = field(default_factory=lambda: [{"kind": "ready"}])
    pid: int = 2**22 + 1

    def fileno(self) -> int:
        return 0

    def send(self, message: dict[str, Any]) -> None:
        assert message["kind"] == "run"
        self.turns += 1
        broken = self.world.breaks(self.threads, self.turns)
        self.ended = broken == "ended"
        if broken == "failed":
            self.said.append({"kind": "failed", "reason": "RuntimeError: no"})
        if broken is not None:
            return
        seconds = self.world.seconds[self.threads]
        runs = max(message["runs"], round(message["seconds"] / seconds))
        self.world.now += runs * seconds
        cold = [seconds * 50] + [seconds] * (runs - 1)
        told = {"seconds": [s / 2 for s in cold], "end_to_end_s": cold}
        self.said.append({"kind": "ran", "runs": runs, **told})

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        said, self.said = self.said, []
        return said, self.ended

    def exit_reason(self) -> str:
        return "it was ended by signal 11"

    def kill(self) -> None:
        self.killed = True


@dataclass
class FakeMeter:
    world: World
    name: str = "rails"
    period_s: float = 1.0
    since: float = 0.0

    def sample(self, now: float) -> None:
        assert now == self.world.now

    def energy(self) -> Energy:
        spent_s, self.since = self.world.now - self.since, self.world.now
        samples = round(spent_s / self.period_s)
        return Energy(self.world.watts * spent_s, None, None, self.world.source, "rails", None, spent_s, samples)

    def window(self) -> Any:
        raise AssertionError


@dataclass
class FakeThermal:
    world: World

    def sample(self, now: float) -> None:
        assert now == self.world.now

    def read(self) -> ThermalReading:
        return ThermalReading(None, None, self.world.throttled, None, None, None, None)


def begun(world: World, asked: Asked, threads: tuple[int, ...] = (1, 2)) -> Benchmark:
    entrants = benchmark.entrants("sha256:" + "a" * 64, 1000, Path("slot"), SPEC, threads)
    meter, thermal = FakeMeter(world), FakeThermal(world)
    sensors = Sensors(meter, thermal, lambda: world.available_bytes)  # type: ignore[arg-type]
    return Benchmark(entrants, asked, world.start, sensors, world.now)


def ended(running: Benchmark, world: World, step_s: float = 0.001) -> Decision:
    for _ in range(10_000):
        if (decision := running.tick(world.now)) is not None:
            return decision
        world.now += step_s
    raise AssertionError("no decision")


def standings(decision: Decision) -> list[Standing]:
    return [result.standing for result in decision.results]


def test_the_faster_setting_is_chosen_and_no_child_is_left() -> None:
    world = World({1: 0.010, 2: 0.009})
    running = begun(world, Asked())
    decision = ended(running, world)
    assert decision.chosen is not None
    assert decision.chosen.threads == 2
    assert standings(decision) == [Standing.BEHIND, Standing.CHOSEN]
    assert world.started == [1, 2]
    assert (world.alive, running.descriptors()) == (0, [])
    assert running.contest.complete
    assert 2 * 2.0 + 30.0 - 0.1 < world.now < 36.0


def test_the_first_run_of_a_turn_does_not_count() -> None:
    world = World({1: 0.010})
    decision = ended(begun(world, Asked(), (1,)), world)
    assert max(decision.results[0].measured.end_to_end_s()) == 0.010


def test_where_memory_is_short_one_child_lives_at_a_time() -> None:
    world = World({1: 0.010, 2: 0.009}, available_bytes=100 * MIB)
    running = begun(world, Asked(lengths=SHORT))
    most = 0
    while running.tick(world.now) is None:
        most = max(most, world.alive)
        world.now += 0.001
    assert most == 1
    assert len(world.started) == 2 * 4 + 4


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("failed", "RuntimeError: no"),
        ("ended", "it was ended by signal 11"),
        ("hangs", "within 300 s"),
        ("unstartable", "no worker process could be started (Resource temporarily unavailable)"),
    ],
)
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_one_that_breaks_costs_only_itself(broken: str, reason: str, turn: int) -> None:
    def breaks(threads: int, turns: int) -> str | None:
        return broken if threads == 2 and (turns == turn or broken == "unstartable") else None

    world = World({1: 0.010, 2: 0.009}, breaks=breaks)
    running = begun(world, Asked(lengths=SHORT, limit_s=2000))
    decision = ended(running, world, step_s=1.0 if broken == "hangs" else 0.001)
    assert standings(decision) == [Standing.CHOSEN, Standing.FAILED]
    assert reason in decision.results[1].reason
    assert world.alive == 0


def test_when_none_works_there_is_no_choice_and_the_reasons_are_said() -> None:
    world = World({1: 0.01, 2: 0.01}, breaks=lambda *_: "failed")
    decision = ended(begun(world, Asked()), world)
    assert decision.chosen is None
    assert decision.reason.count("RuntimeError: no") == 2


def test_when_time_is_up_what_was_measured_decides() -> None:
    world = World({1: 1.0, 2: 0.9})
    running = begun(world, Asked(limit_s=60.0))
    decision = ended(running, world)
    assert decision.chosen is not None
    assert not running.contest.complete
    assert world.now < 80.0


def test_a_child_that_hangs_as_the_time_runs_out_holds_nobody_up() -> None:
    world = World({1: 0.5, 2: 0.5}, breaks=lambda _, turns: "hangs" if turns == 3 else None)
    running = begun(world, Asked(limit_s=60.0))
    assert ended(running, world, step_s=0.5).chosen is not None
    assert world.now < 61.0
    assert world.alive == 0


def test_what_is_closed_leaves_no_child() -> None:
    world = World({1: 0.010, 2: 0.009})
    running = begun(world, Asked())
    running.tick(0.0)
    assert world.alive == 1
    running.close()
    assert world.alive == 0


def test_energy_counts_where_it_is_measured_and_nothing_else_of_ours_runs() -> None:
    energy = Asked(Objective.ENERGY)
    world = World({1: 0.010, 2: 0.009})
    measured = ended(begun(world, energy), world)
    assert measured.results[1].measured.energy_j() == pytest.approx(2.0 * 0.009, rel=0.1)
    assert "by energy" in measured.reason
    for other, asked in ((replace(world, source="estimated"), energy), (world, replace(energy, live=True))):
        decision = ended(begun(other, asked), other)
        assert "by latency, for the energy was not measured" in decision.reason


def test_the_record_tells_it_all_and_fits_an_event(tmp_path: Path) -> None:
    world = World({threads: 0.01 + 0.0001 * threads for threads in range(1, 25)}, throttled=True)
    running = begun(world, Asked(lengths=SHORT), tuple(range(1, 25)))
    decision = ended(running, world)
    about = About("h" + "0" * 16, "sha256:" + "b" * 64, Objective.LATENCY, live=False)
    record = benchmark_record.record_of(running.contest, decision, about)
    assert len(record.encode()) <= benchmark_record.MAX_BYTES
    assert record.winner is not None
    assert (record.winner.threads, record.winner.digest) == (record.threads, record.chosen)
    assert record.winner.p90_s == pytest.approx(2 * (record.winner.inference_p90_s or 0))
    assert (record.conditions, record.throttled_share) == (Conditions.THROTTLED_STEADY, 1.0)
    assert record.command == "edgefleet agent bench"
    benchmark_record.keep(tmp_path, record)
    assert DecisionRecord.decode((tmp_path / benchmark_record.FILE_NAME).read_bytes()) == record


def test_the_choices_of_threads() -> None:
    choices = [benchmark.thread_choices((), cores) for cores in (1, 2, 3, 4, 8)]
    assert choices == [(1,), (1, 2), (1, 3), (1, 2, 4), (1, 4, 8)]
    assert benchmark.thread_choices((4, 2, 4), 16) == (2, 4)


# Real workers ----------------------------------------------------------------------------------------


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slot whose model is the number 2.0, for the runtime in `fake_runtime`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_runtime"))
    (tmp_path / "m").write_text("2.0")
    x = np.array([[1.0, 2.0]], np.float32)
    np.savez(tmp_path / GOLDEN_FILE, **{"input:x": x, "output:y": 2 * x})  # type: ignore[arg-type]
    return tmp_path


def test_real_workers_are_measured_as_asked_whatever_was_chosen_before(slot: Path) -> None:
    slot_options.record(slot, slot_options.SlotOptions(threads=7))
    world = World({})
    sensors = Sensors(FakeMeter(world), FakeThermal(world))  # type: ignore[arg-type]
    start = benchmark.starter(RuntimeSettings(), WorkerSettings())
    entrants = benchmark.entrants(digest_of(b"x"), 3, slot, SPEC, (1, 2))
    lengths = Lengths(Round(0.1, 2), Round(0.2, 2))
    running = Benchmark(entrants, Asked(limits=Limits(memory_bytes=2**40), lengths=lengths), start, sensors, 0.0)
    until, decision = time.monotonic() + PATIENCE_S, None
    while decision is None and time.monotonic() < until:
        select.select(running.descriptors(), [], [], 0.1)
        decision = running.tick(0.0)
    assert decision is not None
    assert decision.chosen is not None
    for result in decision.results:
        assert result.measured.memory_bytes is None or result.measured.memory_bytes > 5 * MIB
        assert result.measured.runs >= 64 or result.standing is Standing.HOPELESS
    assert json.loads((slot / slot_options.FILE).read_bytes())["threads"] == 7


def test_of_many_inferences_some_are_told_evenly_spread(slot: Path) -> None:
    child = benchmark.starter(RuntimeSettings(), WorkerSettings())(
        benchmark.entrants(digest_of(b"x"), 3, slot, SPEC, (1,))[0]
    )
    said: list[dict[str, Any]] = []
    try:
        child.send({"kind": "run", "runs": 1000, "seconds": 0.0, "most": 10})
        while len(said) < 2:
            select.select([child.fileno()], [], [], PATIENCE_S)
            more, ended = child.messages()
            assert not ended
            said += more
    finally:
        child.kill()
    assert [message["kind"] for message in said] == ["ready", "ran"]
    assert (said[1]["runs"], len(said[1]["seconds"]), len(said[1]["end_to_end_s"])) == (1000, 10, 10)
