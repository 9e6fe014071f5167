"""Every error that a person sees: one root, few leaves, one line of text each.

Adapters translate foreign exceptions into these at the edge; nothing below the edge prints.

    EdgefleetError
    ├── InputError          a file, flag or data set of the person's own is not usable
    ├── UnsupportedError    the input is fine, but this version cannot do that with it
    ├── MissingExtraError   an optional dependency is not installed
    ├── GateError           no variant is good enough to ship
    ├── IntegrityError      bytes do not match their digest
    ├── StorageError        the disk refused (full, read-only, broken)
    ├── TransportError      the broker or the server cannot be reached, or refused us
    ├── BusyError           somebody else holds what we need
    └── TrustError          a signature, a certificate or signed metadata is not to be trusted
"""

from __future__ import annotations

from typing import ClassVar

MAX_QUOTED_CHARS = 400


def one_line(text: str) -> str:
    """Text of a peer's making, fit for a terminal and a log: whatever is no printable character is written out.

    A line break would forge a second line, an escape sequence write on a person's screen.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def short_line(text: str) -> str:
    """`one_line` of what quotes a peer's own words: no more of it than a person reads."""
    return one_line(text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…")


class EdgefleetError(Exception):
    """Root of the tree: says what was being done, to what, what was found, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, doing: str, found: str, remedy: str) -> None:
        """Each argument is a phrase without a final full stop; all three are shown on one line."""
        self.doing = doing
        self.found = found
        self.remedy = remedy
        super().__init__(f"{doing}: {found}; {remedy}")


class InputError(EdgefleetError):
    """A file, flag or data set that the person gave is not usable as it is."""

    exit_code = 2


class UnsupportedError(EdgefleetError):
    """The input is well formed, but holds something that this version cannot handle."""

    exit_code = 2


class MissingExtraError(EdgefleetError):
    """An optional dependency is needed and is not installed; the remedy names the extra."""

    exit_code = 2

    def __init__(self, doing: str, module: str, extra: str) -> None:
        super().__init__(
            doing, f"the Python package {module} is not installed", f"run: pip install 'edgefleet[{extra}]'"
        )


class GateError(EdgefleetError):
    """Variants were made, but none passed the gate for a profile that was asked for."""

    exit_code = 3


class IntegrityError(EdgefleetError):
    """Bytes do not match the digest that names them; they are never used."""

    exit_code = 4


class StorageError(EdgefleetError):
    """The disk refused: full, read-only, or failing."""

    exit_code = 5


class TransportError(EdgefleetError):
    """The broker or the server cannot be reached, or refused the connection."""

    exit_code = 6


class BusyError(EdgefleetError):
    """Another process or device already holds the thing that was asked for."""

    exit_code = 7


class TrustError(EdgefleetError):
    """A signature, a certificate or signed metadata is not to be trusted; nothing was done with what it covers."""

    exit_code = 8
