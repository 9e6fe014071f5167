"""The server's store: SQLite in WAL mode, columns rather than documents, one file; a table's module says what it is.

The methods of every table are the store's own; none of them decides anything.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet.server.store import commands, deployments, devices, enrolments, priors, telemetry
from edgefleet.server.store.deployments import DesiredRow
from edgefleet.server.store.devices import DeviceRow
from edgefleet.server.store.enrolments import EnrolmentRow
from edgefleet.server.store.telemetry import DeviceTelemetry, TensorTotals

__all__ = ["DesiredRow", "DeviceRow", "DeviceTelemetry", "EnrolmentRow", "Store", "TensorTotals"]


class Store(
    devices.Devices, enrolments.Enrolments, deployments.Deployments, commands.Commands, priors.Decisions,
    telemetry.TelemetryTables,
):  # fmt: skip
    """One connection to all tables; not shared between threads."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises StorageError."""
        tables = (devices, enrolments, deployments, commands, priors, telemetry)
        super().__init__(path, [table.SCHEMA for table in tables])
