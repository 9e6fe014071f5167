"""How much a device may ask for and how much it is sent: token buckets. Pure; the clock is an argument.

It counts; who is told what when something runs out is decided by the callers.
"""

from __future__ import annotations

from collections import OrderedDict

from edgefleet.package.digest import BLOCK_BYTES

REQUESTS_PER_S = 20.0
REQUEST_BURST = 40.0
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

    def __init__(self, now: float) -> None:
        self.tokens = REQUEST_BURST
        self.at = now
        self.busy_at = float("-inf")


class RequestBudget:
    """20 requests a second and device, 40 at once; of those beyond it one a second is told `busy`."""

    def __init__(self) -> None:
        self._devices: OrderedDict[str, _Requests] = OrderedDict()

    def admit(self, device: str, now: float) -> bool:
        """Count a request; False when there was one too many."""
        state = self._devices.pop(device, None) or _Requests(now)
        self._devices[device] = state
        if len(self._devices) > REMEMBERED_DEVICES:
            self._devices.popitem(last=False)
        state.tokens = min(REQUEST_BURST, state.tokens + (now - state.at) * REQUESTS_PER_S)
        state.at = now
        if state.tokens < 1:
            return False
        state.tokens -= 1
        return True

    def served(self, device: str, size: int) -> None:
        """Bytes of blocks were sent: a fast device asks often, and only asking without being served is limited."""
        if (state := self._devices.get(device)) is not None:
            state.tokens = min(REQUEST_BURST, state.tokens + size / BYTES_A_REQUEST)

    def tell_busy(self, device: str, now: float) -> bool:
        """Whether the device is to be told `busy` now; at most once a second."""
        state = self._devices.get(device)
        if state is None or now - state.busy_at < BUSY_EVERY_S:
            return False
        state.busy_at = now
        return True
