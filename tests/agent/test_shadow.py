"""The shadow of a probation: which answers are the same, how often it is asked, and what it must never cost."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgefleet_agent import agreement, shadow
from edgefleet_agent.agreement import CODES, same_answer, values
from edgefleet_agent.inference_types import FailureKind, InferDone, InferFailure, InferRequest, InferResult, RawTensor
from edgefleet_agent.shadow import Shadow

MIB = 2**20
NAN, INFINITE = float("nan"), float("inf")


def tensor(content: Sequence[float], shape: tuple[int, ...] | None = None, dtype: str = "float32") -> RawTensor:
    packed = struct.pack(f"<{len(content)}e", *content) if dtype == "float16" else None
    whole = dtype not in {"float32", "float64"}
    data = packed or array(CODES[dtype], [int(c) if whole else c for c in content]).tobytes()
    return RawTensor("y", dtype, shape or (1, len(content)), data)


@pytest.mark.parametrize("dtype", [*CODES, "float16"])
def test_every_type_is_read(dtype: str) -> None:
    assert list(values(tensor([1, 0, 1], dtype=dtype))) == [1, 0, 1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (tensor([0.1, 0.9, 0.3]), tensor([5.0, 7.0, 6.9]), True),
        (tensor([0.1, 0.9, 0.3]), tensor([0.1, 0.9, 0.91]), False),
        (tensor([0.1, NAN, 0.3]), tensor([0.1, 0.9, 0.3]), False),
        (tensor([3.0], (1, 1)), tensor([3.3], (1, 1)), True),
        (tensor([3.0], (1, 1)), tensor([5.0], (1, 1)), False),
        (tensor([1.0, 2.0, 3.0, 4.0], (2, 2)), tensor([1.1, 2.1, 3.1, 3.9], (2, 2)), True),
        (tensor([1.0, 2.0, 3.0, 4.0], (2, 2)), tensor([0.0] * 4, (2, 2)), False),
        (tensor([0.0] * 4, (2, 2)), tensor([0.0] * 4, (2, 2)), True),
        (tensor([INFINITE, 1.0, NAN, 1.0], (2, 2)), tensor([INFINITE, 1.0, NAN, 1.0], (2, 2)), True),
        (tensor([INFINITE, 1.0, 1.0, 1.0], (2, 2)), tensor([1.0] * 4, (2, 2)), False),
        (tensor([1.0, 2.0]), tensor([1.0, 2.0], (2,)), False),
        (tensor([1, 2]), tensor([1, 2], dtype="int8"), False),
    ],
)
def test_the_same_answer(one: RawTensor, other: RawTensor, same: bool) -> None:
    assert same_answer([one], [other]) is same
    assert same_answer([other], [one]) is same


def test_what_cannot_be_compared_is_not() -> None:
    named = RawTensor("z", "float32", (1,), bytes(4))
    huge = RawTensor("y", "float32", (1, agreement.MOST_VALUES + 1), b"")
    text = RawTensor("y", "BYTES", (1,), b"x")
    for one, other in ((named, tensor([1.0])), (huge, huge), (text, text), (tensor([]), tensor([]))):
        assert same_answer([one], [other]) is None
    assert same_answer([tensor([1, 2]), named], [tensor([1, 2])]) is True


@dataclass
class FakeChild:
    """Answers what `answers` says, when it is told to."""

    answers: Callable[[InferRequest], InferResult | InferFailure]
    ready: bool = True
    ended: bool = False
    killed: bool = False
    asked: list[tuple[InferRequest, InferDone]] = field(default_factory=list)

    def fileno(self) -> int:
        return 7

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        self.asked.append((request, done))
        return True

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        for request, done in self.asked:
            done(self.answers(request))
        self.asked.clear()
        return [], self.ended

    def exit_reason(self) -> str:
        return "it was ended by signal 11"

    def kill(self) -> None:
        self.killed = True


def answer(*scores: float) -> InferResult:
    return InferResult("sha256:0", (tensor(scores),), 0.01)


REQUEST = InferRequest((tensor([1.0, 2.0]),))


def begun(child: FakeChild, free: int | None = 1024 * MIB) -> Shadow:
    return Shadow(lambda: child, 60 * MIB, lambda: free)


def test_answers_are_compared_and_counted_once() -> None:
    broken = InferFailure(FailureKind.FAILED, "no")
    outcomes: list[InferResult | InferFailure] = [answer(0.1, 0.9), answer(0.9, 0.1), broken]
    said = iter(outcomes)
    child = FakeChild(lambda _: next(said))
    running, now = begun(child), 0.0
    for _ in range(3):
        assert running.wants(now)
        running.offer(REQUEST, answer(0.2, 0.8), now)
        assert not running.wants(now)
        running.tick(now + 0.1)
        now += 10.0
    assert running.take() == (1, 2)
    assert running.take() == (0, 0)


def test_what_is_offered_is_a_copy() -> None:
    data = bytearray(tensor([1.0, 2.0]).data)
    child = FakeChild(lambda _: answer(0.1, 0.9))
    running = begun(child)
    live = RawTensor("x", "float32", (1, 2), memoryview(data))
    running.offer(InferRequest((live,)), InferResult("sha256:0", (live,), 0.01), 0.0)
    data[:] = bytes(8)
    ((request, _),) = child.asked
    assert list(values(request.tensors[0])) == [1.0, 2.0]


@pytest.mark.parametrize("spent_s", [0.001, 0.1, 2.0])
def test_it_takes_a_twentieth_of_the_time_at_most(spent_s: float) -> None:
    child = FakeChild(lambda _: answer(0.1, 0.9))
    running, now, asked = begun(child), 0.0, 0
    while now < 1000.0:
        if running.wants(now):
            running.offer(REQUEST, answer(0.1, 0.9), now)
            asked += 1
            now += spent_s
            running.tick(now)
        else:
            now += 0.01
    assert asked * spent_s <= 1000.0 * agreement.DUTY * 1.01 + spent_s
    assert asked >= 20


@pytest.mark.parametrize("free", [None, 100 * MIB])
def test_without_memory_for_two_nothing_is_started(free: int | None) -> None:
    running = begun(FakeChild(lambda _: answer(1.0)), free)
    assert running.descriptors() == []
    assert not running.wants(0.0)
    assert running.refusal is not None
    assert Shadow(lambda: FakeChild(lambda _: answer(1.0)), None, lambda: 1024 * MIB).refusal is not None


def test_one_that_breaks_is_not_started_again() -> None:
    child = FakeChild(lambda _: answer(1.0), ended=True)
    running = begun(child)
    running.offer(REQUEST, answer(1.0), 0.0)
    running.tick(1.0)
    assert child.killed
    assert running.refusal == "it was ended by signal 11"
    assert not running.wants(100.0)
    running.offer(REQUEST, answer(1.0), 100.0)
    running.tick(101.0)


def test_one_that_hangs_is_given_up() -> None:
    child = FakeChild(lambda _: answer(1.0))
    child.messages = lambda: ([], False)  # type: ignore[method-assign]
    running = begun(child)
    running.offer(REQUEST, answer(1.0), 0.0)
    running.tick(shadow.GIVE_UP_S - 1)
    assert running.refusal is None
    running.tick(shadow.GIVE_UP_S + 1)
    assert running.refusal == "no answer within 60 s"
    assert child.killed


def test_one_that_cannot_be_started_is_no_failure() -> None:
    def refuses() -> FakeChild:
        raise OSError(11, "Resource temporarily unavailable")

    running = Shadow(refuses, 1, lambda: 1024 * MIB)
    assert running.refusal == "no process could be started (Resource temporarily unavailable)"
    running.tick(0.0)
    running.close()
