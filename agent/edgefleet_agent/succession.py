"""From a switch to its outcome: the probation of the new variant, and the way back to the one before.

Every step is journalled before it is made. How a variant gets here is `installer`'s business; what a probation says
is `watch`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edgefleet.prior import contradiction
from edgefleet.protocol.decisions import CONTRADICTION_EVENT, Prior
from edgefleet.protocol.messages import ActiveVariant, Evidence, State, Window
from edgefleet_agent import lifecycle
from edgefleet_agent.install import Install
from edgefleet_agent.journal import Committed, Entry, Journal
from edgefleet_agent.lifecycle import DEADLINES_S, Trigger
from edgefleet_agent.probation import Outcome, Verdict
from edgefleet_agent.refusal import InstallError
from edgefleet_agent.restoration import RESTORED_BY
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.state_folder import Installed, record_installed
from edgefleet_agent.switch import Runner, WayBack
from edgefleet_agent.transfer import Host
from edgefleet_agent.watch import Watch

JOURNAL_EVERY_S = 5.0

log = logging.getLogger("edgefleet.agent")


@dataclass(frozen=True, slots=True)
class Parts:
    """What an installer works with."""

    journal: Journal
    slots: Slots
    runner: Runner
    watch: Watch
    host: Host


class Succession:
    """At most one probation or rollback."""

    def __init__(self, parts: Parts) -> None:
        """Nothing is begun here; `restore` takes up what a restart cut off."""
        self._journal = parts.journal
        self._slots = parts.slots
        self._runner = parts.runner
        self._watch = parts.watch
        self._host = parts.host
        self._way_back: WayBack | None = None
        self._journalled_at: float | None = None

    def restore(self, given_up: str | None) -> None:
        """Take up what was cut off; `given_up` is why the variant in probation gets no further chance."""
        entry = self._journal.entry
        if entry.state is State.ROLLING_BACK:
            self._go_back()
        elif entry.state is State.PROBATION:
            self._watch.restore()
            if given_up is not None:
                self.roll_back(Trigger.STRUCK_OUT, given_up)
        else:
            # A power cut after the last word on a probation, and before its history was removed.
            self._watch.forget()

    def begin(self, installed: Installed, prior: Prior | None, **counted: object) -> None:
        """A variant was switched to: it runs from now on, and is watched. `prior` chose it, unless it was measured."""
        self._watch.begin(prior, first=installed.previous is None)
        self._journal.note(
            state=State.PROBATION, active=installed.active, running=installed.running, previous=installed.previous,
            probation_s=0.0, **counted,
        )  # fmt: skip
        self._journalled_at = None
        self._host.note("activated", installed.active.name)

    def advance(self, now: float) -> bool:
        """One turn; True once it is over. Raises SlotDamagedError when the variant to go back to is damaged."""
        if self._way_back is not None:
            return self._advance_way_back(self._way_back, now)
        return self._judge(now)

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `advance` has something to do."""
        return [] if self._way_back is None else self._way_back.descriptors()

    def add_window(self, window: Window) -> None:
        """Take a telemetry window of the variant that runs."""
        entry = self._journal.entry
        if entry.active is not None and entry.active.digest == window.digest:
            self._watch.add(window, on_probation=entry.state is State.PROBATION)

    def close(self) -> None:
        """Stop what is under way."""
        if self._way_back is not None:
            self._way_back.cancel()
            self._way_back = None

    def _judge(self, now: float) -> bool:
        """Judge what came in; the time spent is journalled every few seconds."""
        # A loop that stood still, or a machine that slept, watched nothing.
        since_s = min(now - (self._journalled_at or now), JOURNAL_EVERY_S * 2)
        self._journalled_at = self._journalled_at or now
        spent_s = self._journal.entry.probation_s + since_s
        if since_s >= JOURNAL_EVERY_S:
            self._journalled_at = now
            self._journal.note(probation_s=spent_s)
        verdict = self._watch.judge(spent_s)
        if verdict is None or verdict.outcome is Outcome.WAIT:
            return False
        if verdict.contradicts_prior is not None and self._watch.prior is not None:
            self._host.note(CONTRADICTION_EVENT, contradiction(self._watch.prior, verdict.contradicts_prior))
        if verdict.outcome is Outcome.FAIL:
            self.roll_back(Trigger.DEGRADED, verdict.reason)
            return self._way_back is None
        self._commit(verdict)
        return True

    def _commit(self, verdict: Verdict) -> None:
        evidence = Evidence(verdict.evidence)
        trigger = Trigger.DONE if evidence is Evidence.SUFFICIENT else Trigger.DEADLINE
        entry = self._journal.entry
        self._journal.note(state=lifecycle.after(entry.state, trigger), evidence=evidence, previous=None, reason=None)
        self.end_probation(entry)
        if entry.active is not None:
            self._host.note("committed", f"{entry.active.name}, evidence {evidence}: {verdict.reason}")

    def end_probation(self, entry: Entry) -> None:
        """It is committed, or a newer generation came; `entry` is what was journalled before."""
        active = self._journal.entry.active
        self._watch.ended(committed=active is not None and active == entry.active)
        if active is not None and entry.desired is not None:
            self._remember(Installed(
                enrolment=entry.enrolment, desired=entry.desired, active=active, running=self._journal.entry.running
            ))  # fmt: skip
            self._slots.settle(active.digest)

    def _remember(self, installed: Installed) -> None:
        """Write it into the slot, for the day on which the journal cannot be read; the journal has it already."""
        try:
            record_installed(self._slots, installed)
        except OSError as error:
            log.warning("the slot does not say that it is committed: %s", error.strerror or error)

    # Back --------------------------------------------------------------------------------------------

    def roll_back(self, trigger: Trigger, reason: str) -> None:
        """The variant in probation is no good: the one before comes back."""
        state = lifecycle.after(self._journal.entry.state, trigger)
        self._journal.note(state=state, reason=reason)
        self._host.note("rolling_back", reason)
        self._go_back()

    def _go_back(self) -> None:
        """Begin the way back; a first install has none."""
        entry = self._journal.entry
        if entry.previous is None or entry.desired is None:
            state = lifecycle.after(entry.state, Trigger.FAILED_WITHOUT_PREVIOUS)
            self._journal.note(state=state, active=None, running=None)
            self._watch.ended(committed=False)
            return
        installed = Installed(
            enrolment=entry.enrolment, desired=entry.desired, active=entry.previous.active,
            running=entry.previous.running, state=State.ROLLED_BACK, reason=entry.reason,
        )  # fmt: skip
        self._way_back = WayBack(self._slots, self._runner, installed, DEADLINES_S[State.ROLLING_BACK])

    def _advance_way_back(self, way_back: WayBack, now: float) -> bool:
        try:
            if not way_back.tick(now):
                return False
        except SlotDamagedError:
            self._way_back = None
            self._watch.ended(committed=False)
            raise
        self._way_back = None
        installed = way_back.installed
        state = lifecycle.after(self._journal.entry.state, Trigger.DONE)
        self._journal.note(state=state, active=installed.active, running=installed.running, previous=None)
        self._watch.ended(committed=False)
        self._host.note("rolled_back", f"to {installed.active.name}: {installed.reason}")
        return True


def successor(install: Install, entry: Entry) -> Installed:
    """What will stand in the slot of the variant that is switched to, and in which state that leaves the device."""
    wanted = install.desired.wanted
    if install.candidate is None or install.spec is None or wanted is None or entry.desired is None:
        raise InstallError("internal: nothing to activate")
    spec = install.spec
    active = ActiveVariant(
        digest=install.candidate.digest, index_digest=wanted.index_digest,
        name=spec.name, runtime=spec.runtime, precision=spec.precision,
    )  # fmt: skip
    trigger = Trigger.DONE
    if entry.restored_to is not None:
        trigger = RESTORED_BY[entry.restored_to]
    elif entry.active is not None and entry.active.digest == active.digest:
        trigger = Trigger.PROVEN_BEFORE
    state = lifecycle.after(install.state, trigger)
    return Installed(
        enrolment=entry.enrolment, desired=entry.desired, active=active, running=wanted, state=state,
        reason=None if entry.restored_to is None else entry.reason,
        previous=committed_before(entry) if state is State.PROBATION else None,
    )  # fmt: skip


def committed_before(entry: Entry) -> Committed | None:
    """What a probation that begins now is gone back from."""
    return None if entry.active is None else Committed(active=entry.active, running=entry.running)


def proven(entry: Entry) -> dict[str, object]:
    """What runs from now on when a newer generation comes: never one in probation, if there is another.

    A first install has no other; no gate of it has failed, so it runs on as at its deadline.
    """
    if entry.state is not State.PROBATION or entry.previous is None:
        return {}
    return {"active": entry.previous.active, "running": entry.previous.running}
