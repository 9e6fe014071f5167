"""`edgefleet enroll`: one device, a list of devices, or a signing request made on the device itself.

What an enrolment is, is decided in `trust.enrolment`; this file asks, writes the folders and says what comes next.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefleet.cli import options
from edgefleet.errors import InputError, StorageError, TransportError

if TYPE_CHECKING:
    from edgefleet.mqtt import BrokerAddress

CSR_FILE = "device.csr"

EXAMPLES = """\b
One device:
  edgefleet enroll DEVICE --broker HOST:PORT -o FOLDER
Its key made on the device itself, there and then on the server:
  edgefleet enroll --make-csr DEVICE -o FOLDER
  edgefleet enroll DEVICE --csr device.csr --broker HOST:PORT -o FOLDER
Many:
  edgefleet enroll --batch devices.csv --broker HOST:PORT -o FOLDER
"""
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("enroll", epilog=EXAMPLES)
@click.argument("device", required=False)
@options.data
@click.option("--broker", metavar="HOST:PORT", help="The MQTT broker, as the device will reach it.")
@options.tls
@click.option(
    "-o", "--output", "folder", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="The identity folder to write; with --batch, the folder for all of them.",
)  # fmt: skip
@click.option("--csr", type=_file, metavar="FILE", help="Signing request of a key that stays on the device.")
@click.option("--make-csr", is_flag=True, help="On the device: make its key, and the signing request for --csr.")
@click.option("--batch", type=_file, metavar="FILE.csv", help="Columns: device,hardware_serial (the second optional).")
@click.option("--hardware-serial", metavar="SERIAL", help="Of the board that this identity is meant for.")
@click.option("--again", is_flag=True, help="The device is enrolled: revoke its certificate and make a new one.")
def app(
    device: str | None, data: Path, broker: str | None, folder: Path, csr: Path | None, batch: Path | None,
    hardware_serial: str | None, *, tls: bool, make_csr: bool, again: bool,
) -> None:  # fmt: skip
    """Make devices part of the fleet: one DEVICE, or a list of them."""
    if (device is None) == (batch is None):
        raise click.UsageError("name one DEVICE, or give --batch FILE.csv")
    if make_csr:
        if csr or batch or device is None:
            raise click.UsageError("--make-csr goes with a DEVICE and -o FOLDER only")
        _make_csr(device, folder)
        return
    if broker is None:
        raise click.UsageError("--broker HOST:PORT is missing: where the device reaches the broker")
    if batch is not None:
        if csr or hardware_serial:
            raise click.UsageError("--batch makes the keys here, and takes hardware serials from its file")
        _enroll_many(data, batch, folder, broker, tls=tls, again=again)
        return
    _enroll_one(str(device), data, folder, broker, csr, hardware_serial, tls=tls, again=again)


def _make_csr(device: str, folder: Path) -> None:
    from edgefleet.durable import write_file, write_private  # noqa: PLC0415
    from edgefleet.identity import KEY_FILE  # noqa: PLC0415
    from edgefleet.protocol.topics import check_name  # noqa: PLC0415
    from edgefleet.trust.certificates import make_key_and_csr  # noqa: PLC0415

    check_name("device", device)
    if (folder / KEY_FILE).exists():
        raise InputError(
            f"making a key in {folder}", f"there is one already ({KEY_FILE})", "name another folder, or move it away"
        )
    key_pem, csr_pem = make_key_and_csr(device)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The key last: without one, a try that was cut off is given again.
        write_file(folder / CSR_FILE, csr_pem)
        write_private(folder / KEY_FILE, key_pem)
    except OSError as error:
        raise StorageError(f"making a key in {folder}", f"{error.strerror}", "name another folder") from error
    click.echo(
        f"wrote {folder / KEY_FILE} (it stays here) and {folder / CSR_FILE}: bring the second to the server and run "
        f"there: edgefleet enroll {device} --csr {CSR_FILE} --broker HOST:PORT -o FOLDER"
    )


def _enroll_one(
    device: str, data: Path, folder: Path, broker: str, csr: Path | None, hardware_serial: str | None, *,
    tls: bool, again: bool,
) -> None:  # fmt: skip
    from edgefleet.mqtt import BrokerAddress  # noqa: PLC0415
    from edgefleet.server.data_folder import STORE_FILE  # noqa: PLC0415
    from edgefleet.server.store import Store  # noqa: PLC0415
    from edgefleet.trust.enrolment import check_target, enroll  # noqa: PLC0415

    address = BrokerAddress.parse(broker)
    _check_fleet(data)
    csr_pem = csr.read_bytes() if csr else None
    check_target(folder, csr_pem, again=again)
    enrolled = enroll(
        data, Store(data / STORE_FILE), device, host=address.host, port=address.port, tls=tls, now=time.time(),
        csr_pem=csr_pem, again=again, hardware_serial=hardware_serial,
    )  # fmt: skip
    enrolled.write(folder)
    key = "its key stays where it was made" if csr else "the folder holds its key: bring it there by a safe way"
    click.echo(f"enrolled {device} in {folder}, until {_day(enrolled.not_after)}; {key}")
    if again and tls:
        _put_off(data, address, {device: enrolled.serial_number})


def _enroll_many(data: Path, batch: Path, folder: Path, broker: str, *, tls: bool, again: bool) -> None:
    from edgefleet.identity import BrokerEntry  # noqa: PLC0415
    from edgefleet.mqtt import BrokerAddress  # noqa: PLC0415
    from edgefleet.server.data_folder import STORE_FILE  # noqa: PLC0415
    from edgefleet.server.store import Store  # noqa: PLC0415
    from edgefleet.trust.batch import enroll_batch, read_rows  # noqa: PLC0415

    address = BrokerAddress.parse(broker)
    _check_fleet(data)
    try:
        rows = read_rows(batch.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"reading {batch}", "it is not UTF-8", "save it as UTF-8") from error
    entry = BrokerEntry(host=address.host, port=address.port, tls=tls)
    store, done, failed = Store(data / STORE_FILE), dict[str, str](), 0
    for outcome in enroll_batch(data, store, rows, folder, entry, now=time.time(), again=again):
        line = f"line {outcome.row.number}, {outcome.row.device}: "
        click.echo(line + (f"enrolled in {outcome.folder}" if outcome.error is None else outcome.error))
        failed += outcome.error is not None
        done |= {} if outcome.serial_number is None else {outcome.row.device: outcome.serial_number}
    if again and tls and done:
        _put_off(data, address, done)
    if failed:
        raise InputError(
            f"enrolling the devices of {batch}", f"{failed} of {len(rows)} were not enrolled",
            "mend the lines named and give them again",
        )  # fmt: skip


def _check_fleet(data: Path) -> None:
    """No store is made in a folder that is no server's."""
    from edgefleet.trust.setup import read_fleet  # noqa: PLC0415

    read_fleet(data)


def _put_off(data: Path, address: BrokerAddress, devices: dict[str, str]) -> None:
    """Whoever still holds an old certificate of these devices is refused, and is disconnected if he is connected.

    `devices` are names with the serial number of the one certificate that counts from now on.
    """
    from edgefleet.server import removal  # noqa: PLC0415

    now = time.time()
    try:
        undone = removal.tell_broker(data, address, now=now)
        for device in devices:
            removal.end_session(data, device, address, tls=True, now=now)
        # A session that was still open may have had its certificate renewed in the new enrolment's name.
        if escaped := removal.revoke_others(data, devices, now):
            undone = removal.tell_broker(data, address, now=now)
            for device in escaped:
                removal.end_session(data, device, address, tls=True, now=now)
    except TransportError as error:
        undone = f"the old certificates are revoked, and the broker does not know it yet ({error})"
    click.echo("the old certificates are refused by the broker" if undone is None else undone)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
