"""Enrolment of many devices from a CSV file: one identity folder each.

A row that cannot be enrolled is named and leaves nothing behind; the others are enrolled all the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefleet.errors import EdgefleetError, InputError
from edgefleet.identity import BrokerEntry
from edgefleet.protocol.topics import check_name
from edgefleet.trust.enrolment import EnrolmentStore, check_target, enroll

COLUMNS = ("device", "hardware_serial")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file that names a device; `number` counts the file's lines from 1."""

    number: int
    device: str
    hardware_serial: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row."""

    row: Row
    folder: Path
    error: str | None
    serial_number: str | None = None
    """Of the certificate that it has now; None where there is an error."""


def read_rows(text: str) -> list[Row]:
    """Parse `device[,hardware_serial]` with a header; raises InputError for another header and for no CSV."""
    doing, wanted = "reading the list of devices", f"write {','.join(COLUMNS)} and a line each"
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=None), skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise InputError(doing, f"line {reader.line_num}: {error}", wanted) from error
    filled = [(number, cells) for number, cells in lines if any(cells)]
    if len(filled) < 2:
        raise InputError(doing, "it names none", wanted)
    header = filled[0][1]
    if header != list(COLUMNS[: len(header)]):
        raise InputError(doing, f"its header is {','.join(header)}", wanted)
    return [_row(number, cells) for number, cells in filled[1:]]


def _row(number: int, cells: list[str]) -> Row:
    if len(cells) > len(COLUMNS):
        # A cell too many is told by a name that no device may have.
        return Row(number, ",".join(cells), None)
    return Row(number, cells[0], cells[1] or None if len(cells) == len(COLUMNS) else None)


def enroll_batch(
    data: Path, store: EnrolmentStore, rows: list[Row], folder: Path, broker: BrokerEntry, *, now: float,
    again: bool = False,
) -> Iterator[Outcome]:  # fmt: skip
    """Enrol row by row into `folder`/DEVICE; yields each row's outcome when it is done."""
    seen: set[str] = set()
    for row in rows:
        target = folder / row.device
        try:
            if row.device in seen:
                raise InputError("reading the list of devices", f"{row.device} is named twice", "name it once")
            seen.add(row.device)
            check_name("device", row.device)
            check_target(target, None, again=again)
            enrolled = enroll(
                data, store, row.device, host=broker.host, port=broker.port, tls=broker.tls, now=now, again=again,
                hardware_serial=row.hardware_serial,
            )  # fmt: skip
            enrolled.write(target)
        except EdgefleetError as error:
            yield Outcome(row, target, str(error))
        else:
            yield Outcome(row, target, None, enrolled.serial_number)
