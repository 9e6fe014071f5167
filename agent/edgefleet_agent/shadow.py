"""The committed variant as a shadow of the one on probation: now and then it is given the same live input.

Only where there is memory for two workers, and for a small share of the time. It serves nobody: its answers are
compared and forgotten, and when it breaks it is not started again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from edgefleet_agent import agreement, footprint
from edgefleet_agent.inference_types import InferDone, InferFailure, InferRequest, InferResult, RawTensor

FREE_BYTES = 128 * 2**20
"""Beside the second worker, which is taken to be no larger than the first."""
GIVE_UP_S = 60.0

log = logging.getLogger("edgefleet.agent")


class Child(Protocol):
    """A worker that takes requests; `supervise.Worker` is one."""

    @property
    def ready(self) -> bool: ...  # noqa: D102
    def fileno(self) -> int: ...  # noqa: D102
    def infer(self, request: InferRequest, done: InferDone) -> bool: ...  # noqa: D102
    def messages(self) -> tuple[list[dict[str, Any]], bool]: ...  # noqa: D102
    def exit_reason(self) -> str: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102


class Shadow:
    """One shadow of one probation."""

    def __init__(
        self, start: Callable[[], Child], worker_bytes: int | None,
        available_bytes: Callable[[], int | None] = footprint.available_bytes,
    ) -> None:  # fmt: skip
        """`worker_bytes`: what the worker that serves takes. Nothing is started where as much again is not free."""
        self.refusal: str | None = None
        """Why nothing is compared (any more)."""
        self._agreed = self._compared = 0
        self._next_at = 0.0
        self._asked_at: float | None = None
        self._now = 0.0
        self._child: Child | None = None
        available = available_bytes()
        if worker_bytes is None or available is None or available < worker_bytes + FREE_BYTES:
            self.refusal = f"there is no memory for two workers ({worker_bytes} bytes each, {available} are free)"
            return
        try:
            self._child = start()
        except OSError as error:
            self.refusal = f"no process could be started ({error.strerror or error})"

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [] if self._child is None else [self._child.fileno()]

    def wants(self, now: float) -> bool:
        """Whether the next live input should be offered."""
        return self._child is not None and self._child.ready and self._asked_at is None and now >= self._next_at

    def offer(self, request: InferRequest, result: InferResult, now: float) -> None:
        """Give it an input that was answered just now; both are copied."""
        if self._child is None or not self.wants(now):
            return
        answer = tuple(_copied(tensor) for tensor in result.tensors)
        copy = InferRequest(tuple(_copied(tensor) for tensor in request.tensors), request.outputs)
        self._now = now
        try:
            if self._child.infer(copy, lambda found: self._compare(answer, found)):
                self._asked_at = now
        except (OSError, ValueError) as error:
            self._end(f"the tensors cannot be shared ({error})")

    def tick(self, now: float) -> None:
        """Take what it says."""
        self._now = now
        if self._child is None:
            return
        _, ended = self._child.messages()
        if self._child is not None and ended:
            self._end(self._child.exit_reason())
        elif self._asked_at is not None and now - self._asked_at > GIVE_UP_S:
            self._end(f"no answer within {GIVE_UP_S:.0f} s")

    def take(self) -> tuple[int, int]:
        """(answers that were the same, all of them) since the last call."""
        found = self._agreed, self._compared
        self._agreed = self._compared = 0
        return found

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _compare(self, answer: tuple[RawTensor, ...], found: InferResult | InferFailure) -> None:
        asked_at, self._asked_at = self._asked_at, None
        self._next_at = self._now + agreement.wait_s(self._now - (self._now if asked_at is None else asked_at))
        if isinstance(found, InferFailure):
            return
        if (same := agreement.same_answer(answer, found.tensors)) is not None:
            self._agreed, self._compared = self._agreed + same, self._compared + 1

    def _end(self, reason: str) -> None:
        log.warning("the committed variant is not compared any more: %s", reason)
        self.refusal = reason
        self.close()


def _copied(tensor: RawTensor) -> RawTensor:
    return RawTensor(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.data))
