"""The agent's trust jobs: one process at a time, the newest job of each kind, tried again when the network fails.

What a job means is its owner's business, who is called with the outcome.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgefleet.protocol.messages import Reply
from edgefleet.retry import backoff_s
from edgefleet_agent.trust_frames import Kind
from edgefleet_agent.trust_session import Hubs, Outcome, TrustSession

RETRY_FIRST_S = 2.0
RETRY_CAP_S = 60.0
MAX_WAITING = 8
MAX_CRASHES = 3

log = logging.getLogger("edgefleet.agent")


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to verify or to make."""

    name: str
    """A newer job of the same name replaces one that waits."""
    content: Mapping[str, Any]
    """What the process is told."""
    ended: Callable[[Outcome], None]
    """Called once, with DONE, REFUSED, or UNAVAILABLE after the last attempt."""
    wanted: Callable[[], bool] = lambda: True
    """Asked before each attempt: what happened meanwhile may have made it needless."""
    attempts: int | None = None
    """How often it is tried; None: until it is decided or replaced."""
    fetches: bool = True
    """Whether it needs the hubs, and so a connection."""


class Line(Hubs, Protocol):
    """The way to the hubs, and whether there is one now."""

    @property
    def connected(self) -> bool:
        """Whether the broker is connected."""
        ...


@dataclass(slots=True)
class _Waiting:
    job: Job
    tried: int = 0
    crashes: int = 0
    not_before: float = 0.0


class TrustQueue:
    """What waits, and the one process that works."""

    def __init__(self, line: Line) -> None:
        """Nothing is started before `tick`."""
        self._line = line
        self._waiting: dict[str, _Waiting] = {}
        self._running: tuple[_Waiting, TrustSession] | None = None

    def submit(self, job: Job) -> bool:
        """Put a job at the end, or in the place of the one of its name; False when too many wait.

        One of its name that runs comes to its end: it is short, and what replaces it may prove to be worthless.
        """
        if job.name not in self._waiting and len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting[job.name] = _Waiting(job)
        return True

    def jobs(self, name: str) -> list[Job]:
        """The jobs of a name: the one that runs, then the one that waits."""
        running = [] if self._running is None else [self._running[0].job]
        return [job for job in [*running, *(entry.job for entry in self._waiting.values())] if job.name == name]

    def sessions(self) -> list[TrustSession]:
        """Child processes to listen to."""
        return [] if self._running is None else [self._running[1]]

    def on_reply(self, reply: Reply, now: float) -> bool:
        """Take a reply from a hub; False when it answers something else."""
        return self._running is not None and self._running[1].on_reply(reply, now)

    def on_connected(self) -> None:
        """There is a new connection: what waits is tried at once."""
        for entry in self._waiting.values():
            entry.not_before = 0.0
        if self._running is not None:
            self._running[1].on_connected()

    def tick(self, now: float) -> None:
        """Serve the process, hand on its outcome, start the next."""
        if self._running is not None:
            self._serve(*self._running, now)
        if self._running is None:
            self._start_next(now)

    def close(self) -> None:
        """End the process; what waits is forgotten."""
        if self._running is not None:
            self._running[1].close()
            self._running = None
        self._waiting.clear()

    def _serve(self, entry: _Waiting, session: TrustSession, now: float) -> None:
        if entry.job.fetches and not self._line.connected:
            # Nothing can come in: 40 MB are not held for a line that may be away for days.
            self._end(session)
            entry.tried -= 1
            self._put_back(entry, now)
            return
        outcome = session.tick(now)
        if outcome is None:
            return
        self._end(session)
        entry.crashes += outcome.crashed
        if entry.crashes >= MAX_CRASHES:
            # What makes its reader crash again and again is not to be trusted.
            outcome = Outcome(Kind.REFUSED, text=f"{outcome.text}, {entry.crashes} times")
        if outcome.kind is Kind.UNAVAILABLE and entry.job.attempts != entry.tried:
            log.warning("%s: %s", entry.job.name, outcome.text)
            self._put_back(entry, now)
        else:
            entry.job.ended(outcome)

    def _end(self, session: TrustSession) -> None:
        session.close()
        self._running = None

    def _put_back(self, entry: _Waiting, now: float) -> None:
        if entry.job.name in self._waiting:
            return  # A newer one has taken its place.
        wait_s = backoff_s(max(1, entry.tried), RETRY_FIRST_S, RETRY_CAP_S)
        entry.not_before = now + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        self._waiting[entry.job.name] = entry

    def _start_next(self, now: float) -> None:
        for name, entry in list(self._waiting.items()):
            if entry.not_before > now or (entry.job.fetches and not self._line.connected):
                continue
            del self._waiting[name]
            if not entry.job.wanted():
                continue
            entry.tried += 1
            try:
                self._running = (entry, TrustSession(entry.job.content, self._line, now))
            except OSError as error:
                log.warning("no trust process could be started (%s)", error.strerror or error)
                self._put_back(entry, now)
            return
