"""Real worker processes: requests in shared memory, runtimes that crash, hang and eat, variants that change places."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.fake_runtime.ai_edge_litert.interpreter import EAT, HANG, REFUSE, SEGFAULT, SLEEP
from agent.worker_lab import Lab, benchmark, kept, next_message, request, variant_files, variant_spec
from edgefleet_agent import slot_options, supervise
from edgefleet_agent.inference_types import FailureKind, InferFailure, InferRequest, InferResult, RawTensor
from edgefleet_agent.self_test import SelfTest, SelfTestError
from patience import PATIENCE_S

Start = Callable[..., Lab]


@pytest.fixture(name="start")
def _start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    labs: list[Lab] = []

    def start(*factors: float, **settings: object) -> Lab:
        labs.append(Lab(tmp_path, monkeypatch, list(factors or (3.0,)), **settings))
        return labs[-1]

    yield start
    for lab in labs:
        lab.inference.stop()


# Requests ---------------------------------------------------------------------------------------------


def test_a_request_is_answered_with_the_digest_of_its_variant(start: Start) -> None:
    lab = start().started()
    for count in range(3):
        assert lab.answered(1, 2, 3, count) == (lab.variants[0].digest, [3, 6, 9, 3 * count])
    assert lab.inference.metadata == supervise.model_info(variant_spec("v0"), lab.variants[0].digest)


def test_values_live_until_the_answer_was_taken_and_no_longer(start: Start) -> None:
    lab = start().started()
    held: list[RawTensor] = []

    def done(answer: InferResult | InferFailure) -> None:
        assert isinstance(answer, InferResult)
        held.extend(answer.tensors)
        assert isinstance(held[0].data, memoryview)
        with pytest.raises(TypeError, match="read-only"):
            held[0].data[0] = 0

    assert lab.inference.infer(request(1, 2), done)
    lab.until(lambda: held)
    with pytest.raises(ValueError, match="released"):
        bytes(held[0].data)


def test_what_the_runtime_refuses_is_told_and_the_worker_serves_on(start: Start) -> None:
    lab = start().started()
    assert lab.answered(REFUSE) == InferFailure(FailureKind.FAILED, "RuntimeError: the runtime refused")
    assert lab.answered(1)[1] == [3, 0, 0, 0]  # type: ignore[index]
    lab.until(lambda: (sum(w.count for w in lab.windows), sum(w.errors for w in lab.windows)) == (1, 1))
    assert not [kind for kind, _ in lab.noted if kind == "worker_ended"]


def test_tensors_larger_than_the_memory_make_it_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 300_000
    lab = Lab(tmp_path, monkeypatch, [2.0])
    made = variant_spec("large", size)
    slot = variant_files(tmp_path / "large", made, 2.0).model_files[0].parent
    (slot / "large.npz").rename(slot / "golden.npz")
    worker = supervise.inference(slot, made, "sha256:" + "1" * 64, lab.settings)
    try:
        assert next_message(worker) == {"kind": "ready"}
        values = np.arange(size, dtype=np.float32)
        for _ in range(2):
            assert worker.infer(request(*values, size=size), kept(lab.outcomes))
            while worker.busy:
                select.select([worker], [], [], PATIENCE_S)
                assert worker.messages() == ([], False)
        assert len(lab.outcomes) == 2
        for _, found in lab.outcomes:  # type: ignore[misc]
            np.testing.assert_array_equal(found, 2 * values)
    finally:
        worker.stop()


def test_data_that_is_not_as_long_as_it_says_harms_no_later_request(start: Start) -> None:
    lab = start().started()
    lab.answered(1)
    wrong = InferRequest((RawTensor("x", "float32", (2, 2), memoryview(bytes(16)).cast("f", (2, 2))),))  # type: ignore[arg-type]
    assert lab.inference.infer(wrong, kept(lab.outcomes))
    found = lab.outcomes[-1]
    assert isinstance(found, InferFailure)
    assert found.kind is FailureKind.REFUSED
    assert lab.answered(2)[1] == [6, 0, 0, 0]  # type: ignore[index]


def test_many_labels_do_not_hold_the_loop_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are more than what a pipe holds, and this worker never reads them."""
    lab = Lab(tmp_path, monkeypatch, [2.0])
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    labels = tuple(f"a class called {place}" for place in range(20_000))
    made = variant_spec("v0").model_copy(update={"labels": labels})
    worker = supervise.inference(tmp_path, made, "sha256:" + "1" * 64, lab.settings)
    assert worker.messages() == ([], False)
    worker.kill()


# Faults -----------------------------------------------------------------------------------------------


def test_a_crash_costs_the_request_that_caused_it_and_no_other(start: Start) -> None:
    lab = start().started()
    assert lab.ask(SEGFAULT)
    assert lab.ask(1)
    lab.until(lambda: lab.outcomes)
    assert lab.outcomes == [InferFailure(FailureKind.UNAVAILABLE, "it was ended by signal 11")]
    lab.ahead_s += 1.0
    lab.until(lambda: len(lab.outcomes) == 2)
    assert lab.outcomes[1] == (lab.variants[0].digest, [3, 0, 0, 0])
    assert ("worker_ended", "it was ended by signal 11") in lab.noted
    assert lab.failed == []


def test_a_variant_that_crashes_at_its_opening_strikes_out(start: Start) -> None:
    lab = start(SEGFAULT)

    def struck_out() -> bool:
        if not lab.inference.descriptors():
            # Between two workers: skip the wait.
            lab.ahead_s += 60.0
        return bool(lab.failed)

    lab.until(struck_out)
    assert lab.failed == [(lab.variants[0].digest, "3 times in a row: it was ended by signal 11")]


def test_a_hang_is_ended_by_force_and_the_next_worker_serves(start: Start) -> None:
    lab = start(telemetry={"window_s": 3600}).started()
    assert lab.ask(HANG)
    lab.turn()
    lab.ahead_s += 61.0
    lab.turn()
    assert lab.outcomes == [InferFailure(FailureKind.UNAVAILABLE, "an inference did not end within 60 s")]
    assert lab.again().answered(1)[1] == [3, 0, 0, 0]  # type: ignore[index]


def test_the_memory_limit_ends_the_worker_and_not_the_board(start: Start) -> None:
    lab = start(worker={"memory_mb": 160}).started()
    found = lab.answered(EAT)
    assert isinstance(found, InferFailure)
    assert found.kind is FailureKind.UNAVAILABLE
    lab.until(lambda: any(kind == "worker_failed" and "MemoryError" in text for kind, text in lab.noted))
    assert lab.again().answered(1)[1] == [3, 0, 0, 0]  # type: ignore[index]


@pytest.fixture(name="cgroup")
def _cgroup(need: Callable[[bool, str], None]) -> Iterator[Path]:
    """A cgroup whose memory is limited, of version 1."""
    folder = Path("/sys/fs/cgroup/memory/edgefleet-test")
    need(os.access(folder.parent, os.W_OK), "a memory cgroup that may be written")
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(64 << 20))
    yield folder
    folder.rmdir()


@pytest.mark.full
def test_the_kernel_ends_the_worker_where_a_cgroups_memory_is_gone(start: Start, cgroup: Path) -> None:
    lab = start().started()
    assert lab.inference._serving is not None
    assert lab.inference._serving._worker is not None
    pid = lab.inference._serving._worker.pid
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())
    (cgroup / "cgroup.procs").write_text(str(pid))
    assert lab.answered(EAT) == InferFailure(FailureKind.UNAVAILABLE, "it was ended by signal 9")
    assert ("worker_ended", "it was ended by signal 9") in lab.noted
    assert lab.again().answered(1)[1] == [3, 0, 0, 0]  # type: ignore[index]


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b"7", b"\xff"])
def test_a_worker_that_says_what_is_no_message_is_ended(start: Start, line: bytes) -> None:
    worker = benchmark(start())
    worker._buffer = line + b"\n"
    assert worker.messages() == ([], True)
    assert worker.exit_reason() == "it was ended by signal 9"
    worker.stop()


# Variants change places -------------------------------------------------------------------------------


def client(lab: Lab, per_s: float, until: Callable[[], object]) -> int:
    """Ask `per_s` times a second; returns how many were sent so far, each of which was taken."""
    sent, due_s = len(lab.outcomes), time.monotonic()
    end_s = due_s + PATIENCE_S
    while not until() and time.monotonic() < end_s:
        if time.monotonic() >= due_s:
            assert lab.ask(1, 2)
            sent, due_s = sent + 1, due_s + 1 / per_s
        lab.turn(max(0.0, due_s - time.monotonic()))
    lab.until(lambda: len(lab.outcomes) == sent)
    return sent


def served_by(lab: Lab) -> list[float]:
    """The factor that each answer was made with; every one is that of the digest it names."""
    factors = {lab.variants[0].digest: 3.0, lab.variants[1].digest: 5.0}
    assert not [outcome for outcome in lab.outcomes if isinstance(outcome, InferFailure)]
    found = [(factors[outcome[0]], outcome[1]) for outcome in lab.outcomes if not isinstance(outcome, InferFailure)]
    assert all(values == [factor, 2 * factor, 0, 0] for factor, values in found)
    return [factor for factor, _ in found]


@pytest.mark.parametrize(("swap", "per_s"), [("warm", 50.0), ("stop-start", 10.0)])
def test_no_request_fails_while_variants_change_places(start: Start, swap: str, per_s: float) -> None:
    lab = start(3.0, 5.0, worker={"swap": swap}).started()
    client(lab, per_s, lambda: len(lab.outcomes) >= 4)
    lab.inference.prepare(lab.variants[1])
    client_end = len(lab.outcomes) + 4
    client(lab, per_s, lambda: lab.inference.prepared and len(lab.outcomes) >= client_end)
    lab.active = lab.variants[1]
    sent = client(lab, per_s, lambda: served_by(lab)[-1] == 5.0)
    client(lab, per_s, lambda: len(lab.outcomes) >= sent + 4)
    factors = served_by(lab)
    assert factors == sorted(factors)
    assert set(factors) == {3.0, 5.0}
    assert ("swap" in [kind for kind, _ in lab.noted]) == (swap == "stop-start")
    lab.until(lambda: not lab.inference._leaving)


def test_an_inference_under_way_is_answered_by_the_worker_that_leaves(start: Start) -> None:
    lab = start(3.0, 5.0).started()
    lab.inference.prepare(lab.variants[1])
    lab.until(lambda: lab.inference.prepared)
    assert lab.ask(SLEEP, 2)
    lab.active = lab.variants[1]
    lab.turn(0)
    assert lab.ask(1, 2)
    lab.until(lambda: len(lab.outcomes) == 2)
    assert (lab.variants[0].digest, [SLEEP * 3, 6, 0, 0]) in lab.outcomes
    assert (lab.variants[1].digest, [5, 10, 0, 0]) in lab.outcomes


# Other modes ------------------------------------------------------------------------------------------


def test_a_benchmark_measures_as_often_and_as_long_as_it_is_told_to(start: Start) -> None:
    lab = start()
    worker = benchmark(lab)
    try:
        assert next_message(worker) == {"kind": "ready"}
        worker.send({"kind": "run", "runs": 5, "seconds": 0.0, "most": 100})
        ran = next_message(worker)
        assert ran["kind"] == "ran"
        assert len(ran["seconds"]) == len(ran["end_to_end_s"]) == 5
        assert all(0 < inner <= outer for inner, outer in zip(ran["seconds"], ran["end_to_end_s"], strict=True))
        worker.send({"kind": "run", "runs": 1, "seconds": 0.05, "most": 10**6})
        ran = next_message(worker)
        # None was begun after that time.
        assert sum(ran["end_to_end_s"][:-1]) <= 0.05
    finally:
        worker.stop()


def test_what_was_chosen_for_a_slot_goes_before_the_settings(start: Start) -> None:
    """The fake runtime multiplies by its number of threads when the second value asks for it."""
    lab = start(runtime={"threads": 2}).started()
    assert lab.answered(1, HANG)[1][0] == 2  # type: ignore[index]
    slot_options.record(lab.slots.path(lab.variants[0].digest), slot_options.SlotOptions(threads=4))
    lab.answered(SEGFAULT)
    assert lab.again().answered(1, HANG)[1][0] == 4  # type: ignore[index]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"threads": 0}', b"\xff"])
def test_what_cannot_be_read_of_a_choice_is_as_if_it_were_not_there(start: Start, content: bytes) -> None:
    lab = start(runtime={"threads": 2})
    slot = lab.slots.path(lab.variants[0].digest)
    (slot / slot_options.FILE).write_bytes(content)
    assert slot_options.applied(slot, lab.settings.runtime).threads == 2


@pytest.mark.parametrize(("factor", "said"), [(3.0, None), (SEGFAULT, "it was ended by signal 11")])
def test_a_self_test_says_how_it_ended(start: Start, factor: float, said: str | None) -> None:
    lab = start(factor)
    digest = lab.variants[0].digest
    test = SelfTest(lab.slots.path(digest), lab.slots.check(digest), 0.0)
    try:
        found: float | str | None = None
        while found is None:
            select.select([test], [], [], PATIENCE_S)
            try:
                found = test.max_difference(0.0)
            except SelfTestError as error:
                found = str(error)
        assert found == (0.0 if said is None else said)
    finally:
        test.stop()
