"""The catalogue of known devices: one TOML file per profile in `data/`, and before them those in the user's folder.

Reads only; what this machine is, `detect` finds out.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgefleet_device_profiles.profile import Profile

DATA_FOLDER = Path(__file__).parent / "data"
FOLDER_VARIABLE = "EDGEFLEET_PROFILES"
"""Names the user's own folder of profiles, where no caller gives one."""


class UnknownProfileError(LookupError):
    """No profile has that name; the message lists the names there are."""


class InvalidProfileError(ValueError):
    """A profile's file or folder cannot be used; one line that names it, and the field where there is one."""


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of all profiles, sorted; `folder` is the user's own, by default $EDGEFLEET_PROFILES."""
    return tuple(sorted({name for place in _folders(folder) for name in _files(place)}))


def load(name: str, folder: Path | None = None) -> Profile:
    """Read one profile, the user's before the built-in; raises UnknownProfileError or InvalidProfileError."""
    folders = _folders(folder)
    for place in folders:
        if path := _files(place).get(name):
            return _read(path, folders)
    raise UnknownProfileError(f"{name!r} is not a device profile; there are: {', '.join(names(folder))}")


def read(path: Path) -> Profile:
    """Read a profile from any file; it may extend its neighbours and the built-in ones. Raises InvalidProfileError."""
    return _read(path, (path.parent, DATA_FOLDER))


def _folders(folder: Path | None) -> tuple[Path, ...]:
    """The user's folder, if there is one, and the built-in one."""
    named = os.environ.get(FOLDER_VARIABLE)
    user = folder or (Path(named) if named else None)
    if user is None:
        return (DATA_FOLDER,)
    if not user.is_dir():
        raise InvalidProfileError(f"{user} is not a folder of device profiles")
    return (user, DATA_FOLDER)


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*.toml")}


def _read(path: Path, folders: Sequence[Path]) -> Profile:
    table = _resolved(path, folders, ())
    try:
        profile = Profile.model_validate(table)
    except ValidationError as error:
        found = "; ".join(_said(item["loc"], item["msg"]) for item in error.errors())
        raise InvalidProfileError(f"{path} is not a valid device profile: {found}") from error
    if profile.id != path.stem:
        raise InvalidProfileError(f"{path} holds the profile {profile.id!r}; the file's name must be its id")
    return profile


def _said(location: tuple[int | str, ...], message: str) -> str:
    field = ".".join(str(part) for part in location)
    return f"{field}: {message}" if field else message


def _resolved(path: Path, folders: Sequence[Path], children: tuple[Path, ...]) -> dict[str, Any]:
    """A file's table, merged over that of the profile it extends.

    A parent is looked for in the file's own folder and in those after it, so a user's profile may extend the built-in
    one of its own name, and no file of the user's changes what the built-in ones extend.
    """
    table = _table(path)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise InvalidProfileError(f"{path} is not a valid device profile: extends: it must be the name of a profile")
    chain = (*children, path)
    places = [_files(folder).get(parent) for folder in folders[_rank(path, folders) :]]
    found = next((place for place in places if place is not None and place != path), None)
    if found in chain or (found is None and parent == path.stem):
        circle = " → ".join([*(link.stem for link in chain), parent])
        raise InvalidProfileError(f"{path} is not a valid device profile: extends: a circle, {circle}")
    if found is None:
        raise InvalidProfileError(f"{path} is not a valid device profile: extends: there is no profile {parent!r}")
    return _merged(_resolved(found, folders, chain), table)


def _rank(path: Path, folders: Sequence[Path]) -> int:
    return next(rank for rank, folder in enumerate(folders) if folder == path.parent)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidProfileError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise InvalidProfileError(f"{path} cannot be read: {error.strerror}") from error


def _merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; a list or a value of the child replaces the parent's."""
    merged = {**parent, **child}
    for key in parent.keys() & child.keys():
        if isinstance(parent[key], dict) and isinstance(child[key], dict):
            merged[key] = _merged(parent[key], child[key])
    return merged
