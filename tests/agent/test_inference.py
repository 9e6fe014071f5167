"""The workers of the active variant and of the next: started, started again later and later, given up, exchanged."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.messages import ActiveVariant, Window
from edgefleet_agent import supervise
from edgefleet_agent.inference import LEAVE_S, MAX_WAITING, WAIT_LIMIT_S, Inference
from edgefleet_agent.inference_types import (
    FailureKind,
    InferDone,
    InferFailure,
    InferRequest,
    InferResult,
    ModelInfo,
    RawTensor,
)
from edgefleet_agent.kept_worker import RESTART_CAP_S, STABLE_S, STRIKES
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.windows import Windows
from patience import PATIENCE_S
from sdk import wire_examples
from sdk.packages_made import spec
from sdk.wire_examples import ACTIVE

OTHER = ACTIVE.model_copy(update={"digest": "sha256:" + "4" * 64, "name": "other"})
WINDOW: dict[str, Any] = {"kind": "window", "count": 3}
READY = {"kind": "ready"}
HANGS_AFTER_S = 60.0
REQUEST = InferRequest((RawTensor("x", "float32", (1, 4), bytes(16)),))


class FakeWorker:
    """Says what it was told to say; `ended` is how it ended."""

    pid = 1

    def __init__(self, slot: Path, digest: str) -> None:
        self.slot = slot
        self.digest = digest
        self.said: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.ended: str | None = None
        self.ready = False
        self.asked: InferDone | None = None
        self.stopped = 0
        self.killed = 0

    @property
    def busy(self) -> bool:
        return self.asked is not None

    @property
    def metadata(self) -> ModelInfo | None:
        return ModelInfo("m", self.digest, "litert", (), ()) if self.ready else None

    @property
    def lent(self) -> tuple[int, int]:
        return 0, 0

    def fileno(self) -> int:
        return id(self)

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        said, self.said = self.said, []
        self.ready = self.ready or READY in said
        return said, self.ended is not None

    def send(self, message: Mapping[str, Any]) -> None:
        self.told.append(message["kind"])

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        assert request is REQUEST
        if self.busy or not self.ready:
            return False
        self.asked = done
        return True

    def answer(self) -> None:
        assert self.asked is not None
        done, self.asked = self.asked, None
        done(InferResult(self.digest, (), 0.001))

    def give_up(self, reason: str) -> None:
        if self.asked is not None:
            done, self.asked = self.asked, None
            done(InferFailure(FailureKind.UNAVAILABLE, reason))

    def exit_reason(self) -> str:
        assert self.ended is not None
        return self.ended

    def stop(self) -> None:
        self.give_up("stopped")
        self.stopped += 1

    def kill(self) -> None:
        self.killed += 1
        self.stop()


class FakeWindows(Windows):
    """Counts, and makes one example after the other."""

    def __init__(self) -> None:
        self.begun = 0
        self.ticks = 0

    def begin(self) -> None:
        self.begun += 1

    def tick(self, now: float) -> None:
        assert now >= 0
        self.ticks += 1

    def close(self, report: Mapping[str, Any], digest: str, pid: int) -> Window:
        assert pid == FakeWorker.pid
        if report["count"] < 0:
            raise ValueError("count: less than 0")
        return wire_examples.WINDOW.model_copy(update={"digest": digest, "count": report["count"]})


class House:
    """Slots, listener and processes of one Inference, and a clock set by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, window_s: float, worker: dict[str, Any]) -> None:
        self.now = 1000.0
        self.workers: list[FakeWorker] = []
        self.refusal: OSError | None = None
        self.damage: dict[str, str] = {}
        self.noted: list[tuple[str, str]] = []
        self.windows: list[Window] = []
        self.damaged: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.answers: list[str] = []
        self.made = FakeWindows()
        self.slots = Slots(folder)
        settings = Settings.model_validate(
            {
                "profile": "p", "state_folder": folder, "source": {"kind": "replay", "path": "x"},
                "telemetry": {"window_s": window_s}, "worker": worker,
            }
        )  # fmt: skip
        monkeypatch.setattr(self.slots, "check", self._check)
        monkeypatch.setattr(supervise, "inference", self._start)
        self.inference = Inference(settings, self.slots, self.made, self, lambda: self.now)

    def _check(self, digest: str) -> VariantSpec:
        if digest in self.damage:
            raise SlotDamagedError(self.damage[digest])
        return spec()

    def _start(self, slot: Path, _spec: VariantSpec, digest: str, _settings: Settings, _process: None) -> FakeWorker:
        if self.refusal is not None:
            raise self.refusal
        self.workers.append(FakeWorker(slot, digest))
        return self.workers[-1]

    # What the listener is told.

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def add_window(self, window: Window) -> None:
        self.windows.append(window)

    def slot_damaged(self, reason: str) -> None:
        self.damaged.append(reason)

    def variant_failed(self, digest: str, reason: str) -> None:
        self.failed.append((digest, reason))

    # What happens.

    def tick(self, active: ActiveVariant | None = ACTIVE, *, after: float = 0.0) -> None:
        self.now += after
        self.inference.tick(active, self.now)
        while checking := self._checking():
            select.select(checking, [], [])
            self.inference.tick(active, self.now)

    def _checking(self) -> list[Any]:
        kept = (self.inference._serving, self.inference._next if self.inference._is_warm else None)
        return [one._checking for one in kept if one is not None and one._checking is not None]

    def get_ready(self, active: ActiveVariant = ACTIVE) -> FakeWorker:
        """Have the newest worker say that it is."""
        self.workers[-1].said.append(READY)
        self.tick(active)
        return self.workers[-1]

    def ask(self) -> bool:
        """Send a request; what comes of it is added to `answers`."""

        def done(answer: InferResult | InferFailure) -> None:
            text = answer.digest if isinstance(answer, InferResult) else f"{answer.kind}: {answer.reason}"
            self.answers.append(text)

        return self.inference.infer(REQUEST, done)

    def die(self, reason: str = "it ended with exit code 1") -> float:
        """End the worker; returns the seconds until another is started."""
        self.workers[-1].ended = reason
        count = len(self.workers)
        self.tick()
        assert not self.inference.descriptors()
        return self.wait(count)

    def wait(self, count: int) -> float:
        """Seconds until more than `count` workers were started."""
        assert self.inference._serving is not None
        wait_s = self.inference._serving._next_at - self.now
        self.tick(after=wait_s - 0.001)
        assert len(self.workers) == count
        self.tick(after=0.001)
        return wait_s


Build = Callable[..., House]


@pytest.fixture(name="build")
def _build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    return lambda window_s=10.0, **worker: House(tmp_path, monkeypatch, window_s, worker)


def test_nothing_runs_without_a_variant(build: Build) -> None:
    house = build()
    house.tick(None)
    assert house.inference.descriptors() == []
    assert house.workers == []
    house.inference.stop()


def test_the_committed_variant_runs_from_its_slot_once(build: Build) -> None:
    house = build()
    for _ in range(3):
        house.tick(after=1.0)
    (worker,) = house.workers
    assert worker.slot == house.slots.path(ACTIVE.digest)
    assert house.inference.descriptors() == [worker.fileno()]
    house.inference.stop()
    house.inference.stop()
    assert (worker.stopped, house.inference.descriptors()) == (1, [])


def test_a_window_carries_the_variant_and_the_meters_begin_with_it(build: Build) -> None:
    house = build()
    house.tick()
    # What was drawn before the worker ran belongs to no window.
    assert house.made.begun == 0
    house.workers[0].said = [READY, WINDOW]
    house.tick(after=10.0)
    assert house.made.begun == 1
    (window,) = house.windows
    assert (window.digest, window.count) == (ACTIVE.digest, 3)
    assert house.workers[0].told == ["begin"]


def test_a_window_that_is_none_is_dropped(build: Build) -> None:
    house = build()
    house.tick()
    house.workers[0].said = [WINDOW | {"count": -1}, WINDOW]
    house.tick()
    assert len(house.windows) == 1
    assert house.noted == []


def test_restarts_come_later_and_later_up_to_a_minute_even_after_a_week(build: Build) -> None:
    house = build()
    house.tick()
    waits = [house.die() for _ in range(5000)]
    assert waits[:7] == pytest.approx([1, 2, 4, 8, 16, 32, RESTART_CAP_S])
    assert max(waits) == pytest.approx(RESTART_CAP_S)
    assert min(waits[7:]) == pytest.approx(RESTART_CAP_S)
    # A worker that dies once a minute for a week says so once.
    assert house.noted == [("worker_ended", "it ended with exit code 1")]


def test_a_stable_run_begins_the_waits_and_the_words_anew(build: Build) -> None:
    house = build()
    house.tick()
    for _ in range(4):
        house.die()
    house.workers[-1].said = [WINDOW]
    house.tick(after=STABLE_S + 0.1)
    assert house.die() == pytest.approx(1.0)
    assert [kind for kind, _ in house.noted] == ["worker_ended"] * 2
    house.workers[-1].said = [WINDOW]
    house.tick(after=STABLE_S - 1.0)
    assert house.die() == pytest.approx(2.0)
    assert len(house.noted) == 2


def test_each_different_failure_is_said_once(build: Build) -> None:
    house = build()
    house.tick()
    for _ in range(3):
        for reason in ("it was ended by signal 11", "it ended with exit code 1"):
            house.workers[-1].said = [{"kind": "failed", "reason": f"because {reason}"}]
            house.die(reason)
    assert house.noted == [
        ("worker_failed", "because it was ended by signal 11"),
        ("worker_ended", "it was ended by signal 11"),
        ("worker_failed", "because it ended with exit code 1"),
        ("worker_ended", "it ended with exit code 1"),
    ]


def test_what_it_said_last_counts_before_its_end(build: Build) -> None:
    house = build()
    house.tick()
    house.workers[0].said = [WINDOW]
    house.die()
    assert len(house.windows) == 1


@pytest.mark.parametrize(
    ("window_s", "hang_s", "patience_s"), [(10.0, 60.0, 60.0), (600.0, 60.0, 1800.0), (10.0, 5.0, 30.0)]
)
def test_a_worker_that_says_nothing_hangs(build: Build, window_s: float, hang_s: float, patience_s: float) -> None:
    house = build(window_s, hang_s=hang_s)
    house.tick()
    house.get_ready()
    house.tick(after=patience_s - 0.01)
    assert house.workers[0].stopped == 0
    house.workers[0].said = [WINDOW]
    house.tick()
    house.tick(after=patience_s - 0.01)
    assert house.workers[0].stopped == 0
    house.tick(after=0.02)
    # It would not read that its channel was closed.
    assert house.workers[0].killed == 1
    ((kind, text),) = house.noted
    assert kind == "worker_ended"
    assert "said nothing" in text
    house.wait(1)
    assert len(house.workers) == 2


def test_a_worker_that_hangs_before_it_is_ready_is_not_waited_for_as_long_as_windows_are(build: Build) -> None:
    house = build(3600.0)
    house.tick()
    house.tick(after=HANGS_AFTER_S + 0.1)
    assert house.workers[0].killed == 1


def test_an_inference_that_does_not_end_is_a_hang_although_windows_are_long(build: Build) -> None:
    house = build(3600.0)
    house.tick()
    house.get_ready()
    house.now += 1000.0
    assert house.ask()
    house.tick(after=HANGS_AFTER_S - 0.1)
    assert house.answers == []
    house.tick(after=0.2)
    assert house.workers[0].killed == 1
    assert house.answers == ["unavailable: an inference did not end within 60 s"]


def test_a_worker_that_hangs_again_and_again_is_started_later_and_later(build: Build) -> None:
    """It ran for a minute each time, so time alone is no sign of a stable run."""
    house = build()
    house.tick()
    waits = []
    for _ in range(8):
        count = len(house.workers)
        house.tick(after=HANGS_AFTER_S + 0.1)
        assert not house.inference.descriptors()
        waits.append(house.wait(count))
    assert waits[-1] > 10 * waits[0]


def test_a_worker_that_hangs_again_and_again_says_so_once(build: Build) -> None:
    house = build()
    house.tick()
    for _ in range(8):
        count = len(house.workers)
        house.tick(after=HANGS_AFTER_S + 0.1)
        house.wait(count)
    assert len(house.noted) == 1


def test_a_damaged_slot_starts_nothing_and_is_told(build: Build) -> None:
    house = build()
    house.damage[ACTIVE.digest] = "small.bin does not match its digest"
    house.tick()
    assert house.workers == []
    assert house.damaged == ["small.bin does not match its digest"]
    # The listener takes it from the journal: nothing runs any more.
    house.tick(None, after=1.0)
    assert len(house.damaged) == 1


def test_the_loop_turns_while_a_slot_is_hashed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house, hashed = build(), threading.Event()
    asked: list[str] = []

    def check(digest: str) -> VariantSpec:
        asked.append(digest)
        assert hashed.wait(PATIENCE_S)
        return spec()

    monkeypatch.setattr(house.slots, "check", check)
    for _ in range(3):
        house.inference.tick(ACTIVE, house.now)
    assert house.workers == []
    # Others are wanted meanwhile: what is cancelled before its turn is not even begun.
    house.inference.tick(OTHER, house.now)
    house.inference.tick(ACTIVE, house.now)
    house.inference.tick(ACTIVE, house.now)
    hashed.set()
    house.tick()
    assert [worker.slot for worker in house.workers] == [house.slots.path(ACTIVE.digest)]
    assert asked == [ACTIVE.digest] * 2


def test_a_slot_is_checked_again_at_each_start(build: Build) -> None:
    house = build()
    house.tick()
    house.damage[ACTIVE.digest] = "gone"
    house.workers[0].ended = "it was ended by signal 7"
    house.tick()
    house.tick(after=1.0)
    assert (len(house.workers), house.damaged) == (1, ["gone"])


def test_a_process_that_cannot_be_started_is_tried_again_later(build: Build) -> None:
    house = build()
    house.refusal = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    house.tick()
    waits = [house.wait(0) for _ in range(4)]
    assert waits == pytest.approx([1, 2, 4, 8])
    assert house.noted == [("worker_ended", "no worker process could be started (Resource temporarily unavailable)")]
    house.refusal = None
    house.wait(0)
    assert len(house.workers) == 1


def test_three_ends_without_a_stable_run_are_told_once(build: Build) -> None:
    house = build()
    house.tick()
    for count in range(1, 2 * STRIKES):
        house.die("it was ended by signal 11")
        assert len(house.failed) == int(count >= STRIKES)
    assert house.failed == [(ACTIVE.digest, "3 times in a row: it was ended by signal 11")]


def test_a_stable_run_takes_the_strikes_away(build: Build) -> None:
    house = build()
    house.tick()
    for _ in range(3 * STRIKES):
        for _ in range(STRIKES - 1):
            house.die()
        house.workers[-1].said = [WINDOW]
        house.tick(after=STABLE_S + 0.1)
    assert house.failed == []


# Requests ---------------------------------------------------------------------------------------------


def test_requests_are_asked_one_after_the_other_and_answered_by_name(build: Build) -> None:
    house = build()
    assert not house.ask()
    house.tick()
    assert (house.inference.ready, house.inference.metadata) == (False, None)
    worker = house.get_ready()
    assert house.inference.ready
    assert house.inference.metadata == worker.metadata
    assert [house.ask() for _ in range(3)] == [True] * 3
    for count in range(1, 4):
        worker.answer()
        house.tick()
        assert house.answers == [ACTIVE.digest] * count
    assert not worker.busy


def test_no_more_than_so_many_requests_wait(build: Build) -> None:
    house = build()
    house.tick()
    house.get_ready()
    assert [house.ask() for _ in range(MAX_WAITING + 3)] == [True] * (MAX_WAITING + 1) + [False] * 2


def test_a_request_waits_for_a_worker_that_is_started_again_and_only_the_one_under_way_is_lost(build: Build) -> None:
    house = build()
    house.tick()
    house.get_ready()
    assert house.ask()
    assert house.ask()
    house.die("it was ended by signal 11")
    assert house.answers == ["unavailable: it was ended by signal 11"]
    # What was loaded is known meanwhile, and what comes waits too.
    assert house.inference.metadata is not None
    assert not house.inference.ready
    assert house.ask()
    worker = house.get_ready()
    for _ in range(2):
        worker.answer()
        house.tick()
    assert house.answers[1:] == [ACTIVE.digest] * 2


def test_a_request_does_not_wait_for_ever(build: Build) -> None:
    house = build()
    house.tick()
    house.get_ready()
    house.die()
    assert house.ask()
    house.tick(after=WAIT_LIMIT_S - 0.1)
    assert house.answers == []
    house.tick(after=0.2)
    assert house.answers == ["unavailable: no worker was ready within 10 s"]


def test_no_request_waits_for_a_worker_that_ends_again_and_again(build: Build) -> None:
    house = build()
    house.tick()
    house.get_ready()
    for _ in range(STRIKES - 1):
        house.die()
        assert house.ask()
    house.die()
    assert not house.ask()


def test_without_a_variant_what_waits_is_given_up(build: Build) -> None:
    house = build()
    house.tick()
    house.get_ready()
    house.die()
    assert house.ask()
    house.tick(None)
    assert house.answers == ["unavailable: there is no model"]
    assert house.inference.metadata is None
    assert not house.ask()


# Switching --------------------------------------------------------------------------------------------


def test_a_prepared_variant_takes_over_when_it_is_active_and_the_old_one_answers_what_it_was_asked(
    build: Build,
) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.inference.prepare(OTHER)
    house.inference.prepare(OTHER)
    house.tick()
    assert [worker.slot for worker in house.workers] == [house.slots.path(one.digest) for one in (ACTIVE, OTHER)]
    assert not house.inference.prepared
    new = house.get_ready()
    assert house.inference.prepared
    # Nothing of it serves before it is active.
    assert new.told == []
    assert house.ask()
    assert house.ask()
    house.tick(OTHER)
    assert (old.told, new.told) == (["begin", "leave"], ["begin"])
    assert house.inference.descriptors() == [new.fileno(), old.fileno()]
    new.answer()
    old.answer()
    assert house.answers == [OTHER.digest, ACTIVE.digest]
    # Its last window is its own.
    old.said, old.ended = [WINDOW], "it ended with exit code 0"
    house.tick(OTHER)
    assert [window.digest for window in house.windows] == [ACTIVE.digest]
    assert old.stopped == 1
    assert house.inference.descriptors() == [new.fileno()]
    assert house.noted == []
    # What was spent on both is somebody's.
    assert house.made.begun == 1


def test_what_answers_goes_on_until_the_active_one_is_ready_though_nobody_prepared_it(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.tick(OTHER)
    assert len(house.workers) == 2
    assert house.ask()
    assert old.busy
    house.get_ready(OTHER)
    house.tick(OTHER)
    assert old.told == ["begin", "leave"]
    # And back again.
    house.tick(ACTIVE)
    assert house.workers[2].slot == house.slots.path(ACTIVE.digest)


def test_a_switch_that_is_taken_back_leaves_the_old_worker_alone(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.inference.prepare(OTHER)
    house.tick()
    house.inference.abandon()
    assert house.workers[1].stopped == 1
    assert house.inference.prepared
    house.tick(after=5.0)
    assert house.inference.descriptors() == [old.fileno()]
    assert old.told == ["begin"]


def test_a_prepared_variant_that_dies_strikes_itself_and_not_the_one_that_serves(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.inference.prepare(OTHER)
    house.tick()
    for _ in range(STRIKES):
        house.workers[-1].ended = "it was ended by signal 11"
        house.tick()
        house.tick(after=60.0)
        old.said = [WINDOW]
        house.tick()
    assert [digest for digest, _ in house.failed] == [OTHER.digest]
    assert old.stopped == 0


def test_a_prepared_variant_may_wait_for_its_turn_as_long_as_it_takes(build: Build) -> None:
    house = build()
    house.tick()
    house.inference.prepare(OTHER)
    house.tick()
    house.get_ready()
    house.workers[0].said = [READY]
    for _ in range(40):
        house.workers[0].said.append(WINDOW)
        house.tick(after=10.0)
    assert [worker.stopped for worker in house.workers] == [0, 0]
    assert house.inference.prepared


def test_a_prepared_variant_whose_files_are_damaged_fails_and_the_committed_one_runs_on(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.damage[OTHER.digest] = "small.bin does not match its digest"
    house.inference.prepare(OTHER)
    house.tick()
    assert house.failed == [(OTHER.digest, "small.bin does not match its digest")]
    assert house.damaged == []
    assert house.inference.ready
    assert old.stopped == 0
    # Once it is the active one, it is the damaged one.
    house.tick(OTHER)
    assert house.damaged == ["small.bin does not match its digest"]


def test_a_first_variant_is_prepared_before_anything_is_active(build: Build) -> None:
    house = build()
    house.inference.prepare(OTHER)
    house.tick(None)
    house.tick(None)
    new = house.get_ready(OTHER)
    assert new.told == ["begin"]
    assert (house.inference.ready, house.made.begun) == (True, 1)


def test_an_old_worker_that_does_not_end_is_ended(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.tick(OTHER)
    house.get_ready(OTHER)
    house.tick(OTHER, after=LEAVE_S - 0.1)
    assert old.stopped == 0
    house.workers[1].said = [WINDOW]
    house.tick(OTHER, after=0.2)
    assert old.killed == 1


def test_where_memory_is_short_one_stops_before_the_other_starts_and_says_so(build: Build) -> None:
    house = build(swap="stop-start")
    house.tick()
    old = house.get_ready()
    house.inference.prepare(OTHER)
    house.tick()
    assert house.inference.prepared
    assert len(house.workers) == 1
    assert house.ask()
    assert house.ask()
    house.tick(OTHER)
    assert old.told == ["begin", "leave"]
    assert len(house.workers) == 1
    ((kind, text),) = house.noted
    assert kind == "swap"
    assert "stop-start" in text
    # What comes meanwhile waits.
    assert house.ask()
    old.answer()
    old.ended = "it ended with exit code 0"
    house.tick(OTHER)
    new = house.get_ready(OTHER)
    assert new.slot == house.slots.path(OTHER.digest)
    for _ in range(2):
        new.answer()
        house.tick(OTHER)
    assert house.answers == [ACTIVE.digest, OTHER.digest, OTHER.digest]


def test_another_variant_does_not_have_the_old_ones_waits(build: Build) -> None:
    house = build()
    house.tick()
    for _ in range(6):
        house.die()
    house.workers[-1].ended = "it ended with exit code 1"
    house.tick()
    house.tick(OTHER)
    assert house.workers[-1].slot == house.slots.path(OTHER.digest)
    house.workers[-1].said = [WINDOW]
    house.tick(OTHER)
    assert house.windows[-1].digest == OTHER.digest
    # What it says is its own, not a repeat of what the other said.
    house.workers[-1].ended = "it ended with exit code 1"
    house.tick(OTHER)
    assert house.noted == [("worker_ended", "it ended with exit code 1")] * 2
    assert house.inference._serving is not None
    assert house.inference._serving._next_at - house.now == pytest.approx(1.0)


def test_the_same_variant_in_another_package_version_runs_on(build: Build) -> None:
    house = build()
    house.tick()
    old = house.get_ready()
    house.tick(ACTIVE.model_copy(update={"index_digest": "sha256:" + "7" * 64}))
    assert len(house.workers) == 1
    assert old.told == ["begin"]
