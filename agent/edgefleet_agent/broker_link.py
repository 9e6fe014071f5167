"""How this device reaches its broker and its blobs: addresses and files of its identity, as the settings bend them.

Certificates are looked up at each use: a renewal replaces them while the agent runs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from edgefleet.identity import DeviceIdentity
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from edgefleet.protocol import topics
from edgefleet.protocol.topics import Role
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.settings import Settings


@dataclass(frozen=True, slots=True)
class _RenewableTls(Tls):
    identity: DeviceIdentity

    def context(self) -> ssl.SSLContext:
        """A context of the certificate that there is now."""
        return _files(self.identity).context()


def open_connection(
    identity: DeviceIdentity,
    settings: Settings,
    *,
    on_message: Callable[[str, bytes, bool], None],
    on_connected: Callable[[], None],
    will: Callable[[], Outgoing],
) -> Connection:
    """The connection of a device; the arguments are those of Connection."""
    host, port = settings.broker.host or identity.host, settings.broker.port or identity.port
    files = _files(identity)
    tls = _RenewableTls(files.ca_file, files.certificate_file, files.key_file, identity) if identity.tls else None
    return Connection(
        BrokerAddress(host, port),
        Identity(identity.device, identity.device),
        topics.filters_read_by(Role.DEVICE, identity.fleet, identity.device),
        on_message=on_message,
        on_connected=on_connected,
        will=will,
        tls=tls,
    )


def http_access(identity: DeviceIdentity, settings: Settings) -> HttpAccess | None:
    """How blobs may be had over HTTP; None: never."""
    if settings.download.http == "never":
        return None
    host = settings.broker.host or identity.host
    if not identity.tls:
        return HttpAccess(settings.download.base_url, broker_host=host)
    files = _files(identity)
    return HttpAccess(settings.download.base_url, files.ca_file, files.certificate_file, files.key_file, host)


def _files(identity: DeviceIdentity) -> Tls:
    return Tls(identity.ca_file, identity.certificate_file, identity.key_file)
