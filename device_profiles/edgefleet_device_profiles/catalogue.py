"""The catalogue of known devices: one TOML file per profile in `data/`.

Reads only; what this machine is, `detect` finds out.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from edgefleet_device_profiles.profile import Profile

DATA_FOLDER = Path(__file__).parent / "data"


class UnknownProfileError(LookupError):
    """No profile has that name; the message lists the names there are."""


def names() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(path.stem for path in DATA_FOLDER.glob("*.toml")))


def load(name: str) -> Profile:
    """Read one profile; raises UnknownProfileError, or ValueError when its file is not valid."""
    if name not in names():
        raise UnknownProfileError(f"{name!r} is not a device profile; there are: {', '.join(names())}")
    path = DATA_FOLDER / f"{name}.toml"
    try:
        profile = Profile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"{path.name} is not a valid device profile: {error}") from error
    if profile.id != name:
        raise ValueError(f"{path.name} holds the profile {profile.id!r}; the file's name must be its id")
    return profile
