"""From an accepted desired state to its outcome: journalled before it is begun, advanced by the loop, ended once.

How a variant gets to disk is `install`'s business, what comes after the switch `succession`'s, and which desired state
is begun `desired_states`'.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgefleet.errors import StorageError
from edgefleet.protocol.messages import DeviceState, State, Window
from edgefleet.protocol.signed import Desired
from edgefleet_agent import lifecycle
from edgefleet_agent.device_state import counters, told
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.journal import Committed, Entry
from edgefleet_agent.leftovers import Leftovers
from edgefleet_agent.lifecycle import DEADLINES_S, INSTALLING, RISKY, UNINTERRUPTIBLE, Trigger
from edgefleet_agent.refusal import translated
from edgefleet_agent.restoration import desired_again, why_no_model
from edgefleet_agent.slots import SlotDamagedError
from edgefleet_agent.succession import JOURNAL_EVERY_S, Parts, Succession, committed_before, proven, successor
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
        self._leftovers = Leftovers(parts.journal, parts.slots)

    def restore(self) -> None:
        """Take up what was cut off; what is cut off again and again while a new variant runs is given up."""
        entry = self._journal.entry
        if entry.active is not None:
            # A power cut between the link and the journal: what the journal says runs.
            self._slots.settle(entry.active.digest)
        self._leftovers.expect(expected=entry.active is not None)
        cut_off = entry.cut_off
        if entry.state in RISKY:
            cut_off += not entry.stopped
            self._journal.note(cut_off=cut_off, stopped=False)
        given_up = f"the agent was cut off {cut_off} times while the variant ran" if cut_off >= MAX_CUT_OFF else None
        if entry.state in INSTALLING and entry.desired is not None:
            self._journal.note(state=State.RESOLVING)
            self._succession.restore(None)
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
        # What was damaged, and nothing runs in its place: it is pulled again should this one fail.
        lost = entry.previous if entry.active is None else None
        fresh = {"evidence": None, "probation_s": 0.0, "cut_off": 0, "restored_to": None, "previous": lost}
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
            self._leftovers.tidy()
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
        if entry.restored_to is not None:
            reason = why_no_model(entry, f", and pulling that again failed: {reason}")
        elif entry.active is None and entry.previous is not None:
            self._cut_short()
            self._journal.note(state=install.state, reason=reason)
            self._host.note("install_failed", reason)
            self._pull_again("found while another was installed", entry.previous, State.FAILED)
            return
        trigger = Trigger.FAILED_WITHOUT_PREVIOUS if entry.active is None else Trigger.FAILED_WITH_PREVIOUS
        self._end(install, lifecycle.after(install.state, trigger), reason)
        self._host.note("install_failed", reason)

    def slot_damaged(self, reason: str) -> None:
        """The variant that runs does not match its digests: it is gone back from, or pulled again."""
        entry = self._journal.entry
        if entry.state is State.PROBATION:
            self._roll_back(Trigger.DEGRADED, f"its files are damaged: {reason}")
        elif (previous := committed_before(entry)) is None or entry.state is State.ROLLING_BACK:
            return
        elif entry.state in INSTALLING:
            self._journal.note(active=None, running=None, previous=previous)
        else:
            self._pull_again(reason, previous, entry.state)

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
        return told(self._journal.entry, self.current, self._state)

    # The way to the switch ---------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return self._journal.entry.state if self.current is None else self.current.state

    def _take_up(self, entry: Entry) -> None:
        """Start the installation that the journal speaks of."""
        if entry.desired is not None and entry.restored_to is None:
            self._start(entry.desired, resumed=True)
        elif (wanted := desired_again(entry)) is not None and entry.previous is not None:
            self._start(wanted, resumed=True, only=entry.previous.active.digest)

    def _start(self, desired: Desired, *, resumed: bool = False, only: str | None = None) -> None:
        install = self._make(desired, resumed, only)
        for name, value in counters(self._journal.entry).items():
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
        self._journal.record(state=install.state, elapsed_s=elapsed_s, **counters(install))
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
            installed = successor(install, self._journal.entry)
            self._switch = Switch(self._slots, self._runner, installed, now, limit_s)
        if not self._switch.tick(now):
            return
        installed, self._switch = self._switch.installed, None
        after, changes = installed.state, {"active": installed.active, "running": installed.running}
        said = after.value if self._journal.entry.restored_to is None else "restored"
        if after is State.PROBATION:
            self._cut_short()
            self._succession.begin(installed, install.prior, progress=install.progress, **counters(install))
        else:
            self._end(install, after, installed.reason, **changes, previous=None, restored_to=None)
            self._host.note(said, installed.active.name)

    # After the switch --------------------------------------------------------------------------------

    def _succeed(self, now: float) -> None:
        try:
            over = self._succession.advance(now)
        except SlotDamagedError as error:
            if (previous := self._journal.entry.previous) is not None:
                self._host.note("slot_damaged", str(error))
                self._pull_again(str(error), previous, State.ROLLED_BACK)
            return
        if over:
            self._leftovers.expect()

    def _roll_back(self, trigger: Trigger, reason: str) -> None:
        self._succession.roll_back(trigger, reason)
        self._leftovers.expect()

    def _pull_again(self, damage: str, previous: Committed, restored_to: State) -> None:
        """What was committed is damaged: it is pulled again, once. Meanwhile nothing runs."""
        state = lifecycle.after(self._journal.entry.state, Trigger.DAMAGED)
        begun = {"progress": None, "elapsed_s": 0.0, "cut_off": 0}
        lost = {"active": None, "running": None, "previous": previous, "restored_to": restored_to}
        self._journal.note(state=state, **lost, **begun)
        self._take_up(self._journal.entry)
        if self.current is None:
            why = why_no_model(self._journal.entry, f": {damage}")
            self._journal.note(state=State.NO_MODEL, reason=why, previous=None, restored_to=None)

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
            self._leftovers.remove()
            changes |= {"previous": None, "restored_to": None}
        self._journal.note(state=state, reason=reason, progress=install.progress, **counters(install), **changes)
        # Afterwards: at no power cut may the journal name a slot that is gone.
        self._leftovers.expect(expected="active" in changes or busy)
        self._leftovers.tidy()
