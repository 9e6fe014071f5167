"""The file of a bundle: an uncompressed tar with plain files alone, the same bytes for the same content.

Reads only what it writes: a link, a folder, a path of somebody's choice, a size beyond the file or a second file of one
name is refused before anything is unpacked. Format: POSIX.1-2017 pax, ustar interchange format; sizes as GNU tar does.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgefleet.errors import InputError

_BLOCK = tarfile.BLOCKSIZE
MAX_MEMBERS = 10_000
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_AGAIN = "copy it again, or write it again with `edgefleet bundle`"


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file's bytes lie in the tape."""

    name: str
    offset: int
    size_bytes: int


def write(stream: BinaryIO, members: Iterable[tuple[str, Path | bytes]]) -> None:
    """Write files in the order given, without owner and without date; raises OSError."""
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size = len(content) if isinstance(content, bytes) else content.stat().st_size
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        before = stream.tell()
        if isinstance(content, bytes):
            stream.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, stream, 1024 * 1024)
        if stream.tell() - before != info.size:
            raise OSError(0, f"{name} changed while it was copied")
        stream.write(b"\0" * (-info.size % _BLOCK))
    stream.write(b"\0" * 2 * _BLOCK)


def scan(stream: BinaryIO, limit: Callable[[str], int | None], doing: str) -> dict[str, Member]:
    """Where every file lies, by name; `limit` says the largest size of a name in bytes, None for one that is refused.

    Raises InputError for whatever `write` does not write, and OSError.
    """
    found: dict[str, Member] = {}
    for member in _members(stream, os.fstat(stream.fileno()).st_size, doing):
        largest = limit(member.name)
        if largest is None:
            raise _refused(doing, f"a file {_shown(member.name)}")
        if member.size_bytes > largest:
            raise _refused(doing, f"{_shown(member.name)} of {member.size_bytes} bytes")
        if member.name in found:
            raise _refused(doing, f"{_shown(member.name)} twice")
        found[member.name] = member
        if len(found) > MAX_MEMBERS:
            raise _refused(doing, f"more than {MAX_MEMBERS} files")
    return found


def read(stream: BinaryIO, member: Member) -> bytes:
    """Content of a small file; raises OSError."""
    stream.seek(member.offset)
    return stream.read(member.size_bytes)


def unpack(stream: BinaryIO, member: Member, target: Path) -> None:
    """Copy a file out; raises OSError."""
    stream.seek(member.offset)
    with target.open("xb") as copy:
        left = member.size_bytes
        while left and (piece := stream.read(min(left, 1024 * 1024))):
            copy.write(piece)
            left -= len(piece)


def _members(stream: BinaryIO, size_bytes: int, doing: str) -> Iterator[Member]:
    """The files as their headers tell; nothing but zeros may follow the end mark."""
    place = 0
    while True:
        stream.seek(place)
        block = stream.read(_BLOCK)
        if block == b"\0" * _BLOCK:
            break
        info = _header(block, doing)
        if info.type not in _PLAIN:
            raise _refused(doing, f"{_shown(info.name)}, which is no plain file")
        place += _BLOCK
        if info.size < 0:
            raise _refused(doing, f"{_shown(info.name)} of {info.size} bytes")
        if place + info.size > size_bytes:
            raise InputError(doing, f"it is cut off in {_shown(info.name)}", _AGAIN)
        yield Member(info.name, place, info.size)
        place += info.size
        stream.seek(place)
        if stream.read(-place % _BLOCK).strip(b"\0"):
            raise _refused(doing, f"something behind {_shown(info.name)}")
        place += -place % _BLOCK
    rest = stream.read(tarfile.RECORDSIZE + 1)
    if rest.strip(b"\0") or len(rest) > tarfile.RECORDSIZE:
        raise _refused(doing, "something behind its end")


def _header(block: bytes, doing: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
    except tarfile.HeaderError as error:
        found = "it is not a bundle, or it is cut off" if len(block) == _BLOCK else "it is cut off"
        raise InputError(doing, found, _AGAIN) from error


def _refused(doing: str, what: str) -> InputError:
    return InputError(doing, f"it holds {what}", "take no bundle from where this one came from")


def _shown(name: str) -> str:
    """A stranger's text: short, and no control characters of its on a terminal."""
    return ascii(name[:80])
