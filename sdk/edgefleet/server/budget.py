"""How much a device may ask for and how much it is sent: token buckets; the clock is an argument.

It counts; who is told what when something runs out is decided by the callers.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from edgefleet.package.digest import BLOCK_BYTES

REQUESTS_PER_S = 20.0
REQUEST_BURST = 40.0
LINES_PER_S = 1.0
LINE_BURST = 50.0
LINE_CHARS = 400
BYTES_A_REQUEST = 256 * 1024
BUSY_EVERY_S = 1.0
REMEMBERED_DEVICES = 4096


class TokenBucket:
    """At most `rate` bytes a second on average, with a burst of 100 ms and never less than a block."""

    def __init__(self, rate_bytes_per_s: float | None, now: float) -> None:
        """`rate_bytes_per_s` None means no limit."""
        self.rate = rate_bytes_per_s
        self._capacity = max(BLOCK_BYTES, (rate_bytes_per_s or 0) / 10)
        self._tokens = self._capacity
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until something may be sent; 0 means now."""
        if self.rate is None:
            return 0.0
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return max(0.0, -self._tokens / self.rate) if self._tokens < 0 else 0.0

    def take(self, size: int) -> None:
        """Account for bytes sent; the balance may go below zero by one piece."""
        if self.rate is not None:
            self._tokens -= size


class _Requests:
    """What one device may still ask."""

    __slots__ = ("at", "busy_at", "tokens")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.at = now
        self.busy_at = float("-inf")


class RequestBudget:
    """20 requests a second and device, 40 at once; of those beyond it one a second is told `busy`."""

    def __init__(self, per_s: float = REQUESTS_PER_S, burst: float = REQUEST_BURST) -> None:
        self._per_s = per_s
        self._burst = burst
        self._devices: OrderedDict[str, _Requests] = OrderedDict()

    def admit(self, device: str, now: float) -> bool:
        """Count a request; False when there was one too many."""
        state = self._devices.pop(device, None) or _Requests(self._burst, now)
        self._devices[device] = state
        if len(self._devices) > REMEMBERED_DEVICES:
            self._devices.popitem(last=False)
        state.tokens = min(self._burst, state.tokens + (now - state.at) * self._per_s)
        state.at = now
        if state.tokens < 1:
            return False
        state.tokens -= 1
        return True

    def served(self, device: str, size: int) -> None:
        """Bytes of blocks were sent: a fast device asks often, and only asking without being served is limited."""
        if (state := self._devices.get(device)) is not None:
            state.tokens = min(self._burst, state.tokens + size / BYTES_A_REQUEST)

    def tell_busy(self, device: str, now: float) -> bool:
        """Whether the device is to be told `busy` now; at most once a second."""
        state = self._devices.get(device)
        if state is None or now - state.busy_at < BUSY_EVERY_S:
            return False
        state.busy_at = now
        return True


class DeviceLog:
    """Lines of the log that devices bring about: one a second and device, 50 at once, and no long ones.

    A device that floods must not fill the server's disk with what is said of it.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._budget = RequestBudget(LINES_PER_S, LINE_BURST)
        self._unsaid: dict[str, int] = {}

    def say(self, level: int, device: str, text: str) -> None:
        """Log a line about a device, or count it with those that are not said."""
        if not self._log.isEnabledFor(level):
            return
        if not self._budget.admit(device, time.monotonic()):
            self._unsaid[device] = self._unsaid.get(device, 0) + 1
            return
        unsaid = self._unsaid.pop(device, 0)
        more = f" ({unsaid} more lines before it were not kept)" if unsaid else ""
        self._log.log(level, "device %s: %s%s", device, text[:LINE_CHARS], more)
