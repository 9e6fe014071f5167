"""What a probation is judged by: windows of both variants, over restarts and on a disk that refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgefleet import durable
from edgefleet.protocol.measurements import Durations, Latency
from edgefleet.protocol.messages import Window
from edgefleet.sketch import Sketch
from edgefleet_agent.benchmark_decision import Limits
from edgefleet_agent.probation import Outcome
from edgefleet_agent.probation_gates import Rules
from edgefleet_agent.settings import ProbationSettings
from edgefleet_agent.watch import FILE_NAME, KEPT_WINDOWS, Watch, observed, rules_of
from sdk.wire_examples import WINDOW

RULES = Rules(windows=8, inferences=200, deadline_s=600.0)


def window(seconds: float, count: int = 50, errors: int = 0) -> Window:
    """A window in which every inference took about so long."""
    sketch = Sketch()
    for number in range(count):
        sketch.add(seconds * (1 + number % 10 / 100))
    durations = Durations.of(sketch)
    latency = Latency(preprocess=durations, inference=durations, end_to_end=durations)
    return WINDOW.model_copy(update={"count": count, "errors": errors, "latency": latency})


def watched(folder: Path, before_s: float | None = 0.010) -> Watch:
    watch = Watch(folder, RULES)
    for _ in range(16 if before_s is not None else 0):
        watch.add(window(before_s or 0.0), on_probation=False)
    watch.begin(first=before_s is None)
    return watch


def verdicts(watch: Watch, seconds: float, count: int = 8) -> list[Outcome]:
    found = []
    for number in range(count):
        watch.add(window(seconds), on_probation=True)
        verdict = watch.judge(10.0 * number)
        assert verdict is not None
        found.append(verdict.outcome)
    return found


def test_as_good_as_before_is_kept_and_slower_is_not(tmp_path: Path) -> None:
    assert verdicts(watched(tmp_path), 0.010)[-1] is Outcome.PASS
    assert Outcome.FAIL in verdicts(watched(tmp_path), 0.030)


def test_a_first_install_is_held_against_nothing(tmp_path: Path) -> None:
    watch = watched(tmp_path, None)
    assert verdicts(watch, 0.030)[-1] is Outcome.PASS


def test_windows_of_a_variant_that_is_gone_are_no_history(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    watch.begin(first=True)
    assert verdicts(watch, 0.030)[-1] is Outcome.PASS


def test_a_restart_keeps_what_it_is_held_against(tmp_path: Path) -> None:
    watched(tmp_path)
    again = Watch(tmp_path, RULES)
    again.restore()
    assert Outcome.FAIL in verdicts(again, 0.030)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"windows": 1}'])
def test_a_damaged_history_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    watch = Watch(tmp_path, RULES)
    watch.restore()
    assert verdicts(watch, 0.030)[-1] is Outcome.PASS


def test_a_full_disk_costs_only_what_a_restart_would_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_file", full)
    watch = watched(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()
    assert Outcome.FAIL in verdicts(watch, 0.030)


def test_nothing_new_is_not_judged_again_but_the_deadline_is(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    assert watch.judge(1.0) is None
    watch.add(window(0.010, count=0), on_probation=True)
    assert watch.judge(2.0) is None
    verdict = watch.judge(RULES.deadline_s)
    assert verdict is not None
    assert (verdict.outcome, verdict.evidence) == (Outcome.PASS, "insufficient")


def test_the_end_makes_the_new_variants_windows_the_history_of_the_next(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    verdicts(watch, 0.010, count=16)
    watch.ended(committed=True)
    assert not (tmp_path / FILE_NAME).exists()
    watch.begin()
    assert Outcome.FAIL in verdicts(watch, 0.030)


def test_after_a_rollback_the_history_is_that_of_what_runs_again(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    verdicts(watch, 0.030, count=4)
    watch.ended(committed=False)
    watch.begin()
    assert Outcome.FAIL in verdicts(watch, 0.030)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    watch = Watch(tmp_path, RULES)
    for _ in range(KEPT_WINDOWS * 3):
        watch.add(window(0.01), on_probation=False)
    watch.begin()
    assert (tmp_path / FILE_NAME).stat().st_size < KEPT_WINDOWS * 4096


def test_a_window_is_seen_as_the_wire_has_it() -> None:
    seen = observed(WINDOW)
    assert (seen.count, seen.errors, seen.duration_s) == (WINDOW.count, WINDOW.errors, WINDOW.duration_s)
    assert (seen.joules, seen.energy_source) == (WINDOW.energy.joules, WINDOW.energy.source)
    assert seen.latency_s == WINDOW.latency.inference.sketch()


def test_rules_are_the_settings_and_the_devices_budget() -> None:
    settings = ProbationSettings(windows=3, min_inferences=7, deadline_s=5.0, latency_tolerance=0.5)
    rules = rules_of(settings, Limits(latency_s=0.02, memory_bytes=100, energy_j=0.5))
    found = SimpleNamespace(**{name: getattr(rules, name) for name in Rules.__slots__})
    assert (found.windows, found.inferences, found.deadline_s, found.latency_tolerance) == (3, 7, 5.0, 0.5)
    assert (found.budget_latency_s, found.budget_memory_bytes, found.budget_energy_j) == (0.02, 100, 0.5)
