"""From an accepted desired state to its outcome: journalled before it is begun, advanced by the loop, ended once.

How a variant gets to disk is `install`'s business, what comes after the switch `succession`'s, and which desired state
is begun `desired_states`'.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, DeviceState, State, Window
from edgefleet.protocol.signed import Action, Desired
from edgefleet_agent import lifecycle
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.journal import Entry
from edgefleet_agent.lifecycle import DEADLINES_S, INSTALLING, RISKY, UNINTERRUPTIBLE, Trigger
from edgefleet_agent.refusal import translated
from edgefleet_agent.slots import SlotDamagedError
from edgefleet_agent.state_folder import Installed
from edgefleet_agent.succession import JOURNAL_EVERY_S, Parts, Succession, committed_before, proven
from edgefleet_agent.switch import Switch

MAX_CUT_OFF = 3
"""So often may the agent be cut off, by a reboot or a kill, while a new variant runs."""

Make = Callable[[Desired, bool, str | None], Install]
"""(desired state, resumed after a restart, the one variant that it must be) → its installation."""

log = logging.getLogger("edgefleet.agent")


class Installer:
    """At most one installation, probation or rollback, and the journal of it."""

    def __init__(self, parts: Parts, make: Make) -> None:
        """Nothing is begun here; `restore` takes up what a restart cut off."""
        self.current: Install | None = None
        self._journal = parts.journal
        self._slots = parts.slots
        self._runner = parts.runner
        self._host = parts.host
        self._make = make
        self._succession = Succession(parts)
        self._switch: Switch | None = None
        self._waiting: Desired | None = None
        """Accepted while what was under way could not be interrupted."""
        self._journalled_at: float | None = None
        self._entered: tuple[State, float] = (State.IDLE, 0.0)
        self._untidy = False
        """A job was cancelled that was at work on the disk: what it leaves is to be removed."""

    def restore(self) -> None:
        """Take up what was cut off; what is cut off again and again while a new variant runs is given up."""
        entry = self._journal.entry
        if entry.active is not None:
            # A power cut between the link and the journal: what the journal says runs.
            self._slots.settle(entry.active.digest)
        self._untidy = entry.active is not None
        cut_off = entry.cut_off
        if entry.state in RISKY:
            cut_off += not entry.stopped
            self._journal.note(cut_off=cut_off, stopped=False)
        given_up = f"the agent was cut off {cut_off} times while the variant ran" if cut_off >= MAX_CUT_OFF else None
        if entry.state in INSTALLING and entry.desired is not None:
            self._journal.note(state=State.RESOLVING)
            self._take_up(entry)
            if given_up is not None:
                self.fail(given_up)
        else:
            self._succession.restore(given_up)

    def begin(self, desired: Desired) -> None:
        """Journal before acting; a newer generation replaces what is under way, or waits for its end."""
        entry = self._journal.entry
        if self._state in UNINTERRUPTIBLE:
            self._waiting = desired
            return
        state = lifecycle.after(entry.state, Trigger.ACCEPTED)
        changes = {"desired": desired, "deployment": desired.deployment, "state": state, "reason": None}
        begun = {"progress": None, "pulled_bytes": 0, "reused_bytes": 0, "bad_blocks": 0, "elapsed_s": 0.0}
        fresh = {"evidence": None, "probation_s": 0.0, "cut_off": 0, "restoring": False, "previous": None}
        try:
            self._journal.record(**changes, **begun, **fresh, **proven(entry), refusal=None)
        except StorageError as error:
            # Not accepted: what runs runs on, and the server sends it again.
            log.warning("generation %d is not begun: %s", desired.generation, error)
            return
        self._cut_short()
        if entry.state is State.PROBATION:
            self._succession.end_probation(entry)
        self._host.note("accepted", f"generation {desired.generation}: {desired.deployment.deployment_id}")
        self._start(desired)

    def advance(self, now: float, *, hold_downloads: bool) -> None:
        """One turn. `hold_downloads`: a newer decision is being verified, and the line is left to that."""
        if self.current is not None:
            self._install(self.current, now, hold_downloads=hold_downloads)
        else:
            self._tidy()
            if self._state in (State.PROBATION, State.ROLLING_BACK):
                self._succeed(now)
        if self._waiting is not None and self._state not in UNINTERRUPTIBLE:
            waiting, self._waiting = self._waiting, None
            self.begin(waiting)

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `advance` has something to do."""
        return self._succession.descriptors() + ([] if self.current is None else self.current.descriptors())

    def fail(self, reason: str) -> None:
        """End the installation, if there is one; what was committed before still runs."""
        if (install := self.current) is None:
            return
        entry = self._journal.entry
        if entry.restoring:
            reason = f"{entry.reason}; the variant before it is damaged, and pulling that again failed: {reason}"
        trigger = Trigger.FAILED_WITHOUT_PREVIOUS if entry.active is None else Trigger.FAILED_WITH_PREVIOUS
        self._end(install, lifecycle.after(install.state, trigger), reason)
        self._host.note("install_failed", reason)

    def slot_damaged(self, reason: str) -> None:
        """The variant that runs does not match its digests: it is gone back from, or the device has no model."""
        entry = self._journal.entry
        if entry.state is State.PROBATION:
            self._roll_back(Trigger.DEGRADED, f"its files are damaged: {reason}")
        elif entry.state in INSTALLING:
            self._journal.note(active=None, running=None)
        elif entry.state is not State.ROLLING_BACK:
            why = f"the committed variant is damaged: {reason}"
            self._journal.note(active=None, running=None, state=State.NO_MODEL, reason=why)

    def struck_out(self, digest: str, reason: str) -> None:
        """A variant's worker ended three times in a row: one in probation is gone back from, another started again."""
        entry = self._journal.entry
        if self._switch is not None and self._switch.installed.active.digest == digest:
            self.fail(f"its worker: {reason}")
        elif entry.state is State.PROBATION and entry.active is not None and entry.active.digest == digest:
            self._roll_back(Trigger.STRUCK_OUT, reason)

    def add_window(self, window: Window) -> None:
        """Take a telemetry window of the variant that runs."""
        self._succession.add_window(window)

    def close(self) -> None:
        """The agent ends: stop what runs. What was pulled stays on disk, and this was no crash."""
        self._cut_short()
        if self._journal.entry.state in RISKY:
            self._journal.note(stopped=True)

    def state(self) -> DeviceState:
        """Where this device is."""
        entry, install = self._journal.entry, self.current
        state = self._state
        watched = state in (State.PROBATION, State.ROLLING_BACK)
        return DeviceState(
            enrolment_id=entry.enrolment.enrolment_id,
            generation=entry.desired.generation if entry.desired else 0,
            state=state,
            reason=install.waits_for if install and install.waits_for else entry.reason,
            active=entry.active,
            previous=entry.previous.active if entry.previous and watched else None,
            evidence=entry.evidence,
            progress=install.progress if install else entry.progress,
            **_counters(install or entry),
        )

    # The way to the switch ---------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return self._journal.entry.state if self.current is None else self.current.state

    def _take_up(self, entry: Entry) -> None:
        """Start the installation that the journal speaks of."""
        if entry.desired is not None and not entry.restoring:
            self._start(entry.desired, resumed=True)
        elif (wanted := _desired_again(entry)) is not None and entry.previous is not None:
            self._start(wanted, resumed=True, only=entry.previous.active.digest)

    def _start(self, desired: Desired, *, resumed: bool = False, only: str | None = None) -> None:
        install = self._make(desired, resumed, only)
        for name, value in _counters(self._journal.entry).items():
            setattr(install, name, value)
        self.current = install

    def _install(self, install: Install, now: float, *, hold_downloads: bool) -> None:
        install.hold(held=hold_downloads)
        try:
            with translated(install.desired.deployment.deployment_id):
                install.tick(now)
                self._journal_progress(install, now)
                self._check_deadline(install, now)
                if install.state is State.ACTIVATING:
                    self._activate(install, now)
        except InstallError as error:
            self.fail(str(error))

    def _journal_progress(self, install: Install, now: float) -> None:
        """Each new state, and the time spent every few seconds."""
        entry = self._journal.entry
        # A loop that stood still, or a machine that slept, was not at work.
        since_s = min(now - (self._journalled_at or now), JOURNAL_EVERY_S * 2)
        self._journalled_at = self._journalled_at or now
        if install.state is entry.state and since_s < JOURNAL_EVERY_S:
            return
        self._journalled_at = now
        elapsed_s = entry.elapsed_s + (0.0 if install.waits_for else since_s)
        self._journal.record(state=install.state, elapsed_s=elapsed_s, **_counters(install))
        limit_s = install.desired.install_timeout_s
        if elapsed_s > limit_s and install.state is not State.ACTIVATING:
            raise InstallError(f"not finished within {limit_s:.0f} s of running time")

    def _check_deadline(self, install: Install, now: float) -> None:
        state = install.state
        if state is not self._entered[0] or install.waits_for:
            self._entered = (state, now)
        limit_s = DEADLINES_S.get(state)
        if limit_s is not None and state not in UNINTERRUPTIBLE and now - self._entered[1] > limit_s:
            raise InstallError(f"{state} was not finished within {limit_s:.0f} s")

    def _activate(self, install: Install, now: float) -> None:
        """Warm its worker, switch the slot, say so: after a crash in between the installation is taken up again."""
        if self._switch is None:
            limit_s = DEADLINES_S[State.ACTIVATING]
            self._switch = Switch(self._slots, self._runner, self._installed(install), now, limit_s)
        if not self._switch.tick(now):
            return
        installed, self._switch = self._switch.installed, None
        after, changes = installed.state, {"active": installed.active, "running": installed.running}
        if after is State.PROBATION:
            self._cut_short()
            self._succession.begin(installed, install.prior, progress=install.progress, **_counters(install))
        else:
            self._end(install, after, installed.reason, **changes, previous=None, restoring=False)
            self._host.note(after.value, installed.active.name)

    def _installed(self, install: Install) -> Installed:
        """What will stand in the slot, and in which state that leaves the device."""
        entry, wanted = self._journal.entry, install.desired.wanted
        if install.candidate is None or install.spec is None or wanted is None or entry.desired is None:
            raise InstallError("internal: nothing to activate")
        spec = install.spec
        active = ActiveVariant(
            digest=install.candidate.digest, index_digest=wanted.index_digest,
            name=spec.name, runtime=spec.runtime, precision=spec.precision,
        )  # fmt: skip
        trigger = Trigger.DONE
        if entry.restoring:
            trigger = Trigger.RESTORED
        elif entry.active is not None and entry.active.digest == active.digest:
            trigger = Trigger.PROVEN_BEFORE
        state = lifecycle.after(install.state, trigger)
        return Installed(
            enrolment=entry.enrolment, desired=entry.desired, active=active, running=wanted, state=state,
            reason=entry.reason if entry.restoring else None,
            previous=committed_before(entry) if state is State.PROBATION else None,
        )  # fmt: skip

    # After the switch --------------------------------------------------------------------------------

    def _succeed(self, now: float) -> None:
        try:
            over = self._succession.advance(now)
        except SlotDamagedError as error:
            self._pull_again(str(error))
            return
        self._untidy = self._untidy or over

    def _roll_back(self, trigger: Trigger, reason: str) -> None:
        self._succession.roll_back(trigger, reason)
        self._untidy = True

    def _pull_again(self, damage: str) -> None:
        """The variant to go back to is damaged: it is pulled again, once. Meanwhile nothing runs."""
        self._host.note("slot_damaged", damage)
        state = lifecycle.after(self._journal.entry.state, Trigger.PREVIOUS_DAMAGED)
        begun = {"progress": None, "elapsed_s": 0.0, "cut_off": 0}
        self._journal.note(state=state, active=None, running=None, restoring=True, **begun)
        self._take_up(self._journal.entry)
        if self.current is None:
            why = f"{self._journal.entry.reason}; the variant before it is damaged: {damage}"
            self._journal.note(state=State.NO_MODEL, reason=why, previous=None, restoring=False)

    # The end -----------------------------------------------------------------------------------------

    def _cut_short(self) -> None:
        """Stop what is under way."""
        if self.current is not None:
            self.current.close()
            self.current = None
        if self._switch is not None:
            self._switch.cancel()
            self._switch = None
        self._succession.close()

    def _end(self, install: Install, state: State, reason: str | None, **changes: object) -> None:
        """Give the disk back, and remember the outcome even when the disk refuses to: it is written later."""
        self._cut_short()
        # A cancelled job may still be at work, and leave more than is found now.
        busy = self._slots.turn.locked()
        if "active" not in changes:
            # First: what is given back may be what the journal needs.
            self._collect()
            changes |= {"previous": None, "restoring": False}
        self._journal.note(state=state, reason=reason, progress=install.progress, **_counters(install), **changes)
        # Afterwards: at no power cut may the journal name a slot that is gone.
        self._untidy = "active" in changes or busy
        self._tidy()

    def _tidy(self) -> None:
        if self._untidy and self._journal.is_written and not self._slots.turn.locked():
            self._untidy = False
            self._collect()

    def _collect(self) -> None:
        entry = self._journal.entry
        keep = None if entry.active is None else entry.active.digest
        previous = None if entry.previous is None else entry.previous.active.digest
        try:
            self._slots.collect(keep, previous=previous)
        except OSError as error:
            log.warning("what is no longer needed stays on the disk: %s", error.strerror or error)


def _desired_again(entry: Entry) -> Desired | None:
    """A desired state for what was committed before: its digests were verified when it was accepted."""
    if entry.desired is None or entry.previous is None or entry.previous.running is None:
        return None
    deployment = entry.desired.deployment.model_copy(update={"target": entry.previous.running})
    return entry.desired.model_copy(update={"deployment": deployment, "action": Action.INSTALL})


def _counters(source: object) -> dict[str, int]:
    """What an installation has counted, as the journal and the state message name it."""
    return {name: getattr(source, name, 0) for name in ("pulled_bytes", "reused_bytes", "bad_blocks")}
