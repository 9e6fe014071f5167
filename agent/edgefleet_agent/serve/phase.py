"""What a client's connection is doing: the words for it, and nothing more."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """What a connection is doing."""

    IDLE = "idle"
    """Waits for a request's first byte."""
    HEAD = "head"
    """Has a part of a request's head."""
    BODY = "body"
    """Has a head and not all of the body."""
    ANSWERING = "answering"
    """Waits for the answer; nothing is read meanwhile."""
    WRITING = "writing"
    """Has an answer that the client does not take as fast."""
    LENT = "lent"
    """Is answered by the worker itself."""
    LINGERING = "lingering"
    """Has said its last word, and reads on so that the client gets to read it."""
    CLOSED = "closed"
    """Is gone."""
