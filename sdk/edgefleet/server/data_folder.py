"""The server's data folder: which file is what, whose fleet it is, and that one server at a time works in it.

What the files hold is known to those who read and write them.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import time
from pathlib import Path
from typing import IO

from edgefleet.durable import write_private
from edgefleet.errors import BusyError, InputError
from edgefleet.mqtt import Tls
from edgefleet.package.layout import BlobStore
from edgefleet.protocol.topics import check_name

STORE_FILE = "store.sqlite"
LOCK_FILE = "server.lock"
FLEET_FILE = "fleet.json"
SHARE_GROUP_FILE = "hub-group"
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


def prior_file(data: Path, index_digest: str, name: str) -> Path:
    """What devices of one hardware class found of one package version; `name` is `edgefleet.prior.prior_name`'s."""
    return data / "priors" / f"{index_digest.removeprefix('sha256:')[:32]}-{name}"


def tls_of(data: Path, name: str) -> Tls:
    """Files by which a process of the server's proves that it is `name`."""
    folder = data / "pki"
    return Tls(folder / "ca-chain.crt", folder / f"{name}.crt", folder / f"{name}.key")


def ensure_share_group(data: Path) -> str:
    """`share_group`, made when there is none; raises OSError, InputError."""
    if not (data / SHARE_GROUP_FILE).exists():
        write_private(data / SHARE_GROUP_FILE, f"hubs-{secrets.token_hex(16)}\n".encode())
    return share_group(data)


def share_group(data: Path) -> str:
    """Name of the group in which the hubs share requests; raises InputError.

    It is a secret: mosquitto's access list does not check subscriptions, so whoever knows the name joins the group,
    and the requests that are his turn are lost.
    """
    path = data / SHARE_GROUP_FILE
    try:
        name = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise InputError(
            f"reading {path}", getattr(error, "strerror", None) or "it is not readable", "copy it from the server"
        ) from error
    if re.fullmatch(r"hubs-[0-9a-f]{32}", name) is None:
        raise InputError(f"reading {path}", "it holds no name of a group", "remove it and start the server again")
    return name


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
