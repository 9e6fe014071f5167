"""Keeps a worker running on the committed variant, and turns what it says into windows and events.

It decides when to start again and after how long; what runs is the journal's business.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from pydantic import ValidationError

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.messages import ActiveVariant, Window
from edgefleet.retry import backoff_s
from edgefleet_agent import supervise
from edgefleet_agent.background import Work
from edgefleet_agent.power.meter import Meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.supervise import Worker

RESTART_FIRST_S = 1.0
RESTART_CAP_S = 60.0
STABLE_S = 30.0
HANGS_AFTER_S = 60.0
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


class Inference:
    """The worker of the committed variant."""

    def __init__(self, settings: Settings, slots: Slots, meter: Meter, listener: Listener) -> None:
        """Nothing is started before `tick`."""
        self._settings = settings
        self._slots = slots
        self._meter = meter
        self._listener = listener
        self._worker: Worker | None = None
        self._checking: Work[VariantSpec] | None = None
        self._variant: ActiveVariant | None = None
        self._started_at = 0.0
        self._heard_at = 0.0
        self._next_at = 0.0
        self._failures = 0
        self._said: set[tuple[str, str]] = set()

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [one.fileno() for one in (self._worker, self._checking) if one is not None]

    def tick(self, active: ActiveVariant | None, now: float) -> None:
        """Run `active`: start, restart, switch or stop the worker, and take what it says."""
        if active != self._variant:
            self.stop()
            self._variant, self._failures, self._next_at = active, 0, now
            self._said.clear()
        if self._worker is not None:
            self._listen(self._worker, now)
        elif active is None or now < self._next_at:
            return
        elif self._checking is None:
            # Beside the loop: a model of some size takes a small device a second to hash.
            self._checking = Work(self._slots.turn, lambda _: self._slots.check(active.digest))
        elif self._checking.finished:
            checking, self._checking = self._checking, None
            self._start(active, checking, now)

    def stop(self) -> None:
        """End the worker, or what is done before its start."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _start(self, active: ActiveVariant, checking: Work[VariantSpec], now: float) -> None:
        try:
            spec = checking.result()
        except SlotDamagedError as error:
            self._listener.slot_damaged(str(error))
            return
        telemetry, source = self._settings.telemetry, self._settings.source
        self._started_at = self._heard_at = now
        try:
            self._worker = supervise.inference(self._slots.path(active.digest), spec, source, telemetry.window_s)
        except OSError as error:
            self._fail(f"no worker process could be started ({error.strerror or error})", now)
            return
        self._meter.window()

    def _listen(self, worker: Worker, now: float) -> None:
        said, ended = worker.messages()
        for message in said:
            self._heard_at = now
            self._take(message)
        if ended:
            self._fail(worker.exit_reason(), now)
        elif now - self._heard_at > self._patience_s():
            self._fail(f"the worker said nothing for {self._patience_s():.0f} s", now)

    def _patience_s(self) -> float:
        """A worker reports a window every so often, or it hangs in its runtime."""
        expected_s = self._settings.telemetry.window_s + 1 / self._settings.source.rate_per_s
        return max(HANGS_AFTER_S, HANGS_AFTER_WINDOWS * expected_s)

    def _take(self, message: dict[str, Any]) -> None:
        if message["kind"] == "failed":
            self._say("worker_failed", message["reason"])
        elif message["kind"] == "window" and self._variant is not None:
            content = {**message, "digest": self._variant.digest, "power": self._meter.window()}
            try:
                self._listener.add_window(Window.model_validate(content))
            except ValidationError as error:
                log.warning("window dropped: %s", error)

    def _fail(self, reason: str, now: float) -> None:
        self.stop()
        if self._heard_at - self._started_at > STABLE_S:
            self._failures = 0
            self._said.clear()
        self._failures += 1
        wait_s = backoff_s(self._failures, RESTART_FIRST_S, RESTART_CAP_S)
        self._next_at = now + wait_s
        log.warning("%s; starting again in %.0f s", reason, wait_s)
        self._say("worker_ended", reason)

    def _say(self, kind: str, text: str) -> None:
        """An event for what is new: a worker that dies once a minute for a week says so once."""
        if (kind, text) not in self._said:
            self._said.add((kind, text))
            self._listener.note(kind, text)
