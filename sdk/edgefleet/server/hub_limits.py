"""Piece sizes that were found by being disconnected, kept in the data folder by the broker's address.

An MQTT 5 broker says its limit; it has no entry here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from edgefleet import durable

LIMITS_FILE = "hub-limits.json"

log = logging.getLogger("edgefleet.hub")


def remembered_piece_bytes(data: Path, broker: str) -> int | None:
    """What was found for a broker; None when nothing was, or the file cannot be read."""
    return _read(data).get(broker)


def remember_piece_bytes(data: Path, broker: str, piece_bytes: int) -> None:
    """Keep what was found; a disk that refuses costs another disconnect after the next start, no more."""
    try:
        content = json.dumps(_read(data) | {broker: piece_bytes}, sort_keys=True).encode()
        durable.write_file(data / LIMITS_FILE, content + b"\n")
    except OSError as error:
        log.warning("writing %s: %s", data / LIMITS_FILE, error.strerror or error)


def _read(data: Path) -> dict[str, int]:
    try:
        content = json.loads((data / LIMITS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: size for name, size in content.items() if isinstance(size, int)}
