"""A broker of the house, beside the fleet's: inputs may come from one of its topics, and results may go to one.

Names and passwords, no certificates. Never the fleet's own connection: nothing here can speak for the device.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress, Connection, Identity


def connect(
    broker: Mapping[str, Any], filters: Sequence[tuple[str, int]], on_message: Callable[[str, bytes, bool], None]
) -> Connection:
    """A connection that its user polls; raises InputError for a password file that cannot be read.

    `broker` has host, port, user and password_file.
    """
    user, password_file = broker["user"], broker["password_file"]
    client_id = f"edgefleet-{os.getpid()}-{secrets.token_hex(4)}"
    identity = Identity(client_id, user or "", None if password_file is None else _password(Path(password_file)))
    return Connection(
        BrokerAddress(broker["host"], broker["port"]), identity, list(filters), on_message=on_message,
        on_connected=lambda: None,
    )  # fmt: skip


def _password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise InputError(f"reading the password file {path}", found, "name a text file that this user reads") from error
