"""Inference with the variant that the journal names: requests wait here for its worker, and variants change places.

How one worker is kept running is `kept_worker`'s business; what is to run is the journal's.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgefleet.protocol.messages import ActiveVariant
from edgefleet_agent import sampled
from edgefleet_agent.inference_types import (
    FailureKind,
    InferDone,
    InferFailure,
    InferRequest,
    InferResult,
    ModelInfo,
    Returned,
    Standing,
)
from edgefleet_agent.kept_worker import STRIKES, KeptWorker, Listener, Surroundings, take_window
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import Slots
from edgefleet_agent.supervise import Worker
from edgefleet_agent.windows import Windows
from edgefleet_agent.worker_ahead import Ahead

OnSample = Callable[[InferRequest, InferResult], None]

MAX_WAITING = 128
WAIT_LIMIT_S = 10.0
"""A request that no worker has taken by then is given up."""
LEAVE_S = 10.0
"""What a worker that leaves may still take for the inference under way."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: InferRequest
    done: InferDone
    until: float


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A worker that answers what it was asked, closes its window and ends."""

    digest: str
    worker: Worker
    until: float


class Inference:
    """The worker of the active variant, the one that is prepared to follow it, and those that leave."""

    def __init__(
        self, settings: Settings, slots: Slots, windows: Windows, listener: Listener,
        clock: Callable[[], float] = time.monotonic, ahead: Ahead | None = None,
    ) -> None:  # fmt: skip
        """Nothing is started before `tick`, which makes use of what was begun `ahead`."""
        self._around = Surroundings(settings, slots, windows, listener, ahead or Ahead())
        self._is_warm = settings.worker.swap == "warm"
        self._clock = clock
        self._serving: KeptWorker | None = None
        self._next: KeptWorker | None = None
        self._leaving: list[_Leaving] = []
        self._waiting: deque[_Waiting] = deque()
        self._metadata: ModelInfo | None = None
        self._on_sample: OnSample | None = None
        self._on_refusal: Callable[[str], None] | None = None

    # Requests ----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request would be run now, or after those that wait."""
        return self._serving is not None and self._serving.ready

    @property
    def metadata(self) -> ModelInfo | None:
        """What is loaded, or was loaded last while its worker is started again; None without a variant."""
        return self._metadata

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        """Take a request and call `done` once, now or later; False when too many wait, or no worker is to be expected.

        It waits while a worker is started again or variants change places, `WAIT_LIMIT_S` at most.
        """
        expected = self._serving is not None and self._serving.failures < STRIKES
        if not (self.ready or expected) or self._metadata is None or len(self._waiting) >= MAX_WAITING:
            return False
        now = self._clock()
        self._waiting.append(_Waiting(request, done, now + WAIT_LIMIT_S))
        self._hand_on(now)
        return True

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """Have the worker that serves answer a client by itself; it is given back when variants change places."""
        return self._serving is not None and self._serving.lend(client, standing, returned)

    def _hand_on(self, now: float) -> None:
        """Give up what has waited for too long, and ask the worker for the first of the others."""
        while self._waiting and self._waiting[0].until <= now:
            late = self._waiting.popleft()
            late.done(InferFailure(FailureKind.UNAVAILABLE, f"no worker was ready within {WAIT_LIMIT_S:.0f} s"))
        serving = self._serving
        while self._waiting and serving is not None and serving.ready and not serving.busy:
            first = self._waiting.popleft()
            try:
                serving.infer(first.request, first.done, now)
            except (OSError, ValueError) as error:
                first.done(InferFailure(FailureKind.REFUSED, f"the tensors cannot be shared ({error})"))

    def _give_up(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.done(InferFailure(FailureKind.UNAVAILABLE, reason))

    # Samples -----------------------------------------------------------------------------------------

    @property
    def worker_bytes(self) -> int | None:
        """What the worker that serves takes of the memory (PSS)."""
        return None if self._serving is None else self._serving.memory_bytes

    def sample(self, on_sample: OnSample | None, on_refusal: Callable[[str], None]) -> None:
        """Have the next live inference passed on by `tick`, once; `on_refusal` gets why that cannot be. None: not."""
        self._on_sample, self._on_refusal = on_sample, on_refusal

    def _pass_sample(self, serving: KeptWorker) -> None:
        message, serving.sampled = serving.sampled, None
        on_sample, on_refusal = self._on_sample, self._on_refusal
        serving.wants_sample = on_sample is not None and message is None
        if message is None or on_sample is None or on_refusal is None:
            return
        self._on_sample = self._on_refusal = None
        try:
            request, result = sampled.decode(message, serving.variant.digest)
        except ValueError as error:
            on_refusal(str(error))
        else:
            on_sample(request, result)

    # The next variant --------------------------------------------------------------------------------

    def prepare(self, variant: ActiveVariant) -> None:
        """Start a worker of the variant that follows, beside the one that serves; again for the same is nothing new.

        It serves once `tick` is told that it is active. With `swap = "stop-start"` nothing is started before that.
        """
        if self._next is not None and self._next.variant.digest == variant.digest:
            return
        self.abandon()
        if self._serving is None or self._serving.variant.digest != variant.digest:
            self._next = KeptWorker(variant, self._around, self._clock())

    @property
    def prepared(self) -> bool:
        """Whether the variant of the last `prepare` can take over now."""
        return self._next is None or not self._is_warm or self._next.ready

    def abandon(self) -> None:
        """The prepared variant is not wanted any more."""
        if self._next is not None:
            self._next.stop()
            self._next = None

    # The turn ----------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        kept = [one for one in (self._serving, self._next) if one is not None]
        return [number for one in kept for number in one.descriptors()] + [one.worker.fileno() for one in self._leaving]

    def answers(self) -> list[int]:
        """Those of `descriptors` that become readable when `listen` has something to do."""
        return [] if self._serving is None else self._serving.descriptors()

    @property
    def busy(self) -> bool:
        """Whether an answer of the worker that serves is due."""
        return self._serving is not None and self._serving.busy

    def listen(self) -> None:
        """Take what the worker that serves says, and ask it for the next: what of `tick` an answer waits for."""
        now = self._clock()
        if self._serving is not None:
            self._serving.tick(now)
            self._metadata = self._serving.metadata or self._metadata
        self._hand_on(now)

    def tick(self, active: ActiveVariant | None, now: float) -> None:
        """Run `active`: start, restart, switch or stop workers, and take what they say."""
        self._around.windows.tick(now)
        self._dismiss(now)
        self._follow(active, now)
        # Where memory is short, one starts when the other is gone.
        if self._is_warm or not self._leaving:
            for kept in (self._serving, self._next if self._is_warm else None):
                if kept is not None:
                    kept.tick(now)
                    self._note_damage(kept, active)
            self._follow(active, now)
        if self._serving is not None:
            self._metadata = self._serving.metadata or self._metadata
            self._pass_sample(self._serving)
        self._hand_on(now)

    def _follow(self, active: ActiveVariant | None, now: float) -> None:
        """Have the active variant serve, or get ready to."""
        if active is None:
            self._let_go()
            return
        if self._serving is not None and self._serving.variant.digest == active.digest:
            return
        self.prepare(active)
        if self._next is None:
            return
        # What still answers goes on answering until there is something that answers better.
        if self._serving is None or not self._is_warm or not self._serving.ready or self._next.ready:
            self._take_over(self._next, now)

    def _take_over(self, kept: KeptWorker, now: float) -> None:
        before, self._serving, self._next = self._serving, kept, None
        if before is not None:
            self._say_swap(before.variant, kept.variant)
            worker = before.leave()
            if worker is not None:
                self._leaving.append(_Leaving(before.variant.digest, worker, now + LEAVE_S))
        elif kept.ready:
            # What was spent before is nobody's.
            self._around.windows.begin()
        kept.begin()
        self._hand_on(now)

    def _say_swap(self, before: ActiveVariant, after: ActiveVariant) -> None:
        if not self._is_warm:
            text = f"{before.name} stops before {after.name} starts (swap = stop-start); requests wait meanwhile"
            self._around.listener.note("swap", text)

    def _note_damage(self, kept: KeptWorker, active: ActiveVariant | None) -> None:
        if kept.damage is None:
            return
        reason, listener = kept.damage, self._around.listener
        if kept is self._serving:
            self._serving = None
        else:
            self._next = None
        if active is not None and kept.variant.digest == active.digest:
            listener.slot_damaged(reason)
        else:
            listener.variant_failed(kept.variant.digest, reason)

    def _dismiss(self, now: float) -> None:
        """Take the last words of those that leave."""
        for leaving in list(self._leaving):
            said, ended = leaving.worker.messages()
            for message in said:
                if message["kind"] == "window":
                    take_window(self._around, leaving.digest, leaving.worker, message)
            if ended or now > leaving.until:
                self._leaving.remove(leaving)
                leaving.worker.kill()

    def _let_go(self) -> None:
        """No variant is active: what serves stops; what is prepared stays prepared."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None
        self._around.ahead.dismiss()
        self._metadata = None
        self._give_up("there is no model")

    def stop(self) -> None:
        """End every worker."""
        self._let_go()
        self.abandon()
        for leaving in self._leaving:
            leaving.worker.stop()
        self._leaving.clear()
