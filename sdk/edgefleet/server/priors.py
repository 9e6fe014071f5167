"""Priors on the server: what devices decided goes into the store, and what it comes to into files that the hubs serve.

A file is replaced whenever a device says something that bears on it; hubs open no store.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edgefleet import durable
from edgefleet.prior import contradicted_key, prior_name, prior_of
from edgefleet.protocol.decisions import CONTRADICTION_EVENT, DECISION_EVENT, DecisionRecord
from edgefleet.protocol.messages import Event
from edgefleet.server.data_folder import prior_file
from edgefleet.server.store import Store
from edgefleet.server.store.priors import Key

log = logging.getLogger("edgefleet.server")


class Priors:
    """Takes events in; `publish` writes what has changed."""

    def __init__(self, data: Path, store: Store) -> None:
        """Files are below `data`; nothing is written before `publish`."""
        self._data = data
        self._store = store
        self._changed: set[Key] = set()

    def take(self, device: str, event: Event, now: float) -> None:
        """Record a decision, or that a prior did not hold, in the open transaction; raises ValueError."""
        if event.kind == DECISION_EVENT:
            self._changed.add(self._store.add_decision(device, DecisionRecord.decode(event.text.encode()), now))
        elif event.kind == CONTRADICTION_EVENT:
            key = contradicted_key(event.text)
            self._store.add_contradiction(device, key, now)
            self._changed.add(key)

    def publish(self, now: float) -> None:
        """Write or remove the files that what was taken bears on; a disk that refuses is tried again."""
        for key in list(self._changed):
            index_digest, hardware, objective = key
            path = prior_file(self._data, index_digest, prior_name(hardware, objective))
            decided, against = self._store.decisions(key)
            prior = prior_of(decided, now, against=against)
            try:
                if prior is None:
                    path.unlink(missing_ok=True)
                else:
                    path.parent.mkdir(exist_ok=True)
                    durable.write_file(path, prior.encode())
            except OSError as error:
                log.warning("writing the prior %s: %s", path.name, error.strerror or error)
                continue
            self._changed.discard(key)
