"""What time it is, and how far that can be believed: stamps of this boot.

It sets no clock. Metadata's own rule for a clock that lies in the past is in `trust_session`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from edgefleet.protocol.measurements import Clock, Stamp

_TIME_ERROR = 5
# struct timex is 208 bytes on 64-bit machines and fewer on 32-bit ones; with modes = 0 nothing is set.
_TIMEX_BYTES = 512


def follows_a_time_server() -> bool:
    """Whether the kernel says so (adjtimex(2): TIME_ERROR stands for STA_UNSYNC); False where it does not answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    state: int = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return state >= 0 and state != _TIME_ERROR


class StampClock:
    """Makes stamps of moments of this boot."""

    def __init__(
        self, boot_id: str, floor: Callable[[], float], is_synced: Callable[[], bool] = follows_a_time_server
    ) -> None:
        """`floor` gives the Unix time that is certainly past, as far as this device knows."""
        self._boot_id = boot_id
        self._floor = floor
        self._is_synced = is_synced

    def stamp(self, monotonic_s: float) -> Stamp:
        """The moment at `monotonic_s` of this boot, told by the wall clock as it goes now."""
        wall_s = time.time() - (time.monotonic() - monotonic_s)
        floor_s = self._floor()
        clock = Clock.SYNCED if self._is_synced() else Clock.UNSYNCED
        if wall_s < floor_s:
            wall_s, clock = floor_s, Clock.FLOOR
        return Stamp(boot_id=self._boot_id, monotonic_s=monotonic_s, wall_s=wall_s, clock=clock)
