"""The files of the TUF repository on disk: names with versions, one writer at a time, each file whole or not there.

It neither signs nor verifies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from edgefleet import durable
from edgefleet.errors import InputError, StorageError
from edgefleet.trust.roles import TIMESTAMP

KEPT_VERSIONS: Final = 8
"""Of files with a newer version: a device in the middle of a refresh still finds those that it was told of."""


class MetadataFiles:
    """`N.role.json` and `timestamp.json` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock_depth = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time, over processes; may be nested in one process."""
        if self._lock_depth:
            yield
            return
        with self._open_lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock_depth += 1
            try:
                yield
            finally:
                self._lock_depth -= 1

    def _open_lock(self) -> IO[str]:
        try:
            return (self.folder / ".lock").open("w")
        except OSError as error:
            doing = f"locking the trust metadata in {self.folder}"
            raise StorageError(doing, f".lock: {error.strerror}", "let this user write there") from error

    @staticmethod
    def name(role: str, version: int) -> str:
        """File name of a version of a role; there is one timestamp only."""
        return f"{role}.json" if role == TIMESTAMP else f"{version}.{role}.json"

    def versions(self, role: str) -> list[int]:
        """Versions on disk, newest first; raises InputError."""
        ending = f".{role}.json"
        try:
            found = [path.name.removesuffix(ending) for path in self.folder.iterdir() if path.name.endswith(ending)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreadable(str(error.strerror), "let this user read it") from error
        return sorted((int(number) for number in found if number.isdecimal()), reverse=True)

    def read(self, name: str) -> bytes:
        """Content of a file; raises InputError."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            denied = isinstance(error, PermissionError)
            remedy = "let this user read it" if denied else "restore the folder from a backup"
            raise self._unreadable(f"{name}: {error.strerror}", remedy) from error

    def _unreadable(self, found: str, remedy: str) -> InputError:
        return InputError(f"reading the trust metadata in {self.folder}", found, remedy)

    def write(self, name: str, content: bytes) -> None:
        """Put a file in its place; raises StorageError."""
        try:
            durable.write_file(self.folder / name, content)
        except OSError as error:
            remedy = "free the disk and run it again"
            raise StorageError(f"writing {self.folder / name}", str(error.strerror), remedy) from error

    def remove_former(self, roles: Sequence[str]) -> None:
        """Remove versions that no device can still be asking for."""
        for role in roles:
            for version in self.versions(role)[KEPT_VERSIONS:]:
                (self.folder / self.name(role, version)).unlink(missing_ok=True)
