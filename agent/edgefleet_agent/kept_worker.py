"""The worker of one variant, kept running: checked, started, started again later and later, and given up when it hangs.

Which variant that is, and who asks it for inferences, is `inference`'s business.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from typing import Protocol

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.messages import ActiveVariant, Window
from edgefleet.retry import backoff_s
from edgefleet_agent import footprint, supervise
from edgefleet_agent.background import Work
from edgefleet_agent.channel import Message
from edgefleet_agent.inference_types import InferDone, InferRequest, ModelInfo, Returned, Standing
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.supervise import Worker
from edgefleet_agent.windows import Windows
from edgefleet_agent.worker_ahead import Ahead

RESTART_FIRST_S = 1.0
RESTART_CAP_S = 60.0
STABLE_S = 30.0
STRIKES = 3
HANGS_AFTER_WINDOWS = 3

log = logging.getLogger("edgefleet.agent")


class Listener(Protocol):
    """Who is told of what happens."""

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        ...

    def add_window(self, window: Window) -> None:
        """Keep a telemetry window."""
        ...

    def slot_damaged(self, reason: str) -> None:
        """The committed variant's files do not match their digests any more."""
        ...

    def variant_failed(self, digest: str, reason: str) -> None:
        """A variant's worker ended `STRIKES` times without a stable run in between."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every worker is kept running with."""

    settings: Settings
    slots: Slots
    windows: Windows
    listener: Listener
    ahead: Ahead = field(default_factory=Ahead)
    """What was begun before there was an agent."""


class KeptWorker:
    """One variant's worker."""

    def __init__(self, variant: ActiveVariant, around: Surroundings, now: float) -> None:
        """Nothing is started before `tick`."""
        self.variant = variant
        self.failures = 0
        """Ends in a row, without a stable run in between."""
        self.damage: str | None = None
        """What is wrong with the slot's files; nothing is started then."""
        self.wants_sample = False
        """Whether its next inference is to be told, tensors and all; in `sampled` then."""
        self.sampled: Message | None = None
        self._is_sample_asked = False
        self._around = around
        self._worker: Worker | None = None
        self._checking: Work[VariantSpec] | None = None
        self._serves = False
        self._started_at = self._heard_at = self._asked_at = self._lent_at = now
        self._lent = 0, 0
        self._next_at = now
        self._said: set[tuple[str, str]] = set()

    # What it is asked --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request would be run now, or after the one that is."""
        return self._worker is not None and self._worker.ready

    @property
    def metadata(self) -> ModelInfo | None:
        """What is loaded; None while nothing is."""
        return None if self._worker is None else self._worker.metadata

    @property
    def busy(self) -> bool:
        """Whether a request is being inferred on."""
        return self._worker is not None and self._worker.busy

    def infer(self, request: InferRequest, done: InferDone, now: float) -> bool:
        """As `Worker.infer`."""
        if self._worker is None or not self._worker.infer(request, done):
            return False
        self._asked_at = now
        return True

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """As `Worker.lend`, where it serves."""
        return self._worker is not None and self._serves and self._worker.lend(client, standing, returned)

    @property
    def memory_bytes(self) -> int | None:
        """What its process takes (PSS); None while there is none, or the kernel does not tell."""
        return None if self._worker is None else footprint.pss_bytes(self._worker.pid)

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [one.fileno() for one in (self._worker, self._checking) if one is not None]

    # What it is told ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on it serves: it takes up the source, and reports windows."""
        self._serves = True
        if self._worker is not None and self.ready:
            self._worker.send({"kind": "begin"})

    def leave(self) -> Worker | None:
        """Give the worker out of hand: it ends by itself when it has answered and closed its window."""
        self._cancel_checking()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.send({"kind": "leave"})
        return worker

    def stop(self) -> None:
        """End the worker, or what is done before its start."""
        self._cancel_checking()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    # The turn ----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Start or start again, and take what the worker says."""
        if self._worker is not None:
            self._listen(self._worker, now)
        elif now < self._next_at or self.damage is not None:
            return
        elif self._checking is None:
            # Beside the loop: a model of some size takes a small device a second to hash.
            slots, digest = self._around.slots, self.variant.digest
            self._checking = Work(slots.turn, lambda _: slots.check(digest))
        elif self._checking.finished:
            checking, self._checking = self._checking, None
            self._start(checking, now)

    def _start(self, checking: Work[VariantSpec], now: float) -> None:
        slots, digest = self._around.slots, self.variant.digest
        try:
            spec = checking.result()
        except SlotDamagedError as error:
            self.damage = str(error)
            return
        self._started_at = self._heard_at = now
        self._is_sample_asked = False
        try:
            process = self._around.ahead.take(spec.runtime.value)
            self._worker = supervise.inference(slots.path(digest), spec, digest, self._around.settings, process)
        except OSError as error:
            self._fail(f"no worker process could be started ({error.strerror or error})", now)

    def _listen(self, worker: Worker, now: float) -> None:
        said, ended = worker.messages()
        for message in said:
            self._heard_at = now
            self._take(worker, message)
        if self.wants_sample and worker.ready and not self._is_sample_asked:
            self._is_sample_asked = True
            worker.send({"kind": "sample"})
        if ended:
            self._fail(worker.exit_reason(), now)
        elif (silence := self._hangs(worker, now)) is not None:
            self._fail(silence, now)

    def _hangs(self, worker: Worker, now: float) -> str | None:
        """Why it is taken to hang in its runtime, if it is."""
        settings = self._around.settings
        hang_s = settings.worker.hang_s
        if worker.lent != self._lent:
            self._lent, self._lent_at = worker.lent, now
        if (worker.busy and now - self._asked_at > hang_s) or (self._lent[0] and now - self._lent_at > hang_s):
            return f"an inference did not end within {hang_s:.0f} s"
        if worker.ready and not self._serves:
            return None
        # A worker that serves says at least how each window was.
        patience_s = max(hang_s, HANGS_AFTER_WINDOWS * settings.telemetry.window_s) if worker.ready else hang_s
        return f"the worker said nothing for {patience_s:.0f} s" if now - self._heard_at > patience_s else None

    def _take(self, worker: Worker, message: Message) -> None:
        if message["kind"] == "ready" and self._serves:
            self._around.windows.begin()
            worker.send({"kind": "begin"})
        elif message["kind"] == "failed":
            self._say("worker_failed", message["reason"])
        elif message["kind"] == "source_failed":
            self._say("source_failed", message["reason"])
        elif message["kind"] == "sampled":
            self.wants_sample = self._is_sample_asked = False
            self.sampled = message
        elif message["kind"] == "window":
            take_window(self._around, self.variant.digest, worker, message)

    def _fail(self, reason: str, now: float) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.give_up(reason)
            # In a hang it would not read that its channel is closed.
            worker.kill()
        if self._heard_at - self._started_at > STABLE_S:
            self.failures = 0
            self._said.clear()
        self.failures += 1
        wait_s = backoff_s(self.failures, RESTART_FIRST_S, RESTART_CAP_S)
        self._next_at = now + wait_s
        log.warning("%s: %s; starting again in %.0f s", self.variant.name, reason, wait_s)
        self._say("worker_ended", reason)
        if self.failures == STRIKES:
            self._around.listener.variant_failed(self.variant.digest, f"{STRIKES} times in a row: {reason}")

    def _say(self, kind: str, text: str) -> None:
        """An event for what is new: a worker that dies once a minute for a week says so once."""
        if (kind, text) not in self._said:
            self._said.add((kind, text))
            self._around.listener.note(kind, text)

    def _cancel_checking(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None


def take_window(around: Surroundings, digest: str, worker: Worker, report: Message) -> None:
    """Make a telemetry window of what a worker reports."""
    try:
        around.listener.add_window(around.windows.close(report, digest, worker.pid))
    except ValueError as error:
        log.warning("window dropped: %s", error)
