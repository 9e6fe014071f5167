"""The installation under way: journalled before it is begun, advanced by the loop, and ended with an outcome.

How a variant gets to disk is `install`'s business; which desired state is begun is `desired_states`'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, DeviceState, State
from edgefleet.protocol.signed import Desired
from edgefleet_agent import lifecycle
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.journal import Journal
from edgefleet_agent.lifecycle import IN_PROGRESS, Trigger
from edgefleet_agent.refusal import translated
from edgefleet_agent.slots import Slots
from edgefleet_agent.state_folder import Installed, record_installed
from edgefleet_agent.transfer import Host

JOURNAL_EVERY_S = 5.0

Make = Callable[[Desired, bool], Install]
"""(desired state, resumed after a restart) → its installation."""

log = logging.getLogger("edgefleet.agent")


class Installer:
    """At most one installation, and the journal of it."""

    def __init__(self, journal: Journal, slots: Slots, make: Make, host: Host) -> None:
        """Nothing is begun here; `restore` takes up what a restart cut off."""
        self.current: Install | None = None
        self._journal = journal
        self._slots = slots
        self._make = make
        self._host = host
        self._journalled_at = time.monotonic()
        self._untidy = False
        """A job was cancelled that was at work on the disk: what it leaves is to be removed."""

    def restore(self) -> None:
        """Take up an installation that was cut off."""
        entry = self._journal.entry
        if entry.state in IN_PROGRESS and entry.desired is not None:
            self._journal.note(state=State.RESOLVING)
            self._start(entry.desired, resumed=True)
        # A power cut between the journal and the removal of what it no longer names.
        self._untidy = entry.active is not None

    def begin(self, desired: Desired) -> None:
        """Journal before acting; a newer generation replaces an installation that is under way."""
        state = lifecycle.after(self._journal.entry.state, Trigger.ACCEPTED)
        changes = {"desired": desired, "deployment": desired.deployment, "state": state, "reason": None}
        begun = {"progress": None, "pulled_bytes": 0, "reused_bytes": 0, "bad_blocks": 0, "elapsed_s": 0.0}
        try:
            self._journal.record(**changes, **begun, refusal=None)
        except StorageError as error:
            # Not accepted: what runs runs on, and the server sends it again.
            log.warning("generation %d is not begun: %s", desired.generation, error)
            return
        self.close()
        self._host.note("accepted", f"generation {desired.generation}: {desired.deployment.deployment_id}")
        self._start(desired, resumed=False)

    def advance(self, now: float, *, hold_downloads: bool) -> None:
        """One turn. `hold_downloads`: a newer decision is being verified, and the line is left to that."""
        install = self.current
        if install is None:
            self._tidy()
            return
        install.hold(held=hold_downloads)
        try:
            with translated(install.desired.deployment.deployment_id):
                install.tick(now)
                self._journal_progress(install, now)
                if install.state is State.ACTIVATING:
                    self._activate(install)
        except InstallError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """End the installation, if there is one; what was committed before still runs."""
        if (install := self.current) is None:
            return
        previous = self._journal.entry.active is not None
        trigger = Trigger.FAILED_WITH_PREVIOUS if previous else Trigger.FAILED_WITHOUT_PREVIOUS
        self._end(install, lifecycle.after(install.state, trigger), reason)
        self._host.note("install_failed", reason)

    def slot_damaged(self, reason: str) -> None:
        """The committed variant cannot run: without it the device has no model, and says so."""
        if self._journal.entry.state in IN_PROGRESS:
            self._journal.note(active=None, running=None)
        else:
            why = f"the committed variant is damaged: {reason}"
            self._journal.note(active=None, running=None, state=State.NO_MODEL, reason=why)

    def close(self) -> None:
        """Stop what runs; what was pulled stays on disk."""
        if self.current is not None:
            self.current.close()
            self.current = None

    def state(self) -> DeviceState:
        """Where this device is."""
        entry, install = self._journal.entry, self.current
        return DeviceState(
            enrolment_id=entry.enrolment.enrolment_id,
            generation=entry.desired.generation if entry.desired else 0,
            state=install.state if install else entry.state,
            reason=entry.reason,
            active=entry.active,
            progress=install.progress if install else entry.progress,
            **_counters(install or entry),
        )

    def _start(self, desired: Desired, *, resumed: bool) -> None:
        install = self._make(desired, resumed)
        for name, value in _counters(self._journal.entry).items():
            setattr(install, name, value)
        self.current = install

    def _journal_progress(self, install: Install, now: float) -> None:
        """Each new state, and the time spent every few seconds."""
        entry = self._journal.entry
        if install.state is entry.state and now - self._journalled_at < JOURNAL_EVERY_S:
            return
        elapsed_s = entry.elapsed_s + min(now - self._journalled_at, JOURNAL_EVERY_S * 2)
        self._journalled_at = now
        self._journal.record(state=install.state, elapsed_s=elapsed_s, **_counters(install))
        limit_s = install.desired.install_timeout_s
        if elapsed_s > limit_s and install.state is not State.ACTIVATING:
            raise InstallError(f"not finished within {limit_s:.0f} s of running time")

    def _activate(self, install: Install) -> None:
        """Switch the slot, then say so: after a crash in between the installation is taken up again."""
        wanted = install.desired.wanted
        if install.candidate is None or install.spec is None or wanted is None:
            raise InstallError("internal: nothing to activate")
        active = ActiveVariant(
            digest=install.candidate.digest,
            index_digest=wanted.index_digest,
            name=install.spec.name,
            runtime=install.spec.runtime,
            precision=install.spec.precision,
        )
        enrolment = self._journal.entry.enrolment
        record_installed(self._slots, Installed(enrolment=enrolment, desired=install.desired, active=active))
        self._slots.activate(active.digest)
        self._end(install, lifecycle.after(install.state, Trigger.DONE), None, active=active, running=wanted)
        self._host.note("committed", install.spec.name)

    def _end(self, install: Install, state: State, reason: str | None, **changes: object) -> None:
        """Give the disk back, and remember the outcome even when the disk refuses to: it is written later."""
        install.close()
        self.current = None
        # A cancelled job may still be at work, and leave more than is found now.
        busy = self._slots.turn.locked()
        if "active" not in changes:
            # First: what is given back may be what the journal needs.
            self._collect()
        self._journal.note(state=state, reason=reason, progress=install.progress, **_counters(install), **changes)
        # Afterwards: at no power cut may the journal name a slot that is gone.
        self._untidy = "active" in changes or busy
        self._tidy()

    def _tidy(self) -> None:
        if self._untidy and self._journal.is_written and not self._slots.turn.locked():
            self._untidy = False
            self._collect()

    def _collect(self) -> None:
        active = self._journal.entry.active
        try:
            self._slots.collect(None if active is None else active.digest)
        except OSError as error:
            log.warning("what is no longer needed stays on the disk: %s", error.strerror or error)


def _counters(source: object) -> dict[str, int]:
    """What an installation has counted, as the journal and the state message name it."""
    return {name: getattr(source, name, 0) for name in ("pulled_bytes", "reused_bytes", "bad_blocks")}
