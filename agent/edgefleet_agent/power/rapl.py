"""Energy of Intel and AMD processors from the kernel's powercap counters (intel-rapl, microjoules).

Packages are summed. The domains nested in them (core, uncore, dram) are not added again, nor is `psys`, which holds the
packages and more: it is read only where no package is. Source: the kernel's Documentation/power/powercap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgefleet_agent.power import sysfs
from edgefleet_agent.power.sensor import MOST_W, Step
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Sensor as SensorName

DOMAINS = "sys/class/powercap/intel-rapl:*"
# Scope → how the names of its domains begin; the first that is there is read.
SCOPES = {"package": "package", "psys": "psys"}
# The counters are updated about once a millisecond (Intel SDM volume 3, 16.10).
UPDATES_PER_S = 1000
# Some virtual machines have the file and nothing that counts.
STANDS_STILL_S = 1.0


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter and the highest value that it reaches, in microjoules."""

    energy: Path
    highest_uj: int

    def read(self) -> int:
        """The counter now; raises UnreadableError."""
        return sysfs.read_number(self.energy)


class RaplSensor:
    """The counters of all packages, or of the platform."""

    name: str = SensorName.RAPL
    # A counter wraps after minutes at the earliest, but a set-back is told from a wrap by its speed.
    period_s = 10.0

    def __init__(self, domains: list[Domain], scope: str) -> None:
        """`domains` are read together."""
        self.scope = scope
        self._domains = domains
        self._last: tuple[float, list[int]] | None = None

    def step(self, now: float, _patience_s: float) -> Step:
        """See Sensor; a counter that wrapped once is unwrapped."""
        values = [domain.read() for domain in self._domains]
        last, self._last = self._last, (now, values)
        if last is None:
            return Step(0.0, 0.0, 0)
        seconds, joules = now - last[0], 0.0
        for domain, before, after in zip(self._domains, last[1], values, strict=True):
            used_j = (after - before) % (domain.highest_uj + 1) / 1e6
            # By a sleep, or a reload of its driver.
            if after < before and used_j > MOST_W * seconds:
                return Step(0.0, 0.0, 0, f"{domain.energy} was set back")
            joules += used_j
        if not joules and seconds >= STANDS_STILL_S:
            return Step(0.0, 0.0, 0, f"{self._domains[0].energy} stands still")
        return Step(joules, seconds, round(seconds * UPDATES_PER_S))

    def forget(self) -> None:
        """See Sensor."""
        self._last = None


def find(root: Path) -> RaplSensor:
    """The counters below `root`; raises AbsentError, and UnreadableError where they may not be read."""
    # intel-rapl:0:1 lies in intel-rapl:0, and intel-rapl-mmio:0 counts what intel-rapl:0 counts.
    folders = [folder for folder in sysfs.find(root, DOMAINS) if folder.name.count(":") == 1]
    names = {folder: sysfs.text_or_none(folder / "name") or "" for folder in folders}
    for scope, beginning in SCOPES.items():
        if found := [folder for folder, name in names.items() if name.startswith(beginning)]:
            domains = [Domain(folder / "energy_uj", _highest_uj(folder)) for folder in found]
            try:
                for domain in domains:
                    domain.read()
            except UnreadableError as error:
                raise UnreadableError(_with_cure(str(error))) from error
            return RaplSensor(domains, scope)
    raise AbsentError(f"{root / 'sys/class/powercap'} names no package")


def _highest_uj(folder: Path) -> int:
    highest = sysfs.read_number(folder / "max_energy_range_uj")
    if highest <= 0:
        raise UnreadableError(f"{folder / 'max_energy_range_uj'} says {highest}")
    return highest


def _with_cure(text: str) -> str:
    cure = ": it is readable by root only unless a udev rule allows it"
    return text + cure if text.startswith("permission") else text
