"""Package power of Intel and AMD processors from the kernel's powercap counters (intel-rapl, microjoules).

Packages are summed; the domains nested in them (cores, uncore) are not added again.
"""

from __future__ import annotations

import time
from pathlib import Path

from edgefleet.protocol.messages import EstimatedPower, MeasuredPower
from edgefleet_agent.power import model
from edgefleet_device_profiles.profile import PowerModel

CLASS_FOLDER = Path("sys/class/powercap")


class UnavailableError(Exception):
    """There is no readable counter; the text says why."""


def _is_package(domain: Path) -> bool:
    try:
        return (domain / "name").read_text().startswith("package")
    except OSError:
        return False


class RaplMeter:
    """Mean package power over a window."""

    def __init__(self, root: Path, power: PowerModel) -> None:
        """Find the package domains; raises UnavailableError. `power` stands in when they vanish later."""
        self._estimate = model.ModelMeter(root, power, "the powercap counter has vanished")
        # intel-rapl:0 is named package-0; intel-rapl:0:1 lies inside it, and psys holds the packages and more.
        domains = sorted((root / CLASS_FOLDER).glob("intel-rapl:*"))
        self._domains = [domain for domain in domains if domain.name.count(":") == 1 and _is_package(domain)]
        if not self._domains:
            raise UnavailableError("this machine has no power sensor that is known")
        try:
            self._wraps_uj = [int((d / "max_energy_range_uj").read_text()) for d in self._domains]
            self._last = self._read()
        except PermissionError as error:
            raise UnavailableError(
                f"permission: {self._domains[0]}/energy_uj is readable by root only unless a udev rule allows it"
            ) from error
        except (OSError, ValueError) as error:
            raise UnavailableError(f"the powercap counter cannot be read ({error})") from error
        self._mean_w = 0.0

    def _read(self) -> tuple[float, list[int]]:
        return time.monotonic(), [int((domain / "energy_uj").read_text()) for domain in self._domains]

    def window(self) -> MeasuredPower | EstimatedPower:
        """Mean power since the last call; a counter that wrapped once is unwrapped."""
        estimate = self._estimate.window()
        try:
            (before_s, before), (now_s, now) = self._last, self._read()
        except (OSError, ValueError):
            return estimate
        self._last = now_s, now
        used_uj = sum((new - old) % (wrap + 1) for new, old, wrap in zip(now, before, self._wraps_uj, strict=True))
        if now_s > before_s:
            self._mean_w = used_uj / 1e6 / (now_s - before_s)
        return MeasuredPower(watts=self._mean_w, scope="package")
