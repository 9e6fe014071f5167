"""A benchmark under way: candidates are measured by turns in child processes, and the rules decide.

Driven by `tick`. It neither knows where the candidates came from nor what follows from the decision; a runtime that
crashes or hangs costs only its candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.decisions import Objective
from edgefleet_agent import footprint, supervise
from edgefleet_agent.benchmark_decision import Decision, Limits
from edgefleet_agent.benchmark_measures import KEPT_RUNS, Candidate, Drawn, Ran
from edgefleet_agent.benchmark_rules import Contest, Lengths, Turn
from edgefleet_agent.power.meter import Meter
from edgefleet_agent.settings import RuntimeSettings, SelectionSettings, WorkerSettings
from edgefleet_agent.thermal import Thermal
from edgefleet_device_profiles.profile import Budget, Profile

TURN_LIMIT_S = 300.0
LIMIT_S = 1200.0
"""After this what was measured so far decides."""
ENERGY_PERIOD_S = 0.1
KEPT_FREE_BYTES = 256 * 2**20
"""Workers stay between their turns while so much memory is free beside them."""


class Child(Protocol):
    """A worker process in the mode `benchmark`; `supervise.Worker` is one."""

    @property
    def pid(self) -> int: ...  # noqa: D102
    def fileno(self) -> int: ...  # noqa: D102
    def send(self, message: dict[str, Any]) -> None: ...  # noqa: D102
    def messages(self) -> tuple[list[dict[str, Any]], bool]: ...  # noqa: D102
    def exit_reason(self) -> str: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Entrant:
    """A candidate, and the verified slot that it is in."""

    candidate: Candidate
    slot: Path
    spec: VariantSpec


Start = Callable[[Entrant], Child]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be found out."""

    objective: Objective = Objective.LATENCY
    limits: Limits = field(default_factory=Limits)
    lengths: Lengths = field(default_factory=Lengths)
    limit_s: float = LIMIT_S
    live: bool = False
    """The committed variant goes on inferring."""


@dataclass(frozen=True, slots=True)
class Sensors:
    """The benchmark's own: what it reads is lost to nobody."""

    meter: Meter
    thermal: Thermal
    available_bytes: Callable[[], int | None] = footprint.available_bytes


class Benchmark:
    """One benchmark; call `close` when it is not to go on."""

    def __init__(self, entrants: Sequence[Entrant], asked: Asked, start: Start, sensors: Sensors, now: float) -> None:
        """Nothing is started before `tick`."""
        self.contest = Contest((one.candidate for one in entrants), asked.objective, asked.limits, asked.lengths)
        self._entrants = entrants
        self._asked = asked
        self._start = start
        self._sensors = sensors
        self._began_at = now
        self._children: dict[int, Child] = {}
        self._turn: Turn | None = None
        self._turn_began_at = now
        if asked.objective is Objective.ENERGY:
            sensors.meter.period_s = min(sensors.meter.period_s, ENERGY_PERIOD_S)

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [child.fileno() for child in self._children.values()]

    def tick(self, now: float) -> Decision | None:
        """Go on; the decision once all is measured, or time is up."""
        self._sensors.meter.sample(now)
        self._sensors.thermal.sample(now)
        if self._turn is not None:
            self._listen(self._turn, now)
        if self._turn is None:
            self._turn = None if self._is_late(now) else self.contest.turn()
            if self._turn is None:
                self.close()
                return self.contest.decision()
            self._begin(self._turn, now)
        elif self._is_late(now) and any(one.turns for one in self.contest.measured):
            self.close()
            return self.contest.decision()
        return None

    def close(self) -> None:
        """End every child."""
        for child in self._children.values():
            child.kill()
        self._children.clear()
        self._turn = None

    def _is_late(self, now: float) -> bool:
        return now - self._began_at > self._asked.limit_s

    def _begin(self, turn: Turn, now: float) -> None:
        """Have a candidate run, with a child that is there, or one that says when it is ready."""
        self._turn_began_at = now
        try:
            if turn.place not in self._children:
                self._children[turn.place] = self._start(self._entrants[turn.place])
                return
        except OSError as error:
            self._fail(turn, f"no worker process could be started ({error.strerror or error})")
            return
        self._run(turn)

    def _run(self, turn: Turn) -> None:
        self._sensors.meter.energy()
        self._sensors.thermal.read()
        # One more: the first after a pause is slower than any that follows.
        asked = {"kind": "run", "runs": turn.runs + 1, "seconds": turn.seconds, "most": KEPT_RUNS}
        self._children[turn.place].send(asked)

    def _listen(self, turn: Turn, now: float) -> None:
        child = self._children[turn.place]
        said, ended = child.messages()
        for message in said:
            if message["kind"] == "ready":
                self._run(turn)
            elif message["kind"] == "ran":
                self._take(turn, child, message)
            elif message["kind"] == "failed":
                self._fail(turn, message["reason"])
                return
        if self._turn is None:
            return
        if ended:
            self._fail(turn, child.exit_reason())
        elif now - self._turn_began_at > TURN_LIMIT_S:
            self._fail(turn, f"nothing came of {turn.runs} inferences within {TURN_LIMIT_S:.0f} s")

    def _take(self, turn: Turn, child: Child, message: dict[str, Any]) -> None:
        memory_bytes = footprint.pss_bytes(child.pid)
        throttled = self._sensors.thermal.read().throttled
        told = message["end_to_end_s"][1:], message["seconds"][1:]
        ran = Ran(message["runs"] - 1, *told, self._drawn(), throttled, memory_bytes)
        self.contest.take(ran)
        self._turn = None
        available = self._sensors.available_bytes()
        if available is None or available < KEPT_FREE_BYTES:
            self._children.pop(turn.place).kill()

    def _drawn(self) -> Drawn | None:
        """What the turn took; None where it was estimated, or something else of ours ran as well."""
        energy = self._sensors.meter.energy()
        if energy.source != "measured" or self._asked.live:
            return None
        return Drawn(energy.joules, energy.duration_s, energy.samples)

    def _fail(self, turn: Turn, reason: str) -> None:
        self.contest.fail(turn.place, reason)
        self._turn = None
        if (child := self._children.pop(turn.place, None)) is not None:
            child.kill()


def thread_choices(asked: Sequence[int], cores: int) -> tuple[int, ...]:
    """Numbers of threads to measure: those asked for, else one, half of the cores, and all of them."""
    return tuple(sorted(set(asked) or {1, max(1, cores // 2), cores}))


def entrants(digest: str, size_bytes: int, slot: Path, spec: VariantSpec, threads: Sequence[int]) -> list[Entrant]:
    """One variant in a verified slot, in as many settings as there are numbers of threads."""
    return [
        Entrant(Candidate(digest, spec.name, spec.runtime.value, spec.precision.value, size_bytes, number), slot, spec)
        for number in threads
    ]


def starter(runtime: RuntimeSettings, worker: WorkerSettings) -> Start:
    """Starts real workers, with the settings of the agent but for the threads."""
    return lambda one: supervise.benchmark(
        one.slot, one.spec, runtime.model_copy(update={"threads": one.candidate.threads}), worker
    )


def limits_of(profile: Profile) -> Limits:
    """The device's budget in the units of the rules."""
    budget: Budget = profile.budget
    return Limits(
        latency_s=None if budget.latency_ms is None else budget.latency_ms / 1e3,
        memory_bytes=None if budget.memory_mib is None else int(budget.memory_mib * 2**20),
        size_bytes=None if budget.size_mib is None else int(budget.size_mib * 2**20),
        energy_j=None if budget.energy_mj is None else budget.energy_mj / 1e3,
    )


def asked(settings: SelectionSettings, profile: Profile, *, live: bool) -> Asked:
    """What the settings and the device's profile ask for."""
    screening, final = Lengths().screening, Lengths().final
    lengths = Lengths(
        screening=replace(screening, seconds=min(screening.seconds, settings.final_s)),
        final=replace(final, seconds=settings.final_s),
        energy_final=replace(Lengths().energy_final, seconds=settings.final_s * 2),
    )
    return Asked(settings.objective, limits_of(profile), lengths, settings.limit_s, live)
