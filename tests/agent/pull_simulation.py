"""A pull, the hub's own rules and a network between them, on a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, Request, RequestKind
from edgefleet.server.budget import TokenBucket
from edgefleet.server.hub import Hub
from edgefleet.server.hub_work import Piece
from edgefleet_agent.pull import Pull, ranges

DIGEST = "sha256:" + "a" * 64
TICK_S = 0.1
SEGMENT_BYTES = 1460
HUB_TICK_S = 0.005


@dataclass
class Outcome:
    """What a simulated pull came to."""

    seconds: float
    sent_bytes: int
    received_bytes: int
    verified: set[int]
    requests: int
    most_in_flight_s: float
    """Largest amount asked for and not yet here, in seconds of the link's own speed; after the first 5 s."""


class Network:
    """A datagram network: messages are lost, repeated, reordered and damaged each for itself."""

    def __init__(
        self,
        rnd: random.Random,
        *,
        loss: float = 0.0,
        repeat: float = 0.0,
        delay_s: float = 0.2,
        damage: float = 0.0,
        link_bytes_per_s: float = 1e9,
    ) -> None:
        self.link_bytes_per_s = link_bytes_per_s
        self._rnd, self._loss, self._repeat, self._delay_s, self._damage = rnd, loss, repeat, delay_s, damage
        self._free_at = 0.0

    def up(self, now: float) -> list[float]:
        return self._copies(now)

    def down(self, now: float, size: int) -> list[tuple[float, bool]]:
        """(arrival, whether it is whole) of each copy of a piece sent now; the broker queues what the link can't."""
        self._free_at = max(self._free_at, now) + size / self.link_bytes_per_s
        return [(at, self._rnd.random() >= self._damage) for at in self._copies(self._free_at)]

    def _copies(self, now: float) -> list[float]:
        if self._rnd.random() < self._loss:
            return []
        copies = 2 if self._rnd.random() < self._repeat else 1
        return [now + self._delay_s * self._rnd.random() for _ in range(copies)]

    def cut(self) -> None:
        self._free_at = 0.0


class Pipe:
    """One TCP connection: nothing is lost or reordered, a lost segment stops everything behind it for a while."""

    def __init__(self, rnd: random.Random, *, rate_bytes_per_s: float, round_trip_s: float, loss: float = 0.0) -> None:
        self.link_bytes_per_s = rate_bytes_per_s
        self._rnd, self._round_trip_s, self._loss = rnd, round_trip_s, loss
        self._free_at = 0.0

    def up(self, now: float) -> list[float]:
        lost = self._rnd.random() < self._loss
        return [now + self._round_trip_s / 2 + (self._round_trip_s + 0.2 if lost else 0.0)]

    def down(self, now: float, size: int) -> list[tuple[float, bool]]:
        at = max(self._free_at, now)
        for _ in range(-(-size // SEGMENT_BYTES)):
            at += SEGMENT_BYTES / self.link_bytes_per_s + self._repair_s()
        self._free_at = at
        return [(at + self._round_trip_s / 2, True)]

    def _repair_s(self) -> float:
        """A fast retransmission costs a round trip; one in five waits for the timer, which doubles with each loss."""
        if self._rnd.random() >= self._loss:
            return 0.0
        if self._rnd.random() < 0.8:
            return self._round_trip_s
        wait_s, timer_s = 0.0, max(1.0, 2 * self._round_trip_s)
        while True:
            wait_s, timer_s = wait_s + timer_s, 2 * timer_s
            if self._rnd.random() >= self._loss:
                return wait_s

    def cut(self) -> None:
        self._free_at = 0.0

    def http_s(self, size: int) -> float:
        """When the last byte of one HTTP answer would be here: a round trip, and the same connection's work."""
        return self._round_trip_s / 2 + self.down(self._round_trip_s / 2, size)[0][0] - self._round_trip_s / 2


@dataclass(order=True)
class _Event:
    at: float
    number: int
    what: Callable[[], None] = field(compare=False)


class Simulation:
    """One device and one hub."""

    def __init__(
        self,
        blocks: int,
        net: Network | Pipe,
        *,
        piece_bytes: int = BLOCK_BYTES,
        hub_rate: float | None = None,
        cuts: tuple[float, ...] = (),
        hub_away: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`cuts` are times of a lost connection; `hub_away` is (from, until), and it forgets what it had."""
        self.pull = Pull([BLOCK_BYTES] * blocks, range(blocks))
        self.now = 0.0
        self.outcome = Outcome(0.0, 0, 0, set(), 0, 0.0)
        self._blocks = blocks
        self._net = net
        self._piece_bytes, self._hub_rate = piece_bytes, hub_rate
        self._hub = self._new_hub()
        self._away = hub_away or (0.0, 0.0)
        self._rnd = random.Random(seed)
        self._held: dict[int, set[int]] = {}
        self._events: list[_Event] = []
        self._numbers = itertools.count()
        self._connection = 0
        for at in cuts:
            self._later(at, self._cut)
        if hub_away is not None:
            self._later(hub_away[0], self._hub_dies)

    def run(self, limit_s: float) -> Outcome:
        self._later(0.0, self._device_tick)
        self._later(0.0, self._hub_tick)
        while not self.pull.done:
            event = heapq.heappop(self._events)
            self.now = event.at
            assert self.now < limit_s, f"{len(self.outcome.verified)} of {self._blocks} blocks after {self.now:.0f} s"
            event.what()
        self.outcome.seconds = self.now
        return self.outcome

    def _later(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, _Event(at, next(self._numbers), what))

    def _new_hub(self) -> Hub:
        hub = Hub(TokenBucket(self._hub_rate, self.now))
        hub.piece_bytes = self._piece_bytes
        return hub

    def _hub_dies(self) -> None:
        self._hub = self._new_hub()

    def _cut(self) -> None:
        """Everything under way is gone, in both directions."""
        self._connection += 1
        self._net.cut()
        self._hub.forget("pi")
        self.pull.reconnected()
        self._ask()

    def _device_tick(self) -> None:
        self._ask()
        self._later(self.now + TICK_S, self._device_tick)

    def _ask(self) -> None:
        wanted = self.pull.next_request(self.now, self._rnd.random())
        if wanted is None:
            return
        assert 0 < len(wanted) * BLOCK_BYTES <= MAX_CREDIT_BYTES
        assert not self.outcome.verified.intersection(wanted), "a block that is here was asked for"
        self.outcome.requests += 1
        if self.now > 5.0:
            flight_s = self.pull.in_flight_bytes / self._net.link_bytes_per_s
            self.outcome.most_in_flight_s = max(self.outcome.most_in_flight_s, flight_s)
        request = Request(
            req_id=str(self.outcome.requests), kind=RequestKind.BLOCKS, digest=DIGEST,
            blocks=tuple(ranges(wanted)), credit_bytes=len(wanted) * BLOCK_BYTES, fresh=self._is_fresh(),
        )  # fmt: skip
        connection = self._connection
        for at in self._net.up(self.now):
            self._later(at, lambda: self._hub_takes(request, connection))

    def _is_fresh(self) -> bool:
        fresh, self._asked_in = getattr(self, "_asked_in", None) != self.pull.epoch, self.pull.epoch
        return fresh

    def _hub_takes(self, request: Request, connection: int) -> None:
        if connection == self._connection and not self._away[0] <= self.now < self._away[1]:
            assert self._hub.ask("pi", request, self._blocks * BLOCK_BYTES) is None
            self._send()

    def _hub_tick(self) -> None:
        self._send()
        if self._hub_rate is not None:
            self._later(self.now + HUB_TICK_S, self._hub_tick)

    def _send(self) -> None:
        while (piece := self._hub.next_piece(self.now)) is not None:
            self.outcome.sent_bytes += piece.size
            self._deliver(piece)

    def _deliver(self, piece: Piece) -> None:
        connection = self._connection
        for at, whole in self._net.down(self.now, piece.size):
            self._later(at, lambda whole=whole: self._device_takes(piece, connection, whole=whole))  # type: ignore[misc]

    def _device_takes(self, piece: Piece, connection: int, *, whole: bool) -> None:
        if connection != self._connection:
            return
        block = piece.block
        self.outcome.received_bytes += piece.size
        self.pull.arrived(block, piece.size, self.now)
        if block not in self.outcome.verified:
            held = self._held.setdefault(block, set())
            held.add(piece.offset)
            if not whole:
                self._held.pop(block)
                assert self.pull.rejected(block)
            elif len(held) * self._piece_bytes < BLOCK_BYTES:
                self.pull.holds(block, len(held) * self._piece_bytes)
            else:
                self._held.pop(block)
                self.outcome.verified.add(block)
                self.pull.verified(block)
        self._ask()
