"""A fleet per test, on mosquitto unless a test asks for amqtt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet_demo import broker as brokers
from edgefleet_demo.processes import ProcessGroup
from fleet_lab import Lab, LabOpener, open_lab


@pytest.fixture
def lab_opener(tmp_path: Path, need: Callable[[bool, str], None]) -> Iterator[LabOpener]:
    """Open a lab: `lab_opener(kind=…, rate_limit_mb_per_s=…)`; everything is stopped afterwards."""
    with ProcessGroup(tmp_path / "logs") as group:

        def opener(
            kind: brokers.BrokerKind = brokers.BrokerKind.MOSQUITTO,
            rate_limit_mb_per_s: float | None = None,
            *,
            tls: bool = True,
        ) -> Lab:
            if kind is brokers.BrokerKind.MOSQUITTO:
                need(brokers.find_mosquitto() is not None, "mosquitto (a system package)")
            return open_lab(tmp_path, group, kind, rate_limit_mb_per_s, tls=tls)

        yield opener


@pytest.fixture
def lab(lab_opener: LabOpener) -> Lab:
    """A lab on mosquitto."""
    return lab_opener()
