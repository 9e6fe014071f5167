"""Which of a package's variants a device takes: what is pulled for it, what a prior spares, what is measured.

The rules are `selection`'s and `benchmark_rules`'; how a candidate gets to disk is `install`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.decisions import DECISION_EVENT, Prior
from edgefleet.protocol.messages import Reply, Request
from edgefleet.protocol.signed import PackageVersion
from edgefleet.selection import Bounds, Candidate, Verdict, to_measure
from edgefleet_agent import benchmark, benchmark_record, slot_options
from edgefleet_agent.benchmark import Benchmark, Sensors
from edgefleet_agent.benchmark_decision import Decision
from edgefleet_agent.benchmark_record import About
from edgefleet_agent.prior_question import PriorQuestion
from edgefleet_agent.settings import RuntimeSettings, SelectionSettings, WorkerSettings
from edgefleet_agent.slot_options import SlotOptions
from edgefleet_agent.slots import Slots
from edgefleet_device_profiles.profile import Profile

log = logging.getLogger("edgefleet.agent")


class ChoiceError(Exception):
    """None of the candidates may run here; the text says why."""


class Host(Protocol):
    """What a choice needs of its agent."""

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        ...

    def next_req_id(self) -> str:
        """A request id never used before by this agent."""
        ...

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        ...

    def wall_clock(self) -> float:
        """Seconds since 1970, never before what was verified last."""
        ...


@dataclass(frozen=True, slots=True)
class Means:
    """With what this device chooses, and by which settings."""

    selection: SelectionSettings
    runtime: RuntimeSettings
    worker: WorkerSettings
    profile: Profile
    cores: int
    hardware_class: str
    folder: Path
    """Where the last decision is kept."""
    sensors: Callable[[], Sensors]

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of threads to measure each candidate with."""
        return benchmark.thread_choices(self.selection.threads, self.cores)


@dataclass(frozen=True, slots=True)
class Passed:
    """A candidate that is on disk and passed its self-test."""

    candidate: Candidate
    spec: VariantSpec


class Choosing:
    """The choice of one installation."""

    def __init__(
        self, means: Means, slots: Slots, host: Host, wanted: PackageVersion | None, active: str | None
    ) -> None:
        """Among the variants of `wanted`; `active` is the digest of what runs meanwhile."""
        self.prior: Prior | None = None
        """What is taken over instead of measuring."""
        self._means = means
        self._slots = slots
        self._host = host
        self._index_digest = "" if wanted is None else wanted.index_digest
        self._active = active
        self._question: PriorQuestion | None = None
        self._benchmark: Benchmark | None = None
        self._passed: dict[str, Passed] = {}

    # What is pulled ----------------------------------------------------------------------------------

    def candidates(self, verdicts: Sequence[Verdict], now: float) -> list[Candidate] | None:
        """What to pull, best first; None while a prior may still come."""
        settings = self._means.selection
        found, why = to_measure(verdicts, self._bounds)
        if settings.prior == "auto" and len(found) * len(self._means.threads) > 1:
            if not self._asked(now):
                return None
            found, why = to_measure(verdicts, self._bounds, None if self.prior is None else self.prior.digest)
            if self.prior is not None and [one.digest for one in found] != [self.prior.digest]:
                # It names a variant that this device cannot run.
                self.prior = None
        log.info("to be measured: %s", why)
        return found

    def without_prior(self, verdicts: Sequence[Verdict]) -> list[Candidate]:
        """What to pull when the prior's choice does not work; `verdicts` are the others."""
        self.prior = None
        return to_measure(verdicts, self._bounds)[0]

    @property
    def _bounds(self) -> Bounds:
        settings = self._means.selection
        return Bounds(settings.candidates, settings.max_candidate_bytes, settings.metered)

    def _asked(self, now: float) -> bool:
        """Whether the hubs have answered, or need not be waited for any more."""
        if self._question is None:
            objective = self._means.selection.objective
            self._question = PriorQuestion(self._index_digest, self._means.hardware_class, objective)
        question = self._question
        if question.due(now):
            req_id = self._host.next_req_id()
            if self._host.request(question.request(req_id)):
                question.asked(req_id, now)
        if not question.is_over(now):
            return False
        self.prior = question.prior(self._host.wall_clock())
        return True

    def take(self, reply: Reply, now: float) -> bool:
        """Take a reply; False when it answers something else."""
        return self._question is not None and self._question.take(reply, now)

    def reconnected(self) -> None:
        """What was asked for before is lost."""
        if self._question is not None:
            self._question.reconnected()

    # What is measured --------------------------------------------------------------------------------

    def add(self, passed: Passed) -> None:
        """A candidate is on disk, and works."""
        self._passed[passed.candidate.digest] = passed

    def has(self, digest: str) -> bool:
        """Whether a candidate passed its self-test in this installation."""
        return digest in self._passed

    def begin(self, now: float) -> Passed | None:
        """Begin to measure; returns the choice where there is nothing to measure. Raises OSError."""
        first = next(iter(self._passed.values()))
        threads = self._means.threads
        if self.prior is not None and self.has(self.prior.digest):
            first = self._passed[self.prior.digest]
            self._keep_threads(first, self.prior.threads)
            who = f"{self.prior.devices} device(s) of the same hardware"
            self._host.note("prior_taken_over", f"{first.candidate.name} with {self.prior.threads} thread(s), as {who}")
            return first
        if len(self._passed) * len(threads) == 1:
            self._keep_threads(first, threads[0])
            return first
        if list(self._passed) == [self._active]:
            return first
        means, entrants = self._means, []
        for one in self._passed.values():
            slot = self._slots.path(one.candidate.digest)
            entrants += benchmark.entrants(one.candidate.digest, one.candidate.size_bytes, slot, one.spec, threads)
        asked = benchmark.asked(means.selection, means.profile, live=self._active is not None)
        start = benchmark.starter(means.runtime, means.worker)
        self._benchmark = Benchmark(entrants, asked, start, means.sensors(), now)
        return None

    def tick(self, now: float) -> Passed | None:
        """Go on measuring; the choice once it is made. Raises ChoiceError or OSError."""
        if self._benchmark is None or (decision := self._benchmark.tick(now)) is None:
            return None
        self._record(self._benchmark, decision)
        self.close()
        if decision.chosen is None:
            raise ChoiceError(f"no candidate may run here: {decision.reason}")
        passed = self._passed[decision.chosen.digest]
        self._keep_threads(passed, decision.chosen.threads)
        return passed

    def _keep_threads(self, passed: Passed, threads: int) -> None:
        slot = self._slots.path(passed.candidate.digest)
        # What an earlier benchmark left in the slot counts too.
        if (
            passed.candidate.digest != self._active
            and threads != slot_options.applied(slot, self._means.runtime).threads
        ):
            slot_options.record(slot, SlotOptions(threads=threads))

    def _record(self, ended: Benchmark, decision: Decision) -> None:
        """Keep what was decided and why, and send it."""
        means = self._means
        live = self._active is not None
        about = About(means.hardware_class, self._index_digest, means.selection.objective, live)
        record = benchmark_record.record_of(ended.contest, decision, about)
        try:
            benchmark_record.keep(means.folder, record)
        except OSError as error:
            log.warning("the decision is not kept: %s", error.strerror or error)
        self._host.note(DECISION_EVENT, record.encode().decode())

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [] if self._benchmark is None else self._benchmark.descriptors()

    def close(self) -> None:
        """End what measures."""
        if self._benchmark is not None:
            self._benchmark.close()
            self._benchmark = None
