"""One switch to a verified slot: its worker warm beside the one that runs, then the link; and the way back.

The journal is its caller's. It neither decides that there is a switch nor what follows.
"""

from __future__ import annotations

import logging
from typing import Protocol

from edgefleet.protocol.messages import ActiveVariant
from edgefleet_agent.background import Work
from edgefleet_agent.slots import Slots
from edgefleet_agent.state_folder import Installed, record_installed

log = logging.getLogger("edgefleet.agent")


class Runner(Protocol):
    """Who keeps the worker: it takes the prepared one over when the journal says that its variant is active."""

    def prepare(self, variant: ActiveVariant) -> None:
        """Start a worker for a verified variant beside the one that serves, where there is memory for two."""
        ...

    @property
    def prepared(self) -> bool:
        """Whether the variant of the last `prepare` can take over now."""
        ...

    def abandon(self) -> None:
        """The prepared variant is not wanted any more."""
        ...


class Switch:
    """A switch under way."""

    def __init__(self, slots: Slots, runner: Runner, installed: Installed, now: float, limit_s: float) -> None:
        """Begin to warm the worker; after `limit_s` the switch is made without: the old one drains first then."""
        self._slots = slots
        self._runner = runner
        self.installed = installed
        self._until = now + limit_s
        runner.prepare(installed.active)

    def tick(self, now: float) -> bool:
        """True once `current` leads to the variant; raises OSError, and `current` may lead there."""
        if not self._runner.prepared and now < self._until:
            return False
        record_installed(self._slots, self.installed)
        self._slots.activate(self.installed.active.digest)
        return True

    def cancel(self) -> None:
        """It will not be made."""
        self._runner.abandon()


class WayBack:
    """The switch to the variant that was committed before."""

    def __init__(self, slots: Slots, runner: Runner, installed: Installed, limit_s: float) -> None:
        """Begin to hash its slot, beside the loop."""
        self.installed = installed
        self._slots = slots
        self._runner = runner
        self._limit_s = limit_s
        digest = installed.active.digest
        self._checking: Work[object] | None = Work(slots.turn, lambda _: slots.check(digest))
        self._switch: Switch | None = None

    def tick(self, now: float) -> bool:
        """True once it may run; raises SlotDamagedError. Nothing unverified runs, however long that takes to know."""
        if self._checking is not None:
            if not self._checking.finished:
                return False
            checking, self._checking = self._checking, None
            checking.result()
            self._switch = Switch(self._slots, self._runner, self.installed, now, self._limit_s)
        try:
            return self._switch is None or self._switch.tick(now)
        except OSError as error:
            # It runs by the journal; the link is put right when the disk is.
            log.warning("the way back: %s", error.strerror or error)
        return True

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [] if self._checking is None else [self._checking.fileno()]

    def cancel(self) -> None:
        """The agent ends: the next start begins it anew."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        self._runner.abandon()
