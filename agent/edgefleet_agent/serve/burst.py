"""Requests that come one right after the other, answered without the rest of the agent's loop in between.

It reads nothing itself and knows no protocol: who owns a descriptor says what is done when that becomes readable.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from edgefleet_agent.spin import SPIN_S, Events, Spin

BURST_S = 0.1
"""After this the rest of the loop has its turn, however many ask."""


class Broker(Protocol):
    """`edgefleet.mqtt.Connection`, as far as it is waited for here."""

    @property
    def wants_write(self) -> bool: ...  # noqa: D102
    @property
    def has_input(self) -> bool: ...  # noqa: D102
    def fileno(self) -> int: ...  # noqa: D102


class Burst:
    """The descriptors of the local API and its worker, waited for together with all others, which end a burst."""

    def __init__(
        self,
        served: Callable[[], Mapping[int, Callable[[], object]]],
        others: Callable[[], Iterable[int]],
        has_clients: Callable[[], bool],
        infers: Callable[[], bool],
        broker: Broker | None,
    ) -> None:
        """`served`: what to wait for now, and what to call then; `infers`: whether the worker's answer is due.

        Without clients there is no burst; `broker` None: there is none.
        """
        self._served = served
        self._others = others
        self._has_clients = has_clients
        self._infers = infers
        self._broker = broker
        self._spin = Spin()

    def serve(self) -> None:
        """Serve what is ready, and what follows in `BURST_S`; returns as soon as there is anything else to do."""
        served, waiting = self._served(), select.poll()
        for descriptor in {*self._others(), *served}:
            waiting.register(descriptor, select.POLLIN)
        broker = self._broker
        if broker is not None and broker.fileno() >= 0:
            # A socket can nearly always be written to: what was read of it already is not to wait.
            is_due = broker.wants_write or broker.has_input
            waiting.register(broker.fileno(), select.POLLIN | (select.POLLOUT if is_due else 0))
        until_s, wait_s = time.monotonic() + BURST_S, 0.0
        while (ready := self._ready(waiting, wait_s)) and _all_served(ready, served) and self._has_clients():
            wait_s = max(0.0, until_s - time.monotonic())

    def _ready(self, waiting: select.poll, wait_s: float) -> Events:
        # Not for the next request: its client may need this core.
        found = self._spin.found(waiting.poll) if wait_s > SPIN_S and self._infers() else []
        return found or waiting.poll(1000 * wait_s)


def _all_served(ready: Events, served: Mapping[int, Callable[[], object]]) -> bool:
    """Serve each; false when there was anything else, or when one has ended and may leave its number to another."""
    others = False
    for descriptor, events in ready:
        reader = served.get(descriptor)
        if reader is not None:
            reader()
        others = others or reader is None or events != select.POLLIN
    return not others
