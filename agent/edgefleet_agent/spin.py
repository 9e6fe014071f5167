"""Looking again and again for a moment instead of sleeping: what comes within it saves the time of being woken.

It is given up for a while as soon as it was in vain: with a slow model, a client that takes its time, or no core to
spare, nearly nothing is spent on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SPIN_S = 100e-6
"""To be woken on another core takes 10 to 50 µs."""
PAUSE = 256
"""So many times nothing is looked for after it was in vain: it costs less than half a microsecond each."""
Events = list[tuple[int, int]]
"""Descriptors and what they are ready for, as `select.poll` gives them."""


class Spin:
    """One side's looking for what the other side is about to say."""

    def __init__(self) -> None:
        """Nothing was in vain yet."""
        self._pause = 0

    def found(self, look: Callable[[float], Events]) -> Events:
        """What a poll object's `poll` finds within `SPIN_S`; nothing where it is not tried, or was in vain."""
        if self._pause:
            self._pause -= 1
            return []
        until_s = time.perf_counter() + SPIN_S
        while time.perf_counter() < until_s:
            if found := look(0):
                return found
        self._pause = PAUSE
        return []
