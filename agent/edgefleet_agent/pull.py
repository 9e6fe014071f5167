"""Which blocks to ask the hubs for, and when: a window of two seconds of what the line carries. Pure.

The clock is an argument and nothing is sent from here. Blocks are numbered over all layers of a variant; what they
hold is `part_file`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, MAX_RANGES
from edgefleet.retry import backoff_s
from edgefleet_agent.line import THIN_BYTES_PER_S, Line

CREDIT_SECONDS = 2.0
# A request may be answered a little later than the last one was.
ROUND_TRIPS_AHEAD = 1.25
# A request asks for this much of the window at least. Where more than a window is on its way, one request for each
# block that came would be more than a hub admits.
REQUEST_SHARE = 8
STALL_S = 2.0
STALL_INTERVALS = 4
STALL_ROUND_TRIPS = 3
STALL_CAP_S = 60.0
# A line of 200 B/s brings a block in five minutes; whatever is slower is silent.
QUIET_CAP_S = 300.0
# With the waits between them, half an hour of a broker that is there and hubs that are not.
MAX_SILENCES = 30
MAX_BAD_PER_BLOCK = 5


class Pull:
    """The window. In flight is at most min(4 MiB, 2 s × measured rate), at least the block that comes next."""

    def __init__(self, sizes: Sequence[int], missing: Iterable[int]) -> None:
        """`sizes` are the bytes of every block, `missing` the blocks wanted, in order."""
        self._sizes = sizes
        # Insertion order is the order of asking; a dict finds and removes in constant time.
        self._todo = dict.fromkeys(missing)
        self._asked: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self._quiet_since = 0.0
        self._held_until = 0.0
        self._probe: tuple[float, int, frozenset[int]] | None = None
        self.line = Line()
        self.in_flight_bytes = 0
        """Bytes asked for that have not come."""
        self.epoch = 0
        """Rises when everything in flight was given up: the next request for each blob replaces the older ones."""
        self.silences = 0
        """Repeats in a row that nothing came in answer to."""

    @property
    def done(self) -> bool:
        """Nothing is missing any more."""
        return not self._todo and not self._asked

    @property
    def gave_up(self) -> bool:
        """Asked again and again, and nothing came."""
        return self.silences > MAX_SILENCES

    @property
    def asked(self) -> list[int]:
        """Blocks in flight."""
        return list(self._asked)

    @property
    def credit_bytes(self) -> int:
        """Bytes that may be in flight now; a single block may be more than that."""
        measured = int(CREDIT_SECONDS * self.line.rate_bytes_per_s) or BLOCK_BYTES
        return max(BLOCK_BYTES, min(MAX_CREDIT_BYTES, measured))

    @property
    def _low_water_bytes(self) -> int:
        """In flight when it is time for the next request: half a window, or what comes in until it is answered."""
        line, credit = self.line, self.credit_bytes
        meanwhile = int(line.rate_bytes_per_s * line.round_trip_s * ROUND_TRIPS_AHEAD)
        return max(credit // 2, min(credit - max(BLOCK_BYTES, credit // REQUEST_SHARE), meanwhile))

    @property
    def stall_s(self) -> float:
        """Silence after which what was asked for counts as lost; doubles with each one in a row, at most 60 s.

        A slow line is not a stall: a block may take as long as the measured (or assumed) rate says.
        """
        line = self.line
        block_s = BLOCK_BYTES / (line.rate_bytes_per_s or THIN_BYTES_PER_S)
        usual_s = max(STALL_INTERVALS * line.interval_s, STALL_ROUND_TRIPS * line.round_trip_s, block_s)
        quiet_s = min(QUIET_CAP_S, max(STALL_S, usual_s))
        return backoff_s(self.silences + 1, quiet_s, max(STALL_CAP_S, quiet_s))

    def want(self, blocks: Iterable[int]) -> None:
        """More blocks to ask for."""
        self._todo |= dict.fromkeys(blocks)

    def follow(self, block: int) -> None:
        """A block came that others asked for: what comes behind it is next to be asked for, and the rest last."""
        if block in self._todo:
            later = [each for each in self._todo if each > block]
            self._todo = dict.fromkeys(later) | self._todo

    def next_request(self, now: float, jitter: float | None = None) -> list[int] | None:
        """Blocks to name when it is time to ask, else None; call `unsent` when the request did not leave.

        `jitter` in 0..1 spreads the repeats of many devices; None draws one.
        """
        if now < self._held_until:
            return None
        if self._asked and now - self._quiet_since > self.stall_s:
            self.silences += 1
            self._lose_all()
            self.line.was_silent()
            # The next silence is measured from here, up to a quarter later than asked for.
            self._quiet_since = now + self.stall_s / 4 * _drawn(jitter)
            return self._take()
        if not self._todo or self.in_flight_bytes > self._low_water_bytes:
            return None
        queued_bytes = self.in_flight_bytes
        if not (chosen := self._take()):
            return None
        if not queued_bytes:
            self._quiet_since = now
            self.line.begins(now)
        if self._probe is None:
            self._probe = (now, queued_bytes, frozenset(chosen))
        return chosen

    def _take(self) -> list[int]:
        free = self.credit_bytes - self.in_flight_bytes
        chosen: list[int] = []
        for block in self._todo:
            size = self._sizes[block]
            if len(chosen) >= MAX_RANGES or (size > free and (chosen or self._asked)):
                break
            chosen.append(block)
            free -= size
        for block in chosen:
            del self._todo[block]
            self._asked[block] = self._sizes[block]
            self.in_flight_bytes += self._sizes[block]
        return chosen

    # What comes in ------------------------------------------------------------------------------------

    def arrived(self, block: int, size_bytes: int, now: float) -> None:
        """A piece of this variant came, wanted or not: the line works."""
        self.line.arrived(size_bytes, now)
        if self._probe is not None and block in self._probe[2]:
            asked_at, queued_bytes, _ = self._probe
            self.line.answered(now - asked_at, queued_bytes)
            self._probe = None
        self._quiet_since = max(now, self._held_until)
        self.silences = 0

    def holds(self, block: int, held_bytes: int) -> None:
        """So much of an incomplete block is here now."""
        if block in self._asked:
            to_come = self._sizes[block] - held_bytes
            self.in_flight_bytes += to_come - self._asked[block]
            self._asked[block] = to_come

    def verified(self, block: int) -> None:
        """The block is on disk."""
        self.in_flight_bytes -= self._asked.pop(block, 0)
        self._todo.pop(block, None)

    def rejected(self, block: int) -> bool:
        """The block came damaged and is next to be asked for; False when it came so too often to go on."""
        self.put_back([block])
        self._bad[block] = self._bad.get(block, 0) + 1
        return self._bad[block] < MAX_BAD_PER_BLOCK

    # What does not come -------------------------------------------------------------------------------

    def busy(self, blocks: Iterable[int], wait_s: float, now: float, jitter: float | None = None) -> None:
        """A hub will not send these; ask for nothing for `wait_s`, and up to half of it longer."""
        self.put_back(blocks)
        self._held_until = now + wait_s * (1 + _drawn(jitter) / 2)
        self._quiet_since = max(self._quiet_since, self._held_until)
        self._probe = None
        self.silences = 0

    def unsent(self) -> None:
        """A request did not leave: everything in flight was over the same connection."""
        self._lose_all()

    def reconnected(self) -> None:
        """What was in flight is gone with the old connection: ask again at once."""
        self.unsent()
        self.line.is_new()
        self.silences, self._held_until = 0, 0.0

    def put_back(self, blocks: Iterable[int]) -> None:
        """These were not asked for after all, or will not come: they are next to be asked for."""
        again = [block for block in blocks if block in self._asked or block in self._todo]
        for block in again:
            self.in_flight_bytes -= self._asked.pop(block, 0)
            self._todo.pop(block, None)
        self._todo = dict.fromkeys(again) | self._todo

    def _lose_all(self) -> None:
        self._todo = dict.fromkeys(sorted(self._asked)) | self._todo
        self._asked.clear()
        self.in_flight_bytes = 0
        self.epoch += 1
        # An answer may be to the older request: no round trip is measured by it (Karn and Partridge, 1987).
        self._probe = None


def ranges(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive blocks as (first, count), in the order given."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and block == found[-1][0] + found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


def _drawn(jitter: float | None) -> float:
    return random.random() if jitter is None else jitter  # noqa: S311 - jitter, not a secret
