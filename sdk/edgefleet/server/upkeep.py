"""Upkeep: metadata that is signed again before it expires, the server's own certificates, warnings before any end.

Offline roles need a person; here they are only warned about.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgefleet.errors import EdgefleetError
from edgefleet.server.data_folder import trust_files
from edgefleet.server.publishing import publish_changes
from edgefleet.server.store import Store
from edgefleet.trust import broker, pki
from edgefleet.trust.repository import Repository
from edgefleet.trust.status import warnings

LOOK_EVERY_S = 3600.0
WARN_EVERY_S = 24 * 3600.0

log = logging.getLogger("edgefleet.server")


class Upkeep:
    """What has to be done every hour and every day, whoever sleeps."""

    def __init__(self, data: Path, store: Store, services: Sequence[str]) -> None:
        """`services` are the names of the processes whose certificates are kept valid; none without TLS."""
        self._data = data
        self._store = store
        self._services = services
        self._looked_at = float("-inf")
        self._warned_at = float("-inf")

    def begin(self, now: float) -> None:
        """The first look; raises EdgefleetError where the folder cannot be served from."""
        for name in self._services:
            pki.ensure_service(self._data, name, now)
        publish_changes(self._data, Repository(trust_files(self._data)), now)
        self._looked_at = now
        self.warn(now)

    def turn(self, now: float) -> None:
        """Look again when an hour has passed; what fails is said and tried again. `now` is wall clock."""
        # A clock that was set back must not stop it for a year.
        if not 0 <= now - self._looked_at < LOOK_EVERY_S:
            try:
                self._looked_at = now
                for name in self._services:
                    pki.ensure_service(self._data, name, now)
                publish_changes(self._data, Repository(trust_files(self._data)), now)
            except (EdgefleetError, OSError, ValueError) as error:
                log.warning("keeping the metadata fresh: %s", error)
        if not 0 <= now - self._warned_at < WARN_EVERY_S:
            self.warn(now)

    def warn(self, now: float) -> None:
        """Log what ends within 60, 30 or 7 days, or has ended."""
        self._warned_at = now
        try:
            ends = Repository(trust_files(self._data)).expiries() + pki.expiries(self._data)
            ends += [
                (f"certificate of device {row.device}", row.not_after)
                for row in self._store.enrolments()
                if row.revoked_at is None
            ]
            for line in warnings(ends, now):
                log.warning("%s", line)
            if self._services and (to_do := broker.refresh(self._data, now)) is not None:
                log.info("%s", to_do)
        except (EdgefleetError, OSError, ValueError) as error:
            log.warning("reading what expires when: %s", error)
