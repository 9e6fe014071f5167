"""Power from the profile's linear model and the processor's utilisation: an estimate, and marked as one.

P = idle + (max − idle) · utilisation. The error bar is the model's whole range, since nothing is measured.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet.protocol.messages import EstimatedPower
from edgefleet_device_profiles.profile import PowerModel

IDLE_FIELDS = (3, 4)


def read_cpu_times(root: Path) -> tuple[int, int]:
    """(busy, total) jiffies of all processors since boot, from the first line of /proc/stat (proc(5))."""
    fields = [int(field) for field in (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - sum(fields[index] for index in IDLE_FIELDS), sum(fields)


class ModelMeter:
    """Estimates mean power over a window."""

    def __init__(self, root: Path, power: PowerModel, reason: str) -> None:
        """`reason` says why nothing is measured."""
        self._root = root
        self._power = power
        self._reason = reason
        self._last = self._times()

    def _times(self) -> tuple[int, int] | None:
        try:
            return read_cpu_times(self._root)
        except (OSError, ValueError, IndexError):
            return None

    def window(self) -> EstimatedPower:
        """Mean power since the last call."""
        last, self._last = self._last, self._times()
        power, reason = self._power, self._reason
        if last is None or self._last is None:
            # Without a utilisation every value in the range is as likely as another.
            utilisation, reason = 0.5, f"{reason}; the processor's utilisation cannot be read either"
        else:
            busy, total = (now - before for now, before in zip(self._last, last, strict=True))
            utilisation = busy / total if total > 0 else 0.0
        return EstimatedPower(
            watts=power.idle_w + (power.max_w - power.idle_w) * min(1.0, max(0.0, utilisation)),
            low_w=power.idle_w,
            high_w=power.max_w,
            scope=power.scope,
            reason=reason,
        )
