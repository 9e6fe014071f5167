"""Results in a file, one JSON object a line. At its limit it becomes NAME.1, in the place of an older one.

Nothing is flushed to the disk by force: a power cut costs the last lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def open_sink(settings: Mapping[str, Any]) -> JsonLines:
    """Append to `path`, `most_mb` at most; raises OSError."""
    return JsonLines(Path(settings["path"]), settings["most_mb"] * 1_000_000)


class JsonLines:
    """One file; with the one before it, twice `most_bytes` at most."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        """Open; raises OSError."""
        self._path = path
        self._most_bytes = most_bytes
        self._stream = self._open()

    def _open(self) -> IO[bytes]:
        # Whole lines at a time: a reader that follows the file sees no half of one.
        return self._path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Append a line; raises OSError."""
        content = f"{line}\n".encode()
        if self._stream.tell() and self._stream.tell() + len(content) > self._most_bytes:
            self._stream.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._stream = self._open()
        written = self._stream.write(content)
        if written != len(content):
            # A full disk took a part: the next line must not stand behind it.
            self._stream.truncate(self._stream.tell() - written)
            raise OSError(f"the disk took {written} of {len(content)} bytes")

    def turn(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
