"""The result cache: what a conversion or a run over data gave, kept under a digest of everything that decided it.

Does not know what makes up a key (`cache_key` does), and keeps no latency: that belongs to one host at one time.
Any number of processes may share one: an entry appears by one rename, and is believed only while its digests hold.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet.errors import InputError, StorageError
from edgefleet_converters.environments import CACHE_VARIABLE, cache_folder

LIMIT_VARIABLE = "EDGEFLEET_CACHE_BYTES"
DEFAULT_LIMIT_BYTES = 5 * 10**9

_RECORD = "record.json"
_FILES = "files"
_CHUNK_BYTES = 1 << 20
# A writer is done in minutes: what is older was left by one that was killed.
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One result: its facts as text, and its files by a relative name that is kept, in their order."""

    facts: str
    files: Mapping[str, Path]


class _StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str


class _Record(BaseModel):
    """The JSON below the digest line of an entry's record."""

    model_config = ConfigDict(frozen=True)

    facts: str
    files: tuple[_StoredFile, ...]


class _CorruptError(Exception):
    """An entry does not hold what was put there."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Entries below one folder, the least recently used given up beyond `limit_bytes`; may be sent to any process.

    Keys are hexadecimal digests. A full or failing disk costs hits, never a run.
    """

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def get(self, key: str, into: Path) -> Entry | None:
        """The entry with its files copied to `into`, which must not exist yet; None, and no `into`, on a miss."""
        home = self._home(key)
        try:
            record = _read_record(home / _RECORD)
            files = {stored.name: _restore(home / _FILES / stored.name, into, stored) for stored in record.files}
            os.utime(home)
        except (OSError, _CorruptError) as error:
            shutil.rmtree(into, ignore_errors=True)
            # A folder without all of its files is corrupt too.
            if isinstance(error, (_CorruptError, FileNotFoundError)) and home.exists():
                _drop(home)
            return None
        return Entry(record.facts, files)

    def put(self, key: str, entry: Entry) -> None:
        """Keep copies of an entry's files; the first of two processes with the same key wins."""
        try:
            if sum(path.stat().st_size for path in entry.files.values()) > self.limit_bytes:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        except OSError:
            return
        try:
            with suppress(OSError):
                _write(staged, entry)
                home = self._home(key)
                home.parent.mkdir(exist_ok=True)
                staged.rename(home)
        finally:
            # There is nothing left of it where it was renamed.
            shutil.rmtree(staged, ignore_errors=True)
        self._prune()

    def _home(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _prune(self) -> None:
        """Give up the entries that were used longest ago until the rest fits."""
        entries = sorted(_entries(self.folder))
        total = sum(size_bytes for _, size_bytes, _ in entries)
        for _, size_bytes, home in entries:
            if total <= self.limit_bytes:
                break
            _drop(home)
            total -= size_bytes
        for left in _abandoned(self.folder):
            if time.time() - _modified_s(left) > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def user_cache() -> Cache:
    """The person's own cache; raises InputError (its limit is not a number of bytes) or StorageError."""
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_BYTES)
    if not text.isdecimal():
        remedy = f"set it to a number of bytes, such as {DEFAULT_LIMIT_BYTES}"
        raise InputError(f"reading {LIMIT_VARIABLE}", f"{text!r} is not a whole number", remedy)
    folder = cache_folder() / "results"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"name another folder in {CACHE_VARIABLE}, or use --no-cache"
        raise StorageError(f"making the cache {folder}", error.strerror or str(error), remedy) from error
    return Cache(folder, int(text))


def _read_record(path: Path) -> _Record:
    digest, _, text = path.read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise _CorruptError(path)
    try:
        return _Record.model_validate_json(text)
    except ValidationError as error:
        raise _CorruptError(path) from error


def _write(folder: Path, entry: Entry) -> None:
    """An entry's files, then the record that names them."""
    stored = [_StoredFile(name=name, sha256=_copy(path, folder / _FILES / name)) for name, path in entry.files.items()]
    text = _Record(facts=entry.facts, files=tuple(stored)).model_dump_json().encode()
    (folder / _RECORD).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def _restore(stored: Path, into: Path, record: _StoredFile) -> Path:
    """Copy a file out, and check what was copied: another process may be giving up this very entry."""
    path = into / record.name
    if _copy(stored, path) != record.sha256:
        raise _CorruptError(stored)
    return path


def _copy(source: Path, target: Path) -> str:
    """Copy a file into a folder that is made if need be; gives the sha256 of the bytes that were copied."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _drop(home: Path) -> None:
    """Remove an entry; the rename makes it unfindable at once, and lets only one of two processes do it."""
    aside = home.with_name(f".old-{home.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        home.rename(aside)
    except OSError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each entry was used last, its size in bytes, and where it is."""
    for shard in _children(folder):
        for home in _children(shard):
            if not _is_aside(shard) and not _is_aside(home):
                found = [_size_bytes(Path(inside) / name) for inside, _, names in os.walk(home) for name in names]
                yield _modified_s(home), sum(found), home


def _abandoned(folder: Path) -> Iterator[Path]:
    """What is being written, or removed, or was left so."""
    for shard in _children(folder):
        yield from [shard] if _is_aside(shard) else filter(_is_aside, _children(shard))


def _is_aside(path: Path) -> bool:
    return path.name.startswith(".")


def _children(folder: Path) -> list[Path]:
    """What is in a folder; nothing in one that another process has just removed."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _modified_s(path: Path) -> float:
    """Modification time; 0 for what another process has just removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
