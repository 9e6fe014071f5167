"""What a line carries, as far as what came in tells: rate, interval between pieces, round trip. Pure.

It does not decide how much to ask for, or when; that is `pull`'s business.
"""

from __future__ import annotations

import math
from collections import deque

# What a line is taken to carry before it was measured, and when it is silent: GPRS on a bad day.
THIN_BYTES_PER_S = 8000.0
RATE_OVER_S = 2.0
# Samples nearer to each other than this are one: at 200 MB/s a piece comes every 0.3 ms.
SAMPLE_S = 0.02
# A burst, a stall of TCP and the silence between two requests are no news about the line: a lower rate is believed
# slowly, a higher one at once.
DECAY_S = 4.0
QUEUE_SHARE = 0.8
SHORTEST_SPAN_S = 0.001


class Line:
    """Estimates over the last seconds."""

    def __init__(self) -> None:
        """Nothing is known before the first piece."""
        self.rate_bytes_per_s = 0.0
        """0 while nothing is known."""
        self.interval_s = 0.0
        """Smoothed time between two pieces."""
        self.round_trip_s = 0.0
        """Smoothed time from a request to its first piece."""
        self._samples: deque[tuple[float, int]] = deque()
        self._total_bytes = 0
        self._last_at: float | None = None

    def begins(self, now: float) -> None:
        """Something was asked for while nothing was under way: what the line did before is not its speed."""
        self._samples.clear()
        self._samples.append((now, self._total_bytes))

    def is_new(self) -> None:
        """Another connection, perhaps over another line: nothing is known of it."""
        self.rate_bytes_per_s = self.interval_s = self.round_trip_s = 0.0
        self._samples.clear()
        self._last_at = None

    def was_silent(self) -> None:
        """What was asked for did not come: the line may have become slower, or the hub was away for a while."""
        self.rate_bytes_per_s = max(self.rate_bytes_per_s / 2, min(self.rate_bytes_per_s, THIN_BYTES_PER_S))
        self._last_at = None

    def arrived(self, size_bytes: int, now: float) -> None:
        """A piece came in."""
        self._total_bytes += size_bytes
        gap_s = 0.0 if self._last_at is None else now - self._last_at
        if self._last_at is not None:
            self.interval_s += (gap_s - self.interval_s) / 8
        self._last_at = now
        if not self._samples:
            self._samples.append((now, self._total_bytes))
            return
        if len(self._samples) > 1 and now - self._samples[-1][0] < SAMPLE_S:
            self._samples[-1] = (self._samples[-1][0], self._total_bytes)
        else:
            self._samples.append((now, self._total_bytes))
        # One sample older than the span stays: the time before a slow line's only piece counts.
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        rate = (self._total_bytes - before) / max(now - since, SHORTEST_SPAN_S)
        self.rate_bytes_per_s = max(rate, self.rate_bytes_per_s * math.exp(-gap_s / DECAY_S))

    def answered(self, seconds: float, queued_bytes: int) -> None:
        """The first piece of a request came `seconds` after it; `queued_bytes` were to come before it.

        No news when these alone took as long.
        """
        queued_s = queued_bytes / self.rate_bytes_per_s if self.rate_bytes_per_s else 0.0
        if queued_s < QUEUE_SHARE * seconds:
            self.round_trip_s += (seconds - self.round_trip_s) / (8 if self.round_trip_s else 1)
