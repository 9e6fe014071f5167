"""What a probation is judged by: windows of the committed variant and of the one on probation.

The committed one's are kept on disk from the switch on, so that a restart does not lose what the newer is held
against. What the windows mean is `probation`'s business.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet import durable
from edgefleet.protocol.decisions import Prior
from edgefleet.protocol.measurements import Statistics
from edgefleet.protocol.messages import Window
from edgefleet_agent.benchmark_decision import Limits
from edgefleet_agent.probation import History, Verdict, judge
from edgefleet_agent.probation_gates import Expected, Observed, Rules
from edgefleet_agent.settings import ProbationSettings

FILE_NAME = "history.json"
KEPT_WINDOWS = 64
"""Of the committed variant; of the default length: ten minutes."""
MOST_WINDOWS = 1024
"""Of the one on probation: a verdict rests on the first of them, and memory has an end."""

log = logging.getLogger("edgefleet.agent")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    windows: tuple[Window, ...]
    prior: Prior | None = None


class Watch:
    """The windows of one agent's variants, and what they say."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        """Nothing is read before `restore`."""
        self._path = folder / FILE_NAME
        self._rules = rules
        self._before: deque[Window] = deque(maxlen=KEPT_WINDOWS)
        self._during: list[Window] = []
        self._prior: Prior | None = None
        self._fresh = False
        """Whether a window came since the last verdict."""
        self._answers: list[tuple[int, int]] = []
        self._pending = (0, 0)
        """(answers as the committed variant's, all that were compared) in each window of `_during`, and since."""

    def compared(self, agreed: int, compared: int) -> None:
        """Take how many live inputs the committed variant answered too, and how often with the same."""
        self._pending = self._pending[0] + agreed, self._pending[1] + compared

    def add(self, window: Window, *, on_probation: bool) -> None:
        """Take a window of the variant that runs; one without inferences says nothing."""
        if not window.count + window.errors:
            return
        if not on_probation:
            self._before.append(window)
        elif len(self._during) < MOST_WINDOWS:
            self._during.append(window)
            self._answers.append(self._pending)
            self._pending, self._fresh = (0, 0), True

    @property
    def prior(self) -> Prior | None:
        """What chose the variant on probation, where that was no benchmark of its own."""
        return self._prior

    def begin(self, prior: Prior | None = None, *, first: bool = False) -> None:
        """A probation begins: what was seen so far is what it is held against; nothing, on a `first` install.

        A disk that refuses costs only that.
        """
        if first:
            self._before.clear()
        self._during, self._fresh, self._prior = [], False, prior
        self._answers, self._pending = [], (0, 0)
        small = tuple(window.model_copy(update={"statistics": Statistics()}) for window in self._before)
        try:
            durable.write_file(self._path, _File(windows=small, prior=prior).model_dump_json().encode())
        except OSError as error:
            log.warning("the history of the committed variant is not kept: %s", error.strerror or error)

    def restore(self) -> None:
        """A probation goes on after a restart."""
        try:
            found = _File.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            log.warning("the history of the committed variant is lost: %s", str(error).splitlines()[0])
        else:
            self._before.extend(found.windows)
            self._prior = found.prior

    def judge(self, spent_s: float) -> Verdict | None:
        """The verdict after `spent_s` of running time in probation; None while there is nothing new to judge."""
        if not self._fresh and spent_s < self._rules.deadline_s:
            return None
        self._fresh = False
        expected = None if self._prior is None else Expected(self._prior.inference_p90_s)
        during = tuple(
            replace(observed(window), agreed=agreed, compared=compared)
            for window, (agreed, compared) in zip(self._during, self._answers, strict=True)
        )
        history = History(tuple(map(observed, self._before)), during, expected)
        return judge(history, 0.0, spent_s, self._rules)

    def ended(self, *, committed: bool) -> None:
        """The probation is over, and there is nothing left to be held against."""
        if committed:
            self._before = deque(self._during, maxlen=KEPT_WINDOWS)
        self._during, self._fresh, self._prior = [], False, None
        self._answers, self._pending = [], (0, 0)
        self.forget()

    def forget(self) -> None:
        """Remove what a restart would have gone on with."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s stays: %s", self._path, error.strerror or error)


def rules_of(settings: ProbationSettings, budget: Limits) -> Rules:
    """What a device's settings and its profile's budget ask of a variant on probation."""
    return Rules(
        windows=settings.windows,
        inferences=settings.min_inferences,
        deadline_s=settings.deadline_s,
        quantile=settings.quantile,
        latency_tolerance=settings.latency_tolerance,
        energy_tolerance=settings.energy_tolerance,
        errors_tolerance=settings.errors_tolerance,
        throttled_tolerance=settings.throttled_tolerance,
        least_agreement=settings.least_agreement,
        first_errors=settings.first_errors,
        budget_latency_s=budget.latency_s,
        budget_memory_bytes=budget.memory_bytes,
        budget_energy_j=budget.energy_j,
    )


def observed(window: Window) -> Observed:
    """A window as the gates see it: its energy in joules, its memory the worker's and the agent's."""
    energy = window.energy
    return Observed(
        duration_s=window.duration_s,
        count=window.count,
        errors=window.errors,
        latency_s=window.latency.inference.sketch(),
        joules=energy.joules,
        energy_source=energy.source,
        energy_scope=energy.scope,
        throttled=window.thermal.throttled,
        memory_bytes=window.memory.worker_bytes,
    )
