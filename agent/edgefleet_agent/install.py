"""One installation, from a desired state to the variant that is to be activated: chosen among those that work here.

Driven by `tick` and by what comes in; it neither connects nor activates. How one candidate gets to disk is
`acquisition`'s business, which are pulled and which is chosen `choosing`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from edgefleet import selection
from edgefleet.package.manifest import Index, VariantSpec
from edgefleet.protocol.decisions import Prior
from edgefleet.protocol.messages import Progress, Reply, State
from edgefleet.protocol.signed import Desired
from edgefleet.selection import Candidate
from edgefleet_agent import lifecycle
from edgefleet_agent.acquisition import Acquisition, Means, Metadata
from edgefleet_agent.choosing import Choosing, Passed
from edgefleet_agent.lifecycle import Trigger
from edgefleet_agent.refusal import InstallError, translated
from edgefleet_device_profiles.profile import Profile, Runtime

__all__ = ["Install", "InstallError"]

log = logging.getLogger("edgefleet.agent")


class Install:
    """One installation in progress; `state` says where it is, `candidate` and `spec` what it installs."""

    def __init__(
        self,
        desired: Desired,
        profile: Profile,
        runtimes: Mapping[Runtime, str],
        means: Means,
        *,
        resumed: bool,
        only: str | None = None,
        choosing: Choosing | None = None,
        locked: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`resumed`: it was begun before a restart, so what lies on disk was pulled for it.

        `only`: digest of the one variant that it must be. `choosing` None: the first of the shortlist, unmeasured.
        `locked`: why nothing may be activated now, or None.
        """
        self.desired = desired
        self.state = State.RESOLVING
        self.candidate: Candidate | None = None
        self.spec: VariantSpec | None = None
        self.waits_for: str | None = None
        """Why it goes no further now, although nothing failed."""
        self.pulled_bytes = self.bad_blocks = self.reused_bytes = 0
        self._profile = profile
        self._runtimes = runtimes
        self._means = means
        self._resumed = resumed
        self._only = only
        self._choosing = choosing if only is None else None
        self._locked = locked
        self._metadata = Metadata(means.host, desired.wanted.index_digest if desired.wanted is not None else "")
        self._verdicts: list[selection.Verdict] | None = None
        self._queue: list[Candidate] = []
        self._passed: list[Passed] = []
        self._current: Acquisition | None = None
        self._chosen: Passed | None = None

    # What drives it ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what can be done now; raises InstallError with the reason when it cannot go on."""
        with self._translated(now):
            if self.state is State.RESOLVING:
                self._resolve(now)
            elif self.state is State.BENCHMARKING:
                self._measure(now)
            elif self._current is not None and self.state is not State.ACTIVATING:
                self._acquire(self._current, now)

    def hold(self, *, held: bool) -> None:
        """Leave the line to something more urgent, or take it again."""
        if self._current is not None:
            self._current.hold(held=held)

    def on_connected(self) -> None:
        """What was asked for before is lost."""
        self._metadata.reconnected()
        if self._choosing is not None:
            self._choosing.reconnected()
        if self._current is not None:
            self._current.on_connected()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take a reply from a hub; raises InstallError when it says that there is no way."""
        with self._translated(now):
            if self._choosing is not None and self._choosing.take(reply, now):
                return
            if self._current is not None:
                self._current.on_reply(reply, now)
            self._metadata.take(reply, now)

    def on_piece(self, sha12: str, piece: int, content: bytes, now: float) -> None:
        """Take a raw piece; raises InstallError when the disk is full or a block is damaged again and again."""
        if self._current is not None:
            with self._translated(now):
                self._current.on_piece(sha12, piece, content, now)

    def close(self) -> None:
        """Stop what runs; what was pulled stays on disk."""
        self._means.slots.reserved.clear()
        if self._current is not None:
            self._current.close()
        if self._choosing is not None:
            self._choosing.close()

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [number for part in (self._current, self._choosing) if part for number in part.descriptors()]

    @property
    def progress(self) -> Progress | None:
        """Bytes verified and bytes wanted of the candidate that is pulled, once they are known."""
        return None if self._current is None else self._current.progress

    @property
    def prior(self) -> Prior | None:
        """What was taken over instead of measuring."""
        return None if self._choosing is None else self._choosing.prior

    @contextmanager
    def _translated(self, now: float) -> Iterator[None]:
        """Whatever happens is an InstallError, or the end of one candidate of several; what came in is counted."""
        try:
            with translated(self.desired.deployment.deployment_id):
                yield
        except InstallError as error:
            self._count()
            if self._current is None or self._current.passed:
                raise
            if not self._queue and not self._passed and not self._widen():
                raise
            self._drop(self._current, str(error), now)
        else:
            self._count()

    def _count(self) -> None:
        self.pulled_bytes, self._metadata.pulled_bytes = self.pulled_bytes + self._metadata.pulled_bytes, 0
        if (current := self._current) is None:
            return
        current.take_counts()
        self.pulled_bytes, current.pulled_bytes = self.pulled_bytes + current.pulled_bytes, 0
        self.bad_blocks, current.bad_blocks = self.bad_blocks + current.bad_blocks, 0
        self.reused_bytes, current.reused_bytes = self.reused_bytes + current.reused_bytes, 0
        if current.here_bytes is not None:
            self.pulled_bytes, current.here_bytes = max(self.pulled_bytes, current.here_bytes), None

    # The steps ---------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> None:
        if self.desired.wanted is None:
            raise InstallError(f"the deployment names no package version for {self.desired.action}")
        if self._verdicts is None:
            if (content := self._metadata.content(now)) is None:
                return
            self._verdicts = self._shortlist(content)
        verdicts = self._verdicts
        best = [verdict.candidate for verdict in verdicts if verdict.rank == 0]
        found = best if self._choosing is None else self._choosing.candidates(verdicts, now)
        if found is None:
            return
        reasons = {verdict.candidate.digest: verdict.reason for verdict in verdicts}
        for candidate in found:
            self._host_note("variant_selected", f"{candidate.name}: {reasons[candidate.digest]}")
        self._queue = found
        self._next(Trigger.DONE)

    def _shortlist(self, content: bytes) -> list[selection.Verdict]:
        offered = selection.candidates(Index.model_validate_json(content))
        if self._only is not None:
            offered = [candidate for candidate in offered if candidate.digest == self._only]
        verdicts = selection.shortlist(self._profile, self._runtimes, offered)
        for verdict in verdicts:
            log.info("variant %s: %s", verdict.candidate.name, verdict.reason)
        if not any(verdict.rank == 0 for verdict in verdicts):
            reasons = "; ".join(f"{v.candidate.name}: {v.reason}" for v in verdicts) or "the package is empty"
            raise InstallError(f"no variant fits this device: {reasons}")
        return verdicts

    def _next(self, trigger: Trigger) -> None:
        """Go on with the next candidate."""
        self.state = lifecycle.after(self.state, trigger)
        candidate = self._queue.pop(0)
        self.candidate = candidate
        self._current = Acquisition(candidate, self._means, self._metadata, resumed=self._resumed)

    def _acquire(self, current: Acquisition, now: float) -> None:
        if not current.passed:
            current.tick(now)
            self.state, self.spec = current.state, current.spec
            if not current.passed or current.spec is None:
                return
            self._passed.append(Passed(current.candidate, current.spec))
            self._means.slots.reserved.add(current.candidate.digest)
            if self._queue:
                self._next(Trigger.NEXT_CANDIDATE)
                return
        self._choose(now)

    def _drop(self, current: Acquisition, reason: str, now: float) -> None:
        """One candidate of several does not work here: the others may."""
        self._host_note("candidate_dropped", f"{current.candidate.name}: {reason}")
        current.close()
        if self._queue:
            self._next(Trigger.NEXT_CANDIDATE)
        else:
            # By the way of one that works: what is measured or activated was self-tested.
            self._queue.append(self._passed.pop(0).candidate)
            self._next(Trigger.NEXT_CANDIDATE)
        log.info("at %.1f s the candidate %s was dropped", now, current.candidate.name)

    def _widen(self) -> bool:
        """What a prior chose does not work here: have the others pulled after all."""
        if self._choosing is None or self._choosing.prior is None or self._verdicts is None:
            return False
        without = [verdict for verdict in self._verdicts if verdict.candidate != self.candidate]
        self._queue = self._choosing.without_prior(without)
        return bool(self._queue)

    def _choose(self, now: float) -> None:
        """Measure what works, where there is more than one way; else that is it."""
        if self._chosen is None:
            if self._choosing is None:
                self._chosen = self._passed[0]
            else:
                for passed in self._passed:
                    self._choosing.add(passed)
                self._chosen = self._choosing.begin(now)
                if self._chosen is None:
                    self.state = lifecycle.after(self.state, Trigger.DONE)
                    return
        self._activate_when_allowed(self._chosen, Trigger.NOTHING_TO_COMPARE)

    def _measure(self, now: float) -> None:
        if self._chosen is None and self._choosing is not None:
            self._chosen = self._choosing.tick(now)
        if self._chosen is not None:
            self._activate_when_allowed(self._chosen, Trigger.DONE)

    def _activate_when_allowed(self, chosen: Passed, trigger: Trigger) -> None:
        self.candidate, self.spec = chosen.candidate, chosen.spec
        self.waits_for = self._locked()
        if self.waits_for is None:
            self.state = lifecycle.after(self.state, trigger)

    def _host_note(self, kind: str, text: str) -> None:
        self._means.host.note(kind, text)
