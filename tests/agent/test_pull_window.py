"""What a pull asks for and when, on a clock set by hand, against the hub's own rules and a bad network."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, Request, RequestKind
from edgefleet.server.hub import Hub, TokenBucket
from edgefleet_agent.download import ASSUMED_BYTES_PER_S, STALL_CAP_S, STALL_S, Pull, ranges


def named(asked: list[tuple[int, int]]) -> list[int]:
    return [first + step for first, count in asked for step in range(count)]


def asks(pull: Pull, now: float, jitter: float = 0.0) -> tuple[list[int], bool] | None:
    wanted = pull.next_request(now, jitter)
    return None if wanted is None else (named(wanted[0]), wanted[1])


def measured(blocks: Iterable[int], rate_bytes_per_s: float = 2.0 * BLOCK_BYTES) -> Pull:
    """A pull on a line of known speed; by default its window is four blocks."""
    pull = Pull(blocks, 0.0)
    pull._rate_bytes_per_s = rate_bytes_per_s
    return pull


def test_the_first_request_is_one_block_and_fresh() -> None:
    """Nothing is known of the line yet: a whole window would block a thin one for minutes."""
    pull = Pull(range(100), 0.0)
    assert pull.next_request(0.0) == ([(0, 1)], True)
    assert pull.next_request(0.0) is None
    assert not pull.done


def test_the_window_opens_with_the_measured_rate() -> None:
    pull, now = Pull(range(1000), 0.0), 0.0
    asked = asks(pull, now)
    sizes: list[int] = []
    while asked is not None and len(sizes) < 12:
        for block in asked[0]:
            now += 0.02
            pull.received(block, True, BLOCK_BYTES, now)
        asked = asks(pull, now)
        sizes.append(len(asked[0]) if asked else 0)
    assert sizes[0] >= 1
    # 60 KiB every 20 ms are 3 MB/s: two seconds of it are more than the 4 MiB that may be in flight.
    assert sizes[-1] == MAX_CREDIT_BYTES // BLOCK_BYTES


def test_the_next_request_comes_when_half_the_window_is_free() -> None:
    pull = measured([0, 1, 2, 3, 10, 11, 20])
    assert asks(pull, 0.0) == ([0, 1, 2, 3], True)
    pull.received(0, True, BLOCK_BYTES, 0.01)
    assert asks(pull, 0.01) is None
    pull.received(3, True, BLOCK_BYTES, 0.02)
    assert pull.next_request(0.02) == ([(10, 2)], False)
    assert asks(pull, 0.02) is None


def test_pieces_of_a_block_free_nothing_until_it_is_whole() -> None:
    pull = Pull(range(8), 0.0)
    asks(pull, 0.0)
    for _ in range(16):
        pull.received(0, None, 1, 0.01)
    assert asks(pull, 0.01) is None


def test_nothing_missing_is_done() -> None:
    pull = Pull([], 0.0)
    assert pull.done
    assert pull.next_request(0.0) is None
    assert pull.next_request(1e6) is None


@pytest.mark.parametrize(("rate", "blocks"), [(1e3, 1), (300_000.0, 9), (1e9, MAX_CREDIT_BYTES // BLOCK_BYTES)])
def test_the_window_is_two_seconds_of_the_measured_rate_within_bounds(rate: float, blocks: int) -> None:
    pull, now, rounds = Pull(range(4), 0.0), 0.0, 0
    while now < 1.0 or rounds < 10:
        rounds += 1
        now += max(BLOCK_BYTES / rate, 0.0011)
        for _ in range(max(1, round(0.0011 * rate / BLOCK_BYTES))):
            pull.received(0, None, BLOCK_BYTES, now)
    assert pull.credit_bytes // BLOCK_BYTES == pytest.approx(blocks, abs=1)
    assert BLOCK_BYTES <= pull.credit_bytes <= MAX_CREDIT_BYTES


def test_a_window_is_a_request_that_the_hub_accepts() -> None:
    pull, hub = Pull(range(500), 0.0), Hub(TokenBucket(None, 0.0))
    pull._rate_bytes_per_s = 1e9
    wanted = pull.next_request(0.0)
    assert wanted is not None
    blocks = named(wanted[0])
    request = Request(
        req_id="1", kind=RequestKind.BLOCKS, digest="sha256:" + "a" * 64, blocks=tuple(wanted[0]),
        credit_bytes=len(blocks) * BLOCK_BYTES, fresh=wanted[1],
    )  # fmt: skip
    assert hub.ask("pi", request, 500 * BLOCK_BYTES) is None
    assert len(list(iter(lambda: hub.next_piece(0.0), None))) == len(blocks) == MAX_CREDIT_BYTES // BLOCK_BYTES


# Silence ----------------------------------------------------------------------------------------------


def test_silence_asks_again_for_the_same_and_waits_twice_as_long_each_time() -> None:
    pull = measured(range(100))
    asks(pull, 0.0)
    now, wait_s = 0.0, STALL_S
    for _ in range(12):
        assert asks(pull, now + wait_s - 0.001) is None
        assert asks(pull, now + wait_s + 0.001) == ([0, 1, 2, 3], True)
        now, wait_s = now + wait_s + 0.001, min(STALL_CAP_S, 2 * wait_s)
    assert wait_s == STALL_CAP_S


@pytest.mark.parametrize("rate", [ASSUMED_BYTES_PER_S, 8000.0, 2000.0, 500.0])
def test_a_block_may_take_as_long_as_the_line_needs_for_it(rate: float) -> None:
    """Asking again for what is on its way costs a thin line the same again, and then for ever."""
    pull = measured(range(100), rate)
    asks(pull, 0.0)
    block_s = BLOCK_BYTES / rate
    assert pull.stall_s == block_s
    assert asks(pull, block_s - 0.01) is None
    assert asks(pull, block_s + 0.01) == ([0], True)
    assert pull.stall_s == max(block_s, min(STALL_CAP_S, 2 * block_s))


def test_before_anything_was_measured_a_thin_line_is_assumed() -> None:
    assert Pull(range(100), 0.0).stall_s == BLOCK_BYTES / ASSUMED_BYTES_PER_S > STALL_S


def test_jitter_moves_a_repeat_by_a_quarter_at_most() -> None:
    for jitter in (0.0, 0.5, 1.0):
        pull = measured(range(4))
        asks(pull, 0.0)
        asks(pull, 3.0, jitter)
        wait_s = 4.0 + 4.0 / 4 * jitter
        assert asks(pull, 3.0 + wait_s, jitter) is None
        assert asks(pull, 3.0 + wait_s + 0.01, jitter) is not None


def test_a_piece_ends_the_silence() -> None:
    pull = measured(range(100))
    asks(pull, 0.0)
    assert asks(pull, 2.1) is not None
    assert asks(pull, 6.3) is not None
    assert pull.stall_s == 8.0
    pull.received(0, None, BLOCK_BYTES // 2, 7.0)
    # Half of what was known, for the line was silent: 2 s are enough still.
    assert pull.stall_s == STALL_S
    assert asks(pull, 8.9) is None
    assert asks(pull, 9.1) == ([0, 1], True)


def test_a_piece_that_nobody_wants_is_a_sign_of_life_too() -> None:
    """Repeats of an older request still arrive: the line works, and what was asked for is behind them."""
    pull = measured(range(100))
    asks(pull, 0.0)
    for tenth in range(1, 100):
        pull.alive(BLOCK_BYTES // 5, tenth / 10)
        assert asks(pull, tenth / 10) is None
    assert pull.stall_s == STALL_S


def test_what_came_in_is_not_asked_for_again_after_a_stall() -> None:
    pull = measured(range(6))
    asks(pull, 0.0)
    pull.received(1, True, BLOCK_BYTES, 0.5)
    assert asks(pull, 3.0) == ([0, 2, 3, 4], True)
    pull.received(5, True, BLOCK_BYTES, 3.1)  # late, from an older request
    for block in (0, 2, 3, 4):
        pull.received(block, True, BLOCK_BYTES, 3.2)
    assert pull.done


def test_a_slow_link_is_no_stalled_link() -> None:
    """One piece every 5 s: after a few it is known, and nothing is asked for twice any more."""
    pull, now = Pull(range(200), 0.0), 0.0
    asked: list[int] = named(pull.next_request(0.0, 0.0)[0])  # type: ignore[index]
    repeats_late = 0
    for block in range(60):
        for step in range(50):
            wanted = asks(pull, now + step / 10)
            if wanted is not None and wanted[1]:
                repeats_late += block > 20
            asked += wanted[0] if wanted else []
        now += 5.0
        pull.received(block, True, BLOCK_BYTES, now)
    assert repeats_late == 0


def test_a_reconnect_asks_at_once_and_fresh() -> None:
    pull = measured(range(100))
    asks(pull, 0.0)
    pull.received(0, True, BLOCK_BYTES, 0.05)
    pull.reconnected()
    assert asks(pull, 0.05) == ([1, 2, 3, 4], True)
    assert asks(pull, 0.05) is None
    pull.reconnected()
    pull.reconnected()
    assert asks(pull, 0.05) == ([1, 2, 3, 4], True)


def test_a_server_that_is_away_for_days_does_not_end_the_agent() -> None:
    """1,100 stalls of a minute are 18 hours."""
    pull, now = Pull(range(4), 0.0), 0.0
    for _ in range(1100):
        asks(pull, now)
        now += 61.0
    assert pull.stall_s == STALL_CAP_S
    pull.reconnected()
    assert asks(pull, now) == ([0], True)


# Damaged blocks ---------------------------------------------------------------------------------------


def test_a_damaged_block_is_asked_for_again_next_and_given_up_in_the_end() -> None:
    pull = measured(range(10))
    asks(pull, 0.0)
    results = []
    for number in range(5):
        results.append(pull.received(2, False, BLOCK_BYTES, 0.0))
        if number < 4:
            pull.received(number + 3, True, BLOCK_BYTES, 0.0)
            wanted = asks(pull, 0.0)
            assert wanted is not None
            assert wanted[0][0] == 2
    assert results == [True] * 4 + [False]


def test_a_damaged_block_does_not_spoil_the_count_of_another() -> None:
    pull = Pull(range(20), 0.0)
    assert all(pull.received(block, False, BLOCK_BYTES, 0.0) for block in range(20) for _ in range(4))


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), unique=True))
def test_ranges_name_what_they_were_given_in_that_order(blocks: list[int]) -> None:
    found = ranges(blocks)
    assert named(found) == blocks
    assert all(a[0] + a[1] != b[0] for a, b in itertools.pairwise(found))


# A bad network ----------------------------------------------------------------------------------------

RANDOMS = st.integers(0, 2**32).map(random.Random)


@dataclass
class Network:
    """What happens to messages between one device and the hub."""

    rnd: random.Random
    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.2
    damage: float = 0.0
    link_bytes_per_s: float = 1e9
    """The broker queues what the device's link cannot take yet."""
    cuts: tuple[float, ...] = ()
    """Times of a lost connection: everything under way is gone, in both directions."""


@dataclass
class Outcome:
    """What a simulated pull came to."""

    seconds: float
    sent_blocks: int
    verified: set[int]


class Channel:
    """Messages under way in a network, both ways."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._under_way: list[tuple[float, int, Request | int]] = []
        self._order = itertools.count()
        self._link_free_at = 0.0

    def put(self, now: float, message: Request | int) -> None:
        net = self._net
        if isinstance(message, int):
            self._link_free_at = max(self._link_free_at, now) + BLOCK_BYTES / net.link_bytes_per_s
            now = self._link_free_at
        if net.rnd.random() < net.loss:
            return
        for _ in range(2 if net.rnd.random() < net.repeat else 1):
            arrives_at = now + net.delay_s * net.rnd.random()
            heapq.heappush(self._under_way, (arrives_at, next(self._order), message))

    def arrived(self, now: float) -> Iterator[Request | int]:
        while self._under_way and self._under_way[0][0] <= now:
            yield heapq.heappop(self._under_way)[2]

    def cut(self) -> None:
        self._under_way.clear()
        self._link_free_at = 0.0


def simulate(blocks: int, net: Network, limit_s: float, rate: float | None = None, tick_s: float = 0.05) -> Outcome:
    pull, hub, channel = Pull(range(blocks), 0.0), Hub(TokenBucket(rate, 0.0)), Channel(net)
    cuts, numbers = list(net.cuts), itertools.count(1)
    now, sent = 0.0, 0
    verified: set[int] = set()
    while not pull.done:
        assert now < limit_s, f"{len(verified)} of {blocks} blocks after {now:.0f} s"
        now += tick_s
        if cuts and now >= cuts[0]:
            del cuts[0]
            channel.cut()
            hub.forget("pi")
            pull.reconnected()
        if (wanted := pull.next_request(now, net.rnd.random())) is not None:
            count = len(named(wanted[0]))
            assert 0 < count * BLOCK_BYTES <= MAX_CREDIT_BYTES
            assert not verified.intersection(named(wanted[0])), "a block that is here was asked for"
            channel.put(now, Request(
                req_id=str(next(numbers)), kind=RequestKind.BLOCKS, digest="sha256:" + "a" * 64,
                blocks=tuple(wanted[0]), credit_bytes=count * BLOCK_BYTES, fresh=wanted[1],
            ))  # fmt: skip
        while (piece := hub.next_piece(now)) is not None:
            sent += 1
            channel.put(now, piece.block)
        for message in channel.arrived(now):
            if isinstance(message, Request):
                assert hub.ask("pi", message, blocks * BLOCK_BYTES) is None
            elif message not in verified:
                good = net.rnd.random() >= net.damage
                verified |= {message} if good else set()
                assert pull.received(message, good, BLOCK_BYTES, now)
    return Outcome(now, sent, verified)


@settings(max_examples=40, deadline=None)
@given(RANDOMS, st.integers(1, 150), st.floats(0, 1), st.floats(0, 1.5))
def test_repeated_and_reordered_messages_cost_nothing(
    rnd: random.Random, blocks: int, repeat: float, delay_s: float
) -> None:
    outcome = simulate(blocks, Network(rnd, repeat=repeat, delay_s=delay_s / 2), limit_s=600)
    assert outcome.verified == set(range(blocks))
    assert outcome.sent_blocks == blocks


@settings(max_examples=40, deadline=None)
@given(RANDOMS, st.integers(1, 120), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_lossy_network_loses_no_block_and_costs_little_more_than_it_loses(
    rnd: random.Random, blocks: int, loss: float, repeat: float
) -> None:
    outcome = simulate(blocks, Network(rnd, loss=loss, repeat=repeat), limit_s=4 * 3600)
    assert outcome.verified == set(range(blocks))
    assert outcome.sent_blocks <= 1.5 * blocks / (1 - loss) + 20


def test_silence_does_not_make_a_lossy_line_look_slower_for_ever() -> None:
    """The last block of ten, lost again and again: each silence lowered the measured rate and made the next longer."""
    outcome = simulate(10, Network(random.Random(2920), loss=0.28125, repeat=0.25), limit_s=3600)
    assert outcome.verified == set(range(10))


@settings(max_examples=25, deadline=None)
@given(RANDOMS, st.lists(st.floats(0, 20), max_size=5))
def test_lost_connections_lose_no_block_and_repeat_one_window_each_at_most(
    rnd: random.Random, cuts: list[float]
) -> None:
    net = Network(rnd, cuts=tuple(sorted(cuts)))
    outcome = simulate(120, net, limit_s=600, rate=1e6)
    assert outcome.verified == set(range(120))
    # 2 s at 1 MB/s, and the burst of what was sent already.
    assert outcome.sent_blocks <= 120 + len(cuts) * 40


@settings(max_examples=15, deadline=None)
@given(RANDOMS)
def test_a_few_damaged_blocks_are_replaced(rnd: random.Random) -> None:
    outcome = simulate(60, Network(rnd, damage=0.01), limit_s=600)
    assert outcome.verified == set(range(60))


@pytest.mark.parametrize("link_bytes_per_s", [200_000.0, 30_000.0, 8_000.0])
def test_a_slow_link_is_not_filled_with_repeats(link_bytes_per_s: float) -> None:
    """The broker keeps what a slow link cannot take: asking again for what is on its way costs the link twice."""
    net = Network(random.Random(1), link_bytes_per_s=link_bytes_per_s)
    outcome = simulate(60, net, limit_s=60 * BLOCK_BYTES / link_bytes_per_s * 4)
    assert outcome.verified == set(range(60))
    assert outcome.sent_blocks <= 1.5 * 60
