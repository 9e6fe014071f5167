"""The output file: written under another name beside its place, and renamed when all is well.

So a run that fails or is interrupted leaves nothing, and an older file stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefleet.errors import InputError, StorageError


@contextmanager
def replacing(path: Path, source: Path) -> Iterator[Path]:
    """An empty file beside `path`, created at once, that takes its place when the block ends without an error."""
    doing = f"writing {path}"
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _check(path, source, doing)
        partial.touch(exist_ok=False)
    except OSError as error:
        raise _refused(doing, error) from error
    try:
        yield partial
        try:
            partial.replace(path)
        except OSError as error:
            raise _refused(doing, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _check(path: Path, source: Path, doing: str) -> None:
    if path.is_dir():
        raise InputError(doing, "it is a folder", "name a file, such as model.tflite")
    if path.exists() and source.exists() and path.samefile(source):
        raise InputError(doing, "it is the model itself", "name another file")
    if not path.parent.is_dir():
        raise InputError(doing, f"there is no folder {path.parent}", "create it first, or name another one")


def write_bytes(partial: Path, content: bytes) -> None:
    """Fill the file; raises StorageError when the disk refuses."""
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise _refused(f"writing {partial.parent}", error) from error


def _refused(doing: str, error: OSError) -> StorageError:
    return StorageError(doing, f"{error.strerror or error}", "check the folder's permissions and free space")
