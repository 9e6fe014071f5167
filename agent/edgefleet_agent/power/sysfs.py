"""Reads the kernel's small text files: one value each, never waiting for it, every failure in one line of words.

Which files there are is the sensors' business.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

# A page: no attribute of sysfs is longer.
ATTRIBUTE_BYTES = 4096

# What fits into the kernel's 64 bits.
NUMBER = re.compile(r"-?[0-9]{1,20}")

WORDS = {
    errno.ENOENT: "{path} is not there",
    errno.EACCES: "permission: {path} may not be read by this user",
    errno.EPERM: "permission: {path} may not be read by this user",
    errno.EAGAIN: "{path} has no value at the moment",
    errno.ENODATA: "{path} has no value at the moment",
    errno.ENODEV: "the device behind {path} is gone",
    errno.ENXIO: "the device behind {path} is gone",
    errno.ETIMEDOUT: "the device behind {path} does not answer",
    errno.EREMOTEIO: "the device behind {path} does not answer",
}


class UnreadableError(Exception):
    """A sensor says nothing now; the text says why."""


class AbsentError(UnreadableError):
    """This machine has no such sensor."""


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """What an OSError on `path` means."""
    words = WORDS.get(error.errno or 0)
    text = words.format(path=path) if words else f"{path} cannot be read ({error.strerror or error})"
    return AbsentError(text) if error.errno == errno.ENOENT else UnreadableError(text)


def read_text(path: Path, most_bytes: int = ATTRIBUTE_BYTES) -> str:
    """A file's text without its line end; raises UnreadableError, also for a file that would make it wait."""
    try:
        # A driver that has nothing yet, or a pipe in its place, must not hold the loop up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, most_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error
    return content.decode("utf-8", errors="replace").strip("\0\n ")


def read_number(path: Path) -> int:
    """An attribute that is one whole number; raises UnreadableError."""
    text = read_text(path)
    if not NUMBER.fullmatch(text):
        raise UnreadableError(f"{path} holds {text[:20]!r}, not a number")
    return int(text)


def text_or_none(path: Path) -> str | None:
    """An attribute's text, or None where it cannot be read or is empty."""
    try:
        return read_text(path) or None
    except UnreadableError:
        return None


def number_or_none(path: Path) -> int | None:
    """An attribute's number, or None where there is none to be read."""
    try:
        return read_number(path)
    except UnreadableError:
        return None


def find(root: Path, pattern: str) -> list[Path]:
    """Paths below `root` that match, sorted; none where a folder on the way cannot be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []
