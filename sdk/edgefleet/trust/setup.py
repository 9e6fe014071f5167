"""Founding a fleet: every key, the first metadata and the certificate authority, in one step that is whole or undone.

It is done once; what changes afterwards is `rotation`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgefleet import durable
from edgefleet.errors import InputError, StorageError
from edgefleet.protocol.record import Name, Part
from edgefleet.protocol.topics import check_name
from edgefleet.trust.keys import OPERATOR_PREFIX, KeyFolder, check_keys_folder, make_private_folder
from edgefleet.trust.online import ONLINE, TRUST, metadata_folder, online_keys
from edgefleet.trust.pki import create_fleet_pki
from edgefleet.trust.record import Record
from edgefleet.trust.repository import Repository

FLEET_FILE: Final = "fleet.json"
PKI: Final = "pki"
_STAGING: Final = ".founding"
_IGNORE_FILE: Final = ".gitignore"


class _Fleet(Part):
    """Content of fleet.json."""

    fleet: Name


def init(
    fleet: str,
    keys: KeyFolder,
    data: Path,
    *,
    root_keys: int = 3,
    root_threshold: int = 2,
    operators: Sequence[str] = ("default",),
    now: float | None = None,
) -> None:
    """Make the private keys in `keys.folder` and the public half, with the server's own keys, in `data`.

    Raises InputError where there is a fleet already, for names and numbers that make no sense, and for a keys folder
    that would travel with the data or with a git push. An error on the way leaves both folders as they were.
    """
    _check(fleet, keys, data, root_keys, root_threshold, operators)
    now = time.time() if now is None else now
    made_keys = keys.folder.with_name(f".{keys.folder.name}{_STAGING}")
    made_data = data / _STAGING
    missing = _missing(data, keys.folder.parent)
    try:
        for folder in (made_keys, made_data):
            shutil.rmtree(folder, ignore_errors=True)
            make_private_folder(folder)
        _make_keys(fleet, KeyFolder(made_keys, keys.passphrase), made_data, root_keys, root_threshold, operators, now)
        create_fleet_pki(made_keys, made_data, fleet, passphrase=keys.passphrase, now=now)
        for name in (TRUST, PKI):
            # The server's own keys lie there, and its folder may well be in somebody's working tree.
            durable.write_file(made_data / name / _IGNORE_FILE, b"*\n")
        _move_into_place(made_keys, keys.folder, made_data, data)
    except OSError as error:
        remedy = "free the disk, or choose other folders"
        found = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        raise StorageError(f"founding the fleet {fleet}", str(found), remedy) from error
    finally:
        shutil.rmtree(made_keys, ignore_errors=True)
        shutil.rmtree(made_data, ignore_errors=True)
        for folder in missing:
            # Only what is still empty goes.
            with suppress(OSError):
                folder.rmdir()


def _missing(*folders: Path) -> list[Path]:
    """Those folders and their parents that are not there yet, the innermost first."""
    return [one for folder in folders for one in (folder, *folder.parents) if not one.exists()]


def read_fleet(folder: Path) -> str:
    """Name of the fleet that a keys or data folder belongs to; raises InputError."""
    try:
        return _Fleet.model_validate_json((folder / FLEET_FILE).read_bytes()).fleet
    except FileNotFoundError:
        raise InputError(
            f"reading {folder}", f"it holds no {FLEET_FILE}", "name a fleet's folder, or run: edgefleet keys init"
        ) from None
    except OSError as error:
        raise InputError(f"reading {folder / FLEET_FILE}", str(error.strerror), "let this user read it") from error
    except ValueError as error:
        raise InputError(f"reading {folder / FLEET_FILE}", "it does not name a fleet", "restore the file") from error


def _check(
    fleet: str, keys: KeyFolder, data: Path, root_keys: int, root_threshold: int, operators: Sequence[str]
) -> None:
    check_name("fleet", fleet)
    for operator in operators:
        check_name("operator", operator)
    doing = f"founding the fleet {fleet}"
    if not 1 <= root_threshold <= root_keys <= 9:
        found = f"{root_threshold} of {root_keys} root keys"
        raise InputError(doing, found, "choose 1 to 9 root keys, and a threshold of at most as many")
    if not operators or len(set(operators)) != len(operators):
        raise InputError(doing, "operators must be named, each once", "give --operator NAME")
    check_keys_folder(keys.folder, data)
    if (data / FLEET_FILE).exists():
        raise InputError(doing, f"{data} holds the fleet {read_fleet(data)}", "choose another --data")
    for leftover in (keys.folder, data / TRUST, data / PKI):
        if leftover.exists() and (leftover.is_file() or any(leftover.iterdir())):
            remedy = "choose another folder; if an earlier try was cut off, move this one away"
            raise InputError(doing, f"{leftover} is not empty", remedy)


def _make_keys(
    fleet: str,
    keys: KeyFolder,
    data: Path,
    root_keys: int,
    root_threshold: int,
    operators: Sequence[str],
    now: float,
) -> None:
    make_private_folder(data / TRUST)
    repository = Repository.create(
        metadata_folder(data),
        root_signers=[keys.create(f"root-{number}") for number in range(1, root_keys + 1)],
        root_threshold=root_threshold,
        targets_signer=keys.create("targets"),
        release_signer=keys.create("release"),
        operator_keys=[keys.create(OPERATOR_PREFIX + name).public_key for name in operators],
        online_signer=online_keys(data).create(ONLINE),
        now=now,
    )
    Record(keys).keep(repository)
    content = _Fleet(fleet=fleet).model_dump_json().encode() + b"\n"
    for folder in (keys.folder, data):
        durable.write_file(folder / FLEET_FILE, content)


def _move_into_place(made_keys: Path, keys: Path, made_data: Path, data: Path) -> None:
    """The data's name of the fleet comes last: a fleet that has one is whole."""
    if keys.exists():
        keys.rmdir()
    made_keys.rename(keys)
    durable.sync_folder(keys.parent)
    for name in (TRUST, PKI, FLEET_FILE):
        if (data / name).is_dir():
            (data / name).rmdir()
        (made_data / name).rename(data / name)
        durable.sync_folder(data)
