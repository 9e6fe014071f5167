"""How long the store keeps what devices sent: single windows for so many days, events for a year, totals for ever.

A few hundred at a time between two turns of ingest, which therefore never waits for long. The file does not shrink:
what is freed is used again. Which rows may go at all is `store.telemetry`'s business.
"""

from __future__ import annotations

from collections import deque

from edgefleet.server.store import Store

DAY_S = 24 * 3600.0
DEFAULT_DAYS = 30
EVENT_DAYS = 365
LOOK_EVERY_S = 3600.0
ROWS_AT_ONCE = 500
SPOOLS_AT_ONCE = 200


class Retention:
    """Forgets what is older than it shall be."""

    def __init__(self, store: Store, telemetry_days: int) -> None:
        """Nothing is looked at before `turn`."""
        self._store = store
        self._window_s = telemetry_days * DAY_S
        self._event_s = max(telemetry_days, EVENT_DAYS) * DAY_S
        self._spools: deque[tuple[str, str]] = deque()
        self._looked_at = float("-inf")

    def turn(self, now: float) -> None:
        """Forget a few rows, where an hour has passed or some are left from then; `now` is wall clock.

        Raises sqlite3.Error: the rest is forgotten later.
        """
        if not self._spools:
            # A clock that was set back must not stop it for a year.
            if 0 <= now - self._looked_at < LOOK_EVERY_S:
                return
            self._looked_at = now
            self._spools.extend(self._store.spools())
        with self._store.transaction():
            self._forget(now)

    def _forget(self, now: float) -> None:
        left = ROWS_AT_ONCE
        for _ in range(min(len(self._spools), SPOOLS_AT_ONCE)):
            spool = self._spools[0]
            left -= self._store.forget_windows(*spool, now - self._window_s, left)
            left -= self._store.forget_events(*spool, now - self._event_s, left)
            if not left:
                return
            self._spools.popleft()
