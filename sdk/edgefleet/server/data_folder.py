"""The server's data folder: which file is what, whose fleet it is, and that one server at a time works in it.

What the files hold is known to those who read and write them.
"""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import IO

from edgefleet.errors import BusyError, InputError
from edgefleet.mqtt import Tls
from edgefleet.package.layout import BlobStore
from edgefleet.protocol.topics import check_name

STORE_FILE = "store.sqlite"
LOCK_FILE = "server.lock"
FLEET_FILE = "fleet.json"
LOCK_PATIENCE_S = 1.0


def fleet_of(data: Path) -> str:
    """Name of the fleet that the folder belongs to; raises InputError."""
    doing = f"opening the server's folder {data}"
    try:
        name = json.loads((data / FLEET_FILE).read_bytes())["fleet"]
    except OSError as error:
        raise InputError(
            doing, f"{FLEET_FILE}: {error.strerror}", "run `edgefleet keys init`, or name another --data"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(doing, f"{FLEET_FILE} does not name a fleet", "restore it from a backup") from error
    return check_name("fleet", str(name))


def trust_files(data: Path) -> Path:
    """The TUF metadata that devices ask for."""
    return data / "trust" / "metadata"


def tls_of(data: Path, name: str) -> Tls:
    """Files by which a process of the server's proves that it is `name`."""
    folder = data / "pki"
    return Tls(folder / "ca-chain.crt", folder / f"{name}.crt", folder / f"{name}.key")


def lock_data(data: Path) -> IO[bytes]:
    """Take the data folder for this process; raises BusyError when another server has it."""
    data.mkdir(parents=True, exist_ok=True)
    stream = (data / LOCK_FILE).open("ab")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not _try_lock(stream, fcntl.LOCK_EX):
        # A command that only looks holds it for an instant.
        if time.monotonic() > deadline:
            stream.close()
            raise BusyError(
                f"starting the server on {data}", "another server is running on it", "stop that one, or name another"
            )
        time.sleep(0.05)
    return stream


def is_running(data: Path) -> bool:
    """Whether a server holds the data folder."""
    try:
        with (data / LOCK_FILE).open("rb") as stream:
            return not _try_lock(stream, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def remove_leftovers(data: Path) -> list[str]:
    """Remove what imports that were cut off left among the blobs; returns the names. Raises OSError.

    An import holds a lock on its file for as long as it lives.
    """
    blobs = BlobStore(data)
    blobs.folder.mkdir(parents=True, exist_ok=True)
    removed = []
    for path in blobs.folder.glob(".import-*"):
        with path.open("rb") as stream:
            if _try_lock(stream, fcntl.LOCK_EX):
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed


def _try_lock(stream: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
