"""A broker on a free loopback port: mosquitto with our generated configuration, else amqtt.

mosquitto tells clients apart by certificate; amqtt, and mosquitto where nobody wants certificates, by name only.
"""

from __future__ import annotations

import getpass
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgefleet.errors import MissingExtraError, TransportError
from edgefleet.trust import broker as broker_files
from edgefleet_demo.processes import Process, ProcessGroup, free_port

LISTENS_AFTER_S = 10.0
HOSTS = ("127.0.0.1", "localhost")
# Debian installs it where only root's PATH looks.
EXTRA_PATHS = "/usr/sbin:/usr/local/sbin"


class BrokerKind(StrEnum):
    """Which broker."""

    MOSQUITTO = "mosquitto"
    """Eclipse mosquitto, from the system's packages."""
    AMQTT = "amqtt"
    """Pure Python, from the demo extra: 15 times mosquitto's processor time, fit for loopback only."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that can be stopped and started again on the same port."""

    kind: BrokerKind
    port: int
    command: tuple[str, ...]
    tls: bool

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self, group: ProcessGroup) -> Process:
        """Start it and wait until it listens; raises TransportError when it does not."""
        process = group.start("broker", self.command)
        deadline = time.monotonic() + LISTENS_AFTER_S
        while process.exit_code is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.02)
        raise TransportError(
            f"starting {self.kind} on {self.address}", process.last_line(), "look at broker.log for the rest"
        )


def find_mosquitto() -> str | None:
    """Path of mosquitto, or None where it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=EXTRA_PATHS)


def prepare(folder: Path, data: Path, fleet: str, kind: BrokerKind | None = None, *, tls: bool = True) -> Broker:
    """Write a broker's configuration to `folder`; `kind` None means mosquitto where it is, else amqtt.

    `data` is the server's folder, with the fleet's certificates. amqtt never uses any. Raises MissingExtraError when
    neither is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    mosquitto = find_mosquitto()
    if kind is BrokerKind.AMQTT or (kind is None and mosquitto is None):
        command = (sys.executable, "-m", "edgefleet_demo.amqtt_broker", str(port))
        return Broker(BrokerKind.AMQTT, port, command, tls=False)
    if mosquitto is None:
        raise MissingExtraError("starting mosquitto", "mosquitto (a system package)", "demo")
    # Started by root, mosquitto would become the user `mosquitto`, who cannot read our folder: name our own.
    user = getpass.getuser()
    if tls:
        configuration = broker_files.write(
            data, folder, fleet, hosts=HOSTS, port=port, user=user, now=time.time(), listen=HOSTS[0]
        )
    else:
        configuration = broker_files.write_open(folder, fleet, port=port, user=user)
    return Broker(BrokerKind.MOSQUITTO, port, (mosquitto, "-c", str(configuration)), tls=tls)
