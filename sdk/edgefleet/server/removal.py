"""Taking a device out of the fleet: its certificate, its session, and what the broker retains of it.

Every step may be done again: a removal that was cut off is repeated. The store's rows of the device stay.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgefleet.durable import write_private
from edgefleet.errors import InputError, TransportError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from edgefleet.protocol.access import REMOVAL_USER
from edgefleet.protocol.topics import TOPICS, topic_for
from edgefleet.server.store import Store
from edgefleet.trust import broker, issued, pki
from edgefleet.trust.pki_folder import folder_of
from edgefleet.trust.setup import read_fleet

# Long enough for a slow broker, short enough to be worth nothing to a thief.
ACT_LIFE_S = 3600.0
RELOADS_WITHIN_S = 10.0
PROBE_S = 0.1
ANSWERS_WITHIN_S = 5.0

log = logging.getLogger("edgefleet.server.removal")


def remove(data: Path, store: Store, device: str, address: BrokerAddress, *, tls: bool, now: float) -> str | None:
    """Remove a device; returns None, or one line that says what a person must still do.

    Raises InputError for a device that was never enrolled, and TransportError when the broker cannot be reached:
    its certificate is revoked by then, and the command can be given again.
    """
    if store.enrolment(device) is None:
        raise InputError(f"removing {device}", "it is not enrolled", "look at: edgefleet fleet list")
    store.revoke_enrolment(device, now)
    pki.revoke(data, device, now)
    undone = tell_broker(data, address, now=now) if tls else None
    end_session(data, device, address, tls=tls, now=now)
    clear_topics(data, device, address, tls=tls, now=now)
    return undone


def tell_broker(data: Path, address: BrokerAddress, *, now: float) -> str | None:
    """Bring the broker the revocation list and see that it goes by it; returns what is left to do, or None.

    The proof is a certificate of our own, revoked in the same list: once the broker refuses that one, it has read the
    list. A broker that cannot be reached is not told apart here: end_session comes next.
    """
    key, chain, number = pki.issue_short_lived(data, REMOVAL_USER, ACT_LIFE_S, now)
    pki.revoke_number(data, number, now)
    undone = broker.refresh(data, now)
    deadline, wait_s = time.monotonic() + RELOADS_WITHIN_S, PROBE_S
    with _files(data, key, chain) as files:
        while _accepts(address, files, wait_s):
            wait_s *= 2
            if time.monotonic() > deadline:
                return undone or "the broker still accepts revoked certificates: reload it, and try again"
    return None


def revoke_others(data: Path, devices: Mapping[str, str], now: float) -> list[str]:
    """Revoke what else was issued to devices beside the serial number given; returns those that there was some of."""
    folder = folder_of(data)
    revoked = issued.revoked_numbers(folder)
    found = {
        entry.name
        for entry in issued.issued(folder)
        # Without an enrolment it is one of our own, of an hour.
        if entry.enrolment_id and entry.not_after > now and entry.serial_number not in revoked
        and entry.serial_number != devices.get(entry.name, entry.serial_number)
    }  # fmt: skip
    for name in found:
        pki.revoke(data, name, now, keep=devices[name])
    return sorted(found)


def end_session(data: Path, device: str, address: BrokerAddress, *, tls: bool, now: float) -> None:
    """Close a connection that the device holds: a broker lets it stay though its certificate is revoked.

    We connect once under its name, with a certificate of an hour; the broker gives us the session and closes the
    other one. Raises TransportError.
    """
    with _connection(data, device, address, tls=tls, now=now):
        log.info("%s: the session is closed", device)


def clear_topics(data: Path, device: str, address: BrokerAddress, *, tls: bool, now: float) -> None:
    """Take what the broker retains of a device off it, its will included; raises TransportError.

    The broker passes each empty message back to us: then it has done it.
    """
    fleet = read_fleet(data)
    left = {topic_for(fleet, name, device): row.qos for name, row in TOPICS.items() if row.retained}

    def heard(topic: str, payload: bytes, _retained: bool) -> None:
        if not payload:
            left.pop(topic, None)

    with _connection(data, REMOVAL_USER, address, tls=tls, now=now, filters=list(left.items()), heard=heard) as own:
        for topic, qos in list(left.items()):
            own.publish(Outgoing(topic, b"", qos, True))
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while left and time.monotonic() < deadline:
            own.poll(0.1)
    if left:
        raise TransportError(
            f"clearing the topics of {device} on {address}", f"{len(left)} of them were not cleared",
            "write the broker's configuration anew (edgefleet broker config), reload it and try again",
        )  # fmt: skip


@contextmanager
def _connection(
    data: Path, name: str, address: BrokerAddress, *, tls: bool, now: float,
    filters: Sequence[tuple[str, int]] = (), heard: Callable[[str, bytes, bool], None] = lambda *_: None,
) -> Iterator[Connection]:  # fmt: skip
    """A connection under `name`, with a certificate of an hour where there is TLS; raises TransportError."""
    with ExitStack() as stack:
        files = None
        if tls:
            key, chain, _ = pki.issue_short_lived(data, name, ACT_LIFE_S, now)
            files = stack.enter_context(_files(data, key, chain))
        own = Connection(address, Identity(name, name), filters, on_message=heard, on_connected=lambda: None, tls=files)
        own.connect_now()
        stack.callback(own.close)
        yield own


def _accepts(address: BrokerAddress, files: Tls, wait_s: float) -> bool:
    """Whether the broker takes a certificate. In TLS 1.3 it says no after the handshake, with an alert."""
    try:
        with (
            socket.create_connection((address.host, address.port), ANSWERS_WITHIN_S) as plain,
            files.context().wrap_socket(plain, server_hostname=address.host) as channel,
        ):
            channel.settimeout(wait_s)
            return bool(channel.recv(1))
    except TimeoutError:
        # It waits for us to speak.
        return True
    except OSError as error:
        # A broker that cannot be reached shows in the next step.
        log.debug("%s: %s", address, error)
        return False


@contextmanager
def _files(data: Path, key: bytes, chain: bytes) -> Iterator[Tls]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-") as made:
        folder = Path(made)
        write_private(folder / "key.pem", key)
        (folder / "chain.pem").write_bytes(chain)
        ca_file = folder_of(data) / pki.ROOT_FILE
        yield Tls(ca_file=ca_file, certificate_file=folder / "chain.pem", key_file=folder / "key.pem")
