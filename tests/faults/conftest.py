"""One fleet for all faults that need processes: each case has a device of its own on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from edgefleet.package.layout import Package
from edgefleet_demo import broker as brokers
from edgefleet_demo.processes import ProcessGroup
from faults import table
from faults.patient import HIDDEN_OF_FIVE_BLOCKS, Patient
from fleet_lab import Lab, LabOpener, open_lab, write_lab_package


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Say which fault this is, for the table at the end."""
    item = request.node
    values = item.callspec.params if hasattr(item, "callspec") else {}
    record_property(table.PROPERTY, table.NAMES[item.originalname](values))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of this file's own, on mosquitto with TLS."""
    folder = tmp_path_factory.mktemp("faults")
    with ProcessGroup(folder / "logs") as group:
        yield open_lab(folder, group, brokers.BrokerKind.MOSQUITTO)


@pytest.fixture(scope="module")
def first(lab: Lab) -> Package:
    """A small one that runs before, where something must run before."""
    return _published(lab, write_lab_package(lab.folder / "package-1"))


@pytest.fixture(scope="module")
def package(lab: Lab, first: Package) -> Package:
    """Five blocks of weights and what belongs to them."""
    assert first.release < 5
    made = write_lab_package(lab.folder / "package-5", hidden=HIDDEN_OF_FIVE_BLOCKS, seed=5, version="5.0.0", release=5)
    return _published(lab, made)


@pytest.fixture(scope="module")
def degrading(lab: Lab, package: Package) -> Package:
    """It passes its self-test and fails at work."""
    assert package.release < 9
    return _published(lab, write_lab_package(lab.folder / "package-9", degrades=True, version="9.0.0", release=9))


def _published(lab: Lab, package: Package) -> Package:
    """Signed at once, in the order of releases, whichever test deploys one first."""
    lab.publish(package)
    return package


_numbers = count(1)


@pytest.fixture
def patient(lab: Lab, need: Callable[[bool, str], None]) -> Iterator[Patient]:
    """A device that nobody has used; it is stopped afterwards."""
    need(brokers.find_mosquitto() is not None, "mosquitto (a system package)")
    made = Patient(lab, f"pi-{next(_numbers)}")
    yield made
    made.stop()


@pytest.fixture
def lab_opener(tmp_path: Path, need: Callable[[bool, str], None]) -> Iterator[LabOpener]:
    """Open a lab of the test's own."""
    need(brokers.find_mosquitto() is not None, "mosquitto (a system package)")
    with ProcessGroup(tmp_path / "logs") as group:

        def opener(
            kind: brokers.BrokerKind = brokers.BrokerKind.MOSQUITTO,
            rate_limit_mb_per_s: float | None = None,
            *,
            tls: bool = True,
        ) -> Lab:
            return open_lab(tmp_path, group, kind, rate_limit_mb_per_s, tls=tls)

        yield opener
