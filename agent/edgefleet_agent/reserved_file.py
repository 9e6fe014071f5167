"""A file that is replaced as a whole without taking more of the disk: a full one does not keep it from being written.

What it said before becomes the room for what it says next. It knows nothing of what is in it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgefleet import durable

RESERVED_BYTES = 16 * 1024
"""Of the file, and of the room beside it: it grows beyond only for what does not fit."""


def replace(path: Path, content: bytes) -> None:
    """Replace a text file, filled up with line breaks: temporary file, fsync, rename, fsync of the folder; OSError.

    A reader, or the next start after a power cut, sees the old file or the new one.
    """
    room, before = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    with os.fdopen(os.open(room, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as stream:
        stream.write(content.ljust(RESERVED_BYTES, b"\n"))
        stream.truncate()
        os.fsync(stream.fileno())
    # A second name keeps what is replaced; where a file system knows none, the next room is taken anew.
    with suppress(OSError):
        before.unlink(missing_ok=True)
        os.link(path, before)
    room.replace(path)
    durable.sync_folder(path.parent)
    with suppress(OSError):
        before.replace(room)
