"""The worker of the committed variant: started, started again later and later, and given up when it hangs."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.messages import ActiveVariant, MeasuredPower, Window
from edgefleet_agent import supervise
from edgefleet_agent.inference import HANGS_AFTER_S, RESTART_CAP_S, STABLE_S, Inference
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import SlotDamagedError, Slots
from sdk.packages_made import spec
from sdk.wire_examples import ACTIVE

OTHER = ACTIVE.model_copy(update={"digest": "sha256:" + "4" * 64, "name": "other"})
WINDOW: dict[str, Any] = {
    "kind": "window", "started_at": 5.0, "duration_s": 10.0, "count": 3, "errors": 0, "accuracy": None,
    "latency": {"p50_ms": None, "p90_ms": None, "reason": "few"},
}  # fmt: skip


class FakeWorker:
    """Says what it was told to say; `ended` is how it ended."""

    def __init__(self, slot: Path) -> None:
        self.slot = slot
        self.said: list[dict[str, Any]] = []
        self.ended: str | None = None
        self.stopped = 0

    def fileno(self) -> int:
        return id(self)

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        said, self.said = self.said, []
        return said, self.ended is not None

    def exit_reason(self) -> str:
        assert self.ended is not None
        return self.ended

    def stop(self) -> None:
        self.stopped += 1


class FakeMeter:
    def __init__(self) -> None:
        self.windows = 0

    def window(self) -> MeasuredPower:
        self.windows += 1
        return MeasuredPower(watts=float(self.windows), scope="package")


class House:
    """Slots, listener and processes of one Inference, and a clock set by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, window_s: float, rate_per_s: float) -> None:
        self.now = 1000.0
        self.workers: list[FakeWorker] = []
        self.refusal: OSError | None = None
        self.damage: dict[str, str] = {}
        self.noted: list[tuple[str, str]] = []
        self.windows: list[Window] = []
        self.damaged: list[str] = []
        self.meter = FakeMeter()
        self.slots = Slots(folder)
        settings = Settings.model_validate(
            {
                "profile": "p", "state_folder": folder,
                "source": {"kind": "replay", "path": "x", "rate_per_s": rate_per_s},
                "telemetry": {"window_s": window_s},
            }
        )  # fmt: skip
        monkeypatch.setattr(self.slots, "check", self._check)
        monkeypatch.setattr(supervise, "inference", self._start)
        self.inference = Inference(settings, self.slots, self.meter, self)

    def _check(self, digest: str) -> VariantSpec:
        if digest in self.damage:
            raise SlotDamagedError(self.damage[digest])
        return spec()

    def _start(self, slot: Path, *_: object) -> FakeWorker:
        if self.refusal is not None:
            raise self.refusal
        self.workers.append(FakeWorker(slot))
        return self.workers[-1]

    # What the listener is told.

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def add_window(self, window: Window) -> None:
        self.windows.append(window)

    def slot_damaged(self, reason: str) -> None:
        self.damaged.append(reason)

    # What happens.

    def tick(self, active: ActiveVariant | None = ACTIVE, *, after: float = 0.0) -> None:
        self.now += after
        self.inference.tick(active, self.now)
        while self.inference._checking is not None:
            select.select([self.inference._checking], [], [])
            self.inference.tick(active, self.now)

    def die(self, reason: str = "it ended with exit code 1") -> float:
        """End the worker; returns the seconds until another is started."""
        self.workers[-1].ended = reason
        count = len(self.workers)
        self.tick()
        assert not self.inference.descriptors()
        return self.wait(count)

    def wait(self, count: int) -> float:
        """Seconds until more than `count` workers were started."""
        wait_s = self.inference._next_at - self.now
        self.tick(after=wait_s - 0.001)
        assert len(self.workers) == count
        self.tick(after=0.001)
        return wait_s


Build = Callable[..., House]


@pytest.fixture(name="build")
def _build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    return lambda window_s=10.0, rate_per_s=20.0: House(tmp_path, monkeypatch, window_s, rate_per_s)


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


def test_a_window_carries_the_variant_and_the_power_of_its_time(build: Build) -> None:
    house = build()
    house.tick()
    # What was drawn before the worker ran belongs to no window.
    assert house.meter.windows == 1
    house.workers[0].said = [{"kind": "ready"}, WINDOW]
    house.tick(after=10.0)
    (window,) = house.windows
    assert (window.digest, window.count, window.power.watts) == (ACTIVE.digest, 3, 2.0)


def test_a_window_that_is_none_is_dropped(build: Build) -> None:
    house = build()
    house.tick()
    house.workers[0].said = [WINDOW | {"duration_s": float("nan")}, WINDOW | {"count": -1}, WINDOW]
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
    ("window_s", "rate_per_s", "patience_s"), [(10.0, 20.0, HANGS_AFTER_S), (600.0, 20.0, 1800.15), (10.0, 0.01, 330.0)]
)
def test_a_worker_that_says_nothing_hangs(build: Build, window_s: float, rate_per_s: float, patience_s: float) -> None:
    house = build(window_s, rate_per_s)
    house.tick()
    house.tick(after=patience_s - 0.01)
    assert house.workers[0].stopped == 0
    house.workers[0].said = [WINDOW]
    house.tick()
    house.tick(after=patience_s - 0.01)
    assert house.workers[0].stopped == 0
    house.tick(after=0.02)
    assert house.workers[0].stopped == 1
    ((kind, text),) = house.noted
    assert kind == "worker_ended"
    assert "said nothing" in text
    house.wait(1)
    assert len(house.workers) == 2


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
        assert hashed.wait(30)
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


def test_another_variant_is_switched_to_at_once_without_the_old_ones_waits(build: Build) -> None:
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
    assert house.inference._next_at - house.now == pytest.approx(1.0)


def test_the_old_worker_is_stopped_before_the_new_one_starts(build: Build) -> None:
    house = build()
    house.tick()
    house.tick(OTHER, after=1.0)
    assert [worker.stopped for worker in house.workers] == [1, 0]
    house.tick(None)
    assert [worker.stopped for worker in house.workers] == [1, 1]
    assert house.inference.descriptors() == []
