"""When to try the broker again, and with which MQTT version. Pure: the caller gives the time.

It opens nothing and logs nothing.
"""

from __future__ import annotations

import random
from enum import StrEnum

from edgefleet.retry import backoff_s

RECONNECT_FIRST_S = 1.0
RECONNECT_CAP_S = 60.0
# Two clients of one name evict each other: back off instead of flapping once a second.
TAKEOVER_WINDOW_S = 5.0
TAKEOVER_COUNT = 3
# So many failures after it had taken MQTT 5, it may be another broker.
TRUSTED_FAILURES = 3


class Protocol(StrEnum):
    """The MQTT versions that are tried, best first."""

    V5 = "5"
    V311 = "3.1.1"


class Attempts:
    """What became of the attempts so far, and so when the next is due and what it speaks."""

    def __init__(self) -> None:
        self.protocol = Protocol.V5
        self.next_at = 0.0
        self.failures = 0
        self.short_lives = 0
        self._said_no_to_5 = False
        self._took_5 = False

    @property
    def taken_over(self) -> bool:
        """True when the last connections, TAKEOVER_COUNT or more, each ended within seconds."""
        return self.short_lives >= TAKEOVER_COUNT

    @property
    def doubts_5(self) -> bool:
        """True while a broker that says nothing may be one without MQTT 5, and not just a busy one."""
        return self.protocol is Protocol.V5 and (not self._took_5 or self.failures >= TRUSTED_FAILURES)

    def accepted(self) -> None:
        """The broker took us."""
        self._took_5 = self.protocol is Protocol.V5

    def lasts(self, lived_s: float) -> None:
        """A connection stands, and has for so long."""
        if lived_s >= TAKEOVER_WINDOW_S:
            self.short_lives = 0

    def ended(self, now: float, lived_s: float) -> None:
        """A connection that had been accepted ended after `lived_s`."""
        self.short_lives = self.short_lives + 1 if lived_s < TAKEOVER_WINDOW_S else 0
        self.failures = self.short_lives
        self._back_off(now)

    def failed(self, now: float) -> None:
        """An attempt came to nothing."""
        if not self._said_no_to_5:
            # Whatever comes back after an outage may be another broker.
            self.protocol = Protocol.V5
        self._back_off(now)

    def refused_5(self, now: float, *, said_so: bool) -> None:
        """The broker closed on MQTT 5, or said in words that it has none: 3.1.1 at once."""
        self._said_no_to_5 = said_so
        self.protocol = Protocol.V311
        self.next_at = now

    def _back_off(self, now: float) -> None:
        self.failures += 1
        cap_s = backoff_s(self.failures, RECONNECT_FIRST_S, RECONNECT_CAP_S)
        self.next_at = now + random.uniform(min(0.1, cap_s), cap_s)  # noqa: S311 - jitter, not a secret
