"""The files of the TUF repository on disk: names with versions, one writer at a time, each file whole or not there.

It neither signs nor verifies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock_depth += 1
            try:
                yield
            finally:
                self._lock_depth -= 1

    @staticmethod
    def name(role: str, version: int) -> str:
        """File name of a version of a role; there is one timestamp only."""
        return f"{role}.json" if role == TIMESTAMP else f"{version}.{role}.json"

    def versions(self, role: str) -> list[int]:
        """Versions on disk, newest first."""
        numbers = (path.name.removesuffix(f".{role}.json") for path in self.folder.glob(f"*.{role}.json"))
        return sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)

    def read(self, name: str) -> bytes:
        """Content of a file; raises InputError."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"reading the trust metadata in {self.folder}",
                f"{name}: {error.strerror}",
                "restore the folder from a backup",
            ) from error

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
