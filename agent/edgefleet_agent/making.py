"""What an installation on this device is made of: its slots, its line, its settings, and what it measures with.

It begins none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgefleet.prior import hardware_class
from edgefleet.protocol.messages import Facts
from edgefleet.protocol.signed import Desired
from edgefleet_agent import acquisition, choosing, transfer
from edgefleet_agent.benchmark import Sensors
from edgefleet_agent.choosing import Choosing
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.install import Install
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.state_folder import StateFolder
from edgefleet_agent.thermal import Thermal
from edgefleet_agent.update_lock import update_locked
from edgefleet_device_profiles.profile import Profile


class Host(transfer.Host, choosing.Host, Protocol):
    """What an installation needs of its agent."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes installations."""

    settings: Settings
    profile: Profile
    facts: Facts
    folder: StateFolder
    host: Host
    http: Callable[[], HttpAccess | None]
    """Asked at each installation: the certificate may be another by then."""

    def make(self, desired: Desired, resumed: bool, only: str | None) -> Install:
        """One installation; `only` is the digest of the one variant that it must be."""
        settings, slots, active = self.settings, self.folder.slots, self.folder.journal.entry.active
        means = acquisition.Means(
            slots, self.host, self.http(), settings.runtime, settings.worker, self.profile.storage.free_floor_mib
        )
        runs = None if active is None else active.digest
        return Install(
            desired, self.profile, self.facts.machine.runtimes, means, resumed=resumed, only=only,
            choosing=Choosing(self._choosing(), slots, self.host, desired.wanted, runs),
            locked=lambda: update_locked(settings),
        )  # fmt: skip

    def _choosing(self) -> choosing.Means:
        settings, machine = self.settings, self.facts.machine
        return choosing.Means(
            settings.selection, settings.runtime, settings.worker, self.profile, machine.cores,
            hardware_class(self.profile.id, machine), self.folder.folder, self._sensors,
        )  # fmt: skip

    def _sensors(self) -> Sensors:
        """Of the benchmark alone: what it reads is lost to nobody."""
        root, simulated = self.settings.root, self.facts.simulated
        return Sensors(
            open_meter(root, self.profile, simulated=simulated), Thermal(root, self.profile, simulated=simulated)
        )
