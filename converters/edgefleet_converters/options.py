"""What the commands of packaging share on their command lines: shapes, sizes, and the device profiles.

Loads nothing that costs time before it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgefleet.errors import InputError

if TYPE_CHECKING:
    from edgefleet_device_profiles.profile import Profile


def read_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`NAME=1,3,224,224` by name; raises InputError."""
    pairs = read_pairs("--shape", texts)
    return {name: tuple(_size("--shape", name, part) for part in text.split(",")) for name, text in pairs.items()}


def read_dims(texts: Sequence[str]) -> dict[str, int]:
    """`SYMBOL=N` by symbol; raises InputError."""
    return {name: _size("--dim", name, text) for name, text in read_pairs("--dim", texts).items()}


def read_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts; a name may hold "=" itself."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign or not name or not value:
            raise InputError(f"reading {option} {text}", "it is not NAME=VALUE", f"write {option} NAME=VALUE")
        if name in found:
            raise InputError(f"reading {option} {text}", f"{name!r} is given twice", "give it once")
        found[name] = value
    return found


def _size(option: str, name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"reading {option} {name}={text}", f"{text!r} is not a size", "write whole numbers from 1")
    return int(text)


def load_profiles(names: Sequence[str]) -> tuple[Profile, ...]:
    """Profiles by name, each once; raises InputError for one that is not known, or whose file is not valid."""
    from edgefleet_device_profiles import catalogue  # noqa: PLC0415 - pydantic takes longer than a --help

    doing = "reading the profiles"
    try:
        return tuple(catalogue.load(name) for name in dict.fromkeys(names))
    except catalogue.UnknownProfileError as error:
        unknown = next(name for name in names if name not in catalogue.names())
        known = ", ".join(catalogue.names())
        raise InputError(doing, f"there is no {unknown!r}", f"choose from: {known}") from error
    except catalogue.InvalidProfileError as error:
        raise InputError(doing, str(error), "correct the file") from error
