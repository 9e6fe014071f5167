"""Where an agent connects, as whom, and with which files: its identity's, as its settings bend them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from agent.agent_lab import DEVICE, Fleet, write_settings
from edgefleet import identity as identities
from edgefleet.errors import TransportError
from edgefleet.mqtt import BrokerAddress, Connection, Outgoing
from edgefleet_agent import broker_link
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.settings import Broker, Download, Settings


def opened(folder: Path, settings: Settings) -> Connection:
    return broker_link.open_connection(
        identities.load(folder / "identity"),
        settings,
        on_message=lambda *_: None,
        on_connected=lambda: None,
        will=lambda: Outgoing("x", b"", 1, retained=True),
    )


def test_the_identity_says_where_and_the_settings_may_say_otherwise(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", port=8883)
    settings = write_settings(tmp_path)
    for broker, wanted in (
        (Broker(), BrokerAddress("127.0.0.1", 8883)),
        (Broker(port=1), BrokerAddress("127.0.0.1", 1)),
        (Broker(host="pi.local"), BrokerAddress("pi.local", 8883)),
    ):
        assert opened(tmp_path, settings.model_copy(update={"broker": broker})).address == wanted


def test_a_renewed_certificate_counts_from_the_next_attempt_on(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity")
    own = identities.load(tmp_path / "identity")
    tls = opened(tmp_path, write_settings(tmp_path))._tls
    assert tls is not None
    assert isinstance(tls.context(), ssl.SSLContext)
    identities.write_renewed(own, b"", b"no certificate")
    with pytest.raises(TransportError, match=r"renewed\.pem"):
        tls.context()


def test_without_tls_there_are_no_files(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", tls=False)
    settings = write_settings(tmp_path)
    assert opened(tmp_path, settings)._tls is None
    assert broker_link.http_access(identities.load(tmp_path / "identity"), settings) == HttpAccess(
        None, broker_host="127.0.0.1"
    )


def test_http_is_with_the_devices_certificate_or_never(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity")
    own, settings = identities.load(tmp_path / "identity"), write_settings(tmp_path)
    access = broker_link.http_access(own, settings.model_copy(update={"download": Download(base_url="https://x")}))
    assert access == HttpAccess("https://x", own.ca_file, own.certificate_file, own.key_file, own.host)
    assert own.device == DEVICE
    never = settings.model_copy(update={"download": Download(http="never", base_url="https://x")})
    assert broker_link.http_access(own, never) is None
