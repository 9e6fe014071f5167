"""The hub's rules: credit is a promise, turns are fair, and the rate is kept."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, Request, RequestKind
from edgefleet.server.budget import (
    BUSY_EVERY_S,
    LINE_BURST,
    REMEMBERED_DEVICES,
    REQUEST_BURST,
    DeviceLog,
    RequestBudget,
    TokenBucket,
)
from edgefleet.server.hub import ANSWERS_AT_ONCE, BLOBS_AT_ONCE, MAX_QUEUE_BYTES, PARTS_IN_A_ROW, Hub
from edgefleet.server.hub_work import Part, Piece
from edgefleet.server.packet_limit import PIECE_SIZES, PROVEN_AFTER_S, PacketLimit

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BLOCKS = 200
SIZE = BLOCKS * BLOCK_BYTES - 1000
WINDOW_BLOCKS = MAX_CREDIT_BYTES // BLOCK_BYTES


def ask(
    req_id: str, *ranges: tuple[int, int], digest: str = A, credit: int | None = None, fresh: bool = False
) -> Request:
    blocks = sum(count for _, count in ranges)
    return Request(
        req_id=req_id,
        kind=RequestKind.BLOCKS,
        digest=digest,
        blocks=ranges,
        credit_bytes=blocks * BLOCK_BYTES if credit is None else credit,
        fresh=fresh,
    )


def unlimited() -> Hub:
    return Hub(TokenBucket(None, 0.0))


def drain(hub: Hub, now: float = 0.0) -> list[Piece]:
    found = []
    while (piece := hub.next_piece(now)) is not None:
        found.append(piece)
        assert len(found) < 10_000
    return found


def blocks(pieces: list[Piece], device: str = "pi") -> list[int]:
    return [piece.block for piece in pieces if piece.device == device]


def test_blocks_come_in_the_order_named_and_only_those() -> None:
    hub = unlimited()
    assert hub.ask("pi", ask("1", (5, 2), (0, 1), (199, 1)), SIZE) is None
    pieces = drain(hub)
    assert blocks(pieces) == [5, 6, 0, 199]
    assert [piece.offset for piece in pieces] == [5 * BLOCK_BYTES, 6 * BLOCK_BYTES, 0, 199 * BLOCK_BYTES]
    assert [piece.size for piece in pieces] == [BLOCK_BYTES] * 3 + [BLOCK_BYTES - 1000]
    assert hub.idle
    assert hub.wait_s(0.0) is None


def test_sent_is_what_was_handed_on_and_is_told_once() -> None:
    """A piece that the socket did not take was not sent."""
    hub = unlimited()
    hub.ask("pi", ask("1", (198, 2)), SIZE)
    hub.ask("nuc", ask("1", (0, 2)), SIZE)
    assert hub.take_sent() == {}
    for piece in drain(hub):
        if (piece.device, piece.block) != ("nuc", 1):
            hub.count_sent(piece)
    assert hub.take_sent() == {"pi": 2 * BLOCK_BYTES - 1000, "nuc": BLOCK_BYTES}
    assert hub.take_sent() == {}


def test_a_huge_range_costs_nothing_here() -> None:
    """A request of a few bytes must not build a list of 2**53 blocks before it is refused."""
    hub = unlimited()
    vast = (2**53 - 1) * BLOCK_BYTES
    problem = hub.ask("pi", ask("1", (0, 2**53 - 2), credit=MAX_CREDIT_BYTES), vast)
    assert problem is not None
    assert "credit" in problem
    assert hub.idle


def test_clear_drops_what_waits_and_a_repeated_request_still_counts_as_repeated() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 4)), SIZE)
    hub.ask("nuc", ask("1", (0, 4)), SIZE)
    hub.clear()
    assert hub.idle
    assert hub.wait_s(0.0) is None
    assert hub.ask("pi", ask("1", (0, 4)), SIZE) is None
    assert hub.idle
    hub.ask("pi", ask("2", (3, 1)), SIZE)
    assert blocks(drain(hub)) == [3]


def test_the_last_block_costs_what_it_holds() -> None:
    hub = unlimited()
    assert hub.ask("pi", ask("1", (0, 1), credit=1), 1) is None
    assert [(piece.offset, piece.size) for piece in drain(hub)] == [(0, 1)]


def test_devices_take_turns_whatever_they_ask_for() -> None:
    hub = unlimited()
    hub.ask("greedy", ask("1", (0, 60)), SIZE)
    hub.ask("greedy", ask("2", (0, 60), digest=B), SIZE)
    hub.ask("pi", ask("1", (0, 3)), SIZE)
    hub.ask("nuc", ask("1", (0, 3)), SIZE)
    assert [piece.device for piece in drain(hub)[:9]] == ["greedy", "pi", "nuc"] * 3


def test_asking_again_and_again_gives_no_extra_turns() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 20)), SIZE)
    turns: Counter[str] = Counter()
    for number in range(20):
        hub.ask("pushy", ask(str(number), (0, 10), fresh=True), SIZE)
        piece = hub.next_piece(0.0)
        assert piece is not None
        turns[piece.device] += 1
    assert turns["pi"] == 10


def test_a_repeated_request_is_ignored() -> None:
    hub = unlimited()
    request = ask("1", (0, 4))
    hub.ask("pi", request, SIZE)
    first = hub.next_piece(0.0)
    assert hub.ask("pi", request, SIZE) is None
    assert first is not None
    assert blocks([first, *drain(hub)]) == [0, 1, 2, 3]
    assert hub.ask("pi", request, SIZE) is None
    assert hub.idle


def test_two_devices_may_use_the_same_request_id() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 1)), SIZE)
    hub.ask("nuc", ask("1", (0, 1)), SIZE)
    assert {piece.device for piece in drain(hub)} == {"pi", "nuc"}


def test_fresh_replaces_and_otherwise_blocks_are_added() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 4)), SIZE)
    hub.ask("pi", ask("2", (10, 2)), SIZE)
    hub.ask("pi", ask("3", (50, 1), digest=B), SIZE)
    assert hub.ask("pi", ask("4", (20, 2), fresh=True), SIZE) is None
    pieces = drain(hub)
    assert sorted((piece.digest, piece.block) for piece in pieces) == [(A, 20), (A, 21), (B, 50)]


def test_fresh_without_blocks_stops_the_blob() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 4)), SIZE)
    hub.ask("pi", ask("2", fresh=True), SIZE)
    assert hub.idle
    assert drain(hub) == []


@pytest.mark.parametrize(
    ("ranges", "credit"),
    [
        ([(200, 1)], None),
        ([(199, 2)], None),
        ([(0, 1), (10**9, 1)], None),
        ([(0, 2)], 2 * BLOCK_BYTES - 1),
        ([(0, 1)], 0),
        ([(0, 1), (0, 1)], BLOCK_BYTES),
        ([(0, 150)], MAX_CREDIT_BYTES),
        ([(place, 1) for place in range(100)], MAX_CREDIT_BYTES),
    ],
)
def test_bad_requests_are_refused_with_a_reason_and_change_nothing(
    ranges: list[tuple[int, int]], credit: int | None
) -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (7, 1)), SIZE)
    problem = hub.ask("pi", ask("2", *ranges, credit=credit, fresh=True), SIZE)
    assert problem
    assert blocks(drain(hub)) == [7]


def test_a_request_that_was_bad_may_be_repeated_corrected() -> None:
    hub = unlimited()
    assert hub.ask("pi", ask("1", (0, 2), credit=1), SIZE) is not None
    assert hub.ask("pi", ask("1", (0, 2)), SIZE) is None
    assert blocks(drain(hub)) == [0, 1]


def test_a_device_that_never_waits_gets_one_window() -> None:
    hub = unlimited()
    for number in range(50):
        assert hub.ask("pi", ask(str(number), (0, 60)), SIZE) is None
    assert sum(piece.size for piece in drain(hub)) <= MAX_CREDIT_BYTES + BLOCK_BYTES


def test_an_empty_blob_has_no_blocks_to_ask_for() -> None:
    hub = unlimited()
    assert hub.ask("pi", ask("1"), 0) is None
    assert hub.ask("pi", ask("2", (0, 1)), 0) is not None
    assert hub.idle


def test_forget_drops_the_queue_of_that_device_only() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 4)), SIZE)
    hub.ask("nuc", ask("1", (0, 4)), SIZE)
    hub.forget("pi")
    hub.forget("nobody")
    assert {piece.device for piece in drain(hub)} == {"nuc"}
    assert hub.ask("pi", ask("2", (0, 1)), SIZE) is None
    assert blocks(drain(hub)) == [0]


def parts(hub: Hub, now: float = 0.0) -> list[Part]:
    return list(iter(lambda: hub.next_part(now), None))


@pytest.mark.parametrize("size", [1, 60_000, 61_440, 61_441])
@pytest.mark.parametrize("piece_bytes", PIECE_SIZES)
def test_a_block_goes_in_pieces_that_make_it_whole(piece_bytes: int, size: int) -> None:
    hub = unlimited()
    hub.piece_bytes = piece_bytes
    hub.ask("pi", ask("1", (0, -(-size // BLOCK_BYTES))), size)
    pieces = drain(hub)
    assert all(piece.size <= piece_bytes and piece.offset % (15 * 1024) == 0 for piece in pieces)
    assert [piece.offset for piece in pieces[1:]] == [piece.offset + piece.size for piece in pieces[:-1]]
    assert sum(piece.size for piece in pieces) == size


def test_a_fresh_request_in_the_middle_of_a_block_begins_it_anew() -> None:
    hub = unlimited()
    hub.piece_bytes = PIECE_SIZES[-1]
    hub.ask("pi", ask("1", (3, 1)), SIZE)
    hub.next_piece(0.0)
    hub.ask("pi", ask("2", (3, 1), fresh=True), SIZE)
    assert [piece.offset - 3 * BLOCK_BYTES for piece in drain(hub)] == [0, 15360, 30720, 46080]


def test_replies_come_in_parts_in_turn_between_devices() -> None:
    hub = unlimited()
    hub.part_bytes = 10
    assert hub.reply("pi", "1", b"x" * 25)
    assert hub.reply("nuc", "9", b"")
    assert hub.reply("pi", "2", b"y" * 10)
    found = [(part.device, part.req_id, part.part, part.parts, part.body) for part in parts(hub)]
    assert found == [
        ("pi", "1", 0, 3, b"x" * 10), ("nuc", "9", 0, 1, b""), ("pi", "1", 1, 3, b"x" * 10),
        ("pi", "1", 2, 3, b"x" * 5), ("pi", "2", 0, 1, b"y" * 10),
    ]  # fmt: skip
    assert hub.idle


def test_replies_go_before_blocks_but_not_for_ever() -> None:
    hub = unlimited()
    hub.part_bytes = 1
    hub.ask("pi", ask("1", (0, 3)), SIZE)
    hub.reply("nuc", "1", b"z" * 20)
    order = ""
    while not hub.idle:
        order += "r" if hub.next_part(0.0) is not None else "b" * (hub.next_piece(0.0) is not None)
    assert order == ("r" * PARTS_IN_A_ROW + "b") * 2 + "r" * (20 - 2 * PARTS_IN_A_ROW) + "b"


def test_a_reply_that_was_asked_for_twice_is_sent_once() -> None:
    hub = unlimited()
    for _ in range(2):
        assert hub.reply("pi", "1", b"x")
    assert len(parts(hub)) == 1
    assert hub.reply("pi", "1", b"x")
    assert hub.idle


def test_so_many_replies_wait_for_a_device_and_no_more() -> None:
    hub = unlimited()
    taken = [hub.reply("pi", str(number), b"x") for number in range(ANSWERS_AT_ONCE + 3)]
    assert taken == [True] * ANSWERS_AT_ONCE + [False] * 3
    assert hub.reply("nuc", "1", b"x")


def test_so_many_blobs_wait_for_a_device_and_no_more() -> None:
    hub = unlimited()
    digests = ["sha256:" + f"{number:064x}" for number in range(BLOBS_AT_ONCE + 1)]
    problems = [hub.ask("pi", ask(digest[-9:], (0, 1), digest=digest), SIZE) for digest in digests]
    assert problems[:-1] == [None] * BLOBS_AT_ONCE
    assert problems[-1] is not None
    assert len(drain(hub)) == BLOBS_AT_ONCE


def test_a_withdrawn_blob_names_who_waits_with_the_latest_request() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 4)), SIZE)
    hub.ask("pi", ask("2", (9, 1)), SIZE)
    hub.ask("nuc", ask("7", (0, 4)), SIZE)
    hub.ask("nuc", ask("8", (0, 1), digest=B), SIZE)
    hub.ask("cam", ask("5", (0, 1), digest=B), SIZE)
    assert sorted(hub.withdraw(A)) == [("nuc", "7"), ("pi", "2")]
    assert hub.withdraw(A) == []
    assert [(piece.device, piece.digest) for piece in drain(hub)] == [("nuc", B), ("cam", B)]


def test_busy_when_more_is_queued_than_leaves_in_time() -> None:
    hub = unlimited()
    for number in range(MAX_QUEUE_BYTES // MAX_CREDIT_BYTES + 5):
        assert hub.ask(f"pi-{number}", ask("1", (0, WINDOW_BLOCKS)), SIZE) is None
    assert hub.busy_s() is not None
    hub.clear()
    assert hub.busy_s() is None
    slow = Hub(TokenBucket(1e6, 0.0))
    for number in range(10):
        slow.ask(f"pi-{number}", ask("1", (0, WINDOW_BLOCKS)), SIZE)
    assert slow.busy_s() == pytest.approx(10 * WINDOW_BLOCKS * BLOCK_BYTES / 1e6)


# What is asked ----------------------------------------------------------------------------------------


def test_a_device_may_ask_twenty_times_a_second_and_forty_at_once() -> None:
    budget = RequestBudget()
    assert sum(budget.admit("pi", 0.0) for _ in range(100)) == REQUEST_BURST
    admitted = sum(budget.admit("pi", 0.001 * number) for number in range(1, 10_001))
    assert 199 <= admitted <= 201
    assert budget.admit("nuc", 10.0)


def test_busy_is_told_once_a_second() -> None:
    budget = RequestBudget()
    budget.admit("pi", 0.0)
    told = [number for number in range(5000) if budget.tell_busy("pi", 0.001 * number)]
    assert told == [0, *(int(second * BUSY_EVERY_S * 1000) for second in range(1, 5))]


def test_a_million_names_cost_no_more_memory_than_so_many_devices() -> None:
    budget, hub = RequestBudget(), unlimited()
    for number in range(REMEMBERED_DEVICES + 50):
        budget.admit(f"d{number}", 0.0)
        hub.reply(f"d{number}", "1", b"")
        hub.next_part(0.0)
    assert len(budget._devices) == len(hub._seen) == REMEMBERED_DEVICES
    assert hub._work == {}


# What the broker takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "piece"),
    [(None, 61440), (65_536, 61440), (61_952, 61440), (61_951, 30720), (20_000, 15360), (15_872, 15360)],
)
def test_pieces_fit_what_the_broker_says(packet: int | None, piece: int) -> None:
    limit = PacketLimit()
    limit.connected(packet)
    assert (limit.piece_bytes, limit.too_small) == (piece, None)
    assert limit.part_bytes * 4 / 3 + 300 < (packet or 65_536)


def test_a_broker_that_takes_less_than_the_smallest_piece_is_named() -> None:
    limit = PacketLimit()
    limit.connected(15_871)
    assert limit.too_small == 15_871
    limit.connected(20_000)
    assert limit.too_small is None


def test_a_loss_right_after_a_large_packet_halves_the_pieces_down_to_the_smallest() -> None:
    limit, seen = PacketLimit(), []
    for _ in range(4):
        limit.connected(None)
        limit.published(limit.piece_bytes, 10.0)
        seen.append((limit.lost(published=True), limit.piece_bytes))
    assert seen == [(True, 30720), (True, 15360), (False, 15360), (False, 15360)]
    assert (limit.halvings, limit.smallest_refused) == (2, True)
    assert PacketLimit(15360).piece_bytes == 15360
    assert PacketLimit(999).piece_bytes == BLOCK_BYTES


def test_a_size_that_the_broker_took_before_is_never_blamed() -> None:
    """A broker that is killed in mid-pull looks like one that refuses a packet."""
    limit = PacketLimit()
    limit.connected(None)
    limit.published(BLOCK_BYTES, 10.0)
    limit.lived(10.0 + PROVEN_AFTER_S + 0.1)
    for _ in range(5):
        limit.published(BLOCK_BYTES, 20.0)
        assert not limit.lost(published=True)
        limit.connected(None)
    assert limit.piece_bytes == BLOCK_BYTES


@pytest.mark.parametrize("why", ["not after a packet", "the broker told its limit"])
def test_other_losses_change_nothing(why: str) -> None:
    limit = PacketLimit()
    limit.connected(65_536 if "told" in why else None)
    limit.published(BLOCK_BYTES, 10.0)
    assert not limit.lost(published="told" in why)
    assert limit.piece_bytes == BLOCK_BYTES


def test_what_a_broker_said_is_not_kept_for_one_that_says_nothing() -> None:
    limit = PacketLimit()
    limit.connected(20_000)
    limit.connected(None)
    assert limit.piece_bytes == BLOCK_BYTES


# The rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [20_000.0, 1e6, 50e6])
def test_the_rate_is_kept_and_used(rate: float) -> None:
    hub, now, sent, turn = Hub(TokenBucket(rate, 0.0)), 0.0, 0, 0
    duration_s = max(10.0, 40 * BLOCK_BYTES / rate)
    while now < duration_s:
        if hub.idle:
            turn += 1
            assert hub.ask("pi", ask(str(turn), (0, 60)), SIZE) is None
        piece = hub.next_piece(now)
        if piece is None:
            wait_s = hub.wait_s(now)
            assert wait_s is not None
            assert 0 < wait_s <= BLOCK_BYTES / rate + 1e-9
            now += max(wait_s, 1e-6)
        else:
            sent += piece.size
            burst = max(BLOCK_BYTES, rate / 10) + BLOCK_BYTES
            assert sent <= rate * now + burst + 1
    assert sent >= 0.99 * rate * duration_s


def test_an_idle_hub_saves_up_no_more_than_one_burst() -> None:
    hub = Hub(TokenBucket(1e6, 0.0))
    hub.ask("pi", ask("1", (0, 60)), SIZE)
    burst = drain(hub, now=3600.0)
    assert sum(piece.size for piece in burst) <= 1e6 / 10 + BLOCK_BYTES


def test_each_device_has_a_rate_of_its_own() -> None:
    """And a slow one costs the others nothing."""
    hub, now, sent = Hub(TokenBucket(None, 0.0), 1e6), 0.0, Counter[str]()
    turn = 0
    while now < 10.0:
        for device in ("pi", "nuc"):
            turn += 1
            hub.ask(device, ask(str(turn), (0, 10), fresh=True), SIZE)
        while (piece := hub.next_piece(now)) is not None:
            sent[piece.device] += piece.size
        wait_s = hub.wait_s(now)
        assert wait_s is not None
        assert 0 < wait_s <= BLOCK_BYTES / 1e6 + 1e-9
        now += wait_s
    assert all(0.98e7 <= size <= 1.02e7 + 2 * BLOCK_BYTES for size in sent.values())


def test_no_limit_means_no_wait() -> None:
    hub = unlimited()
    hub.ask("pi", ask("1", (0, 60)), SIZE)
    assert hub.wait_s(0.0) == 0.0
    assert len(drain(hub)) == 60


# Any sequence of requests -----------------------------------------------------------------------------

RANGES = st.lists(st.tuples(st.integers(0, BLOCKS + 5), st.integers(1, 80)), max_size=4)


@given(RANGES, st.integers(0, MAX_CREDIT_BYTES))
def test_one_request_sends_each_named_block_once_or_nothing(ranges: list[tuple[int, int]], credit: int) -> None:
    hub = unlimited()
    problem = hub.ask("pi", ask("1", *ranges, credit=credit), SIZE)
    sent = drain(hub)
    named = [first + step for first, count in ranges for step in range(count)]
    assert blocks(sent) == ([] if problem else named)
    assert sum(piece.size for piece in sent) <= credit


class HubMachine(RuleBasedStateMachine):
    """Devices ask as they like; a model says what each may still get."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = unlimited()
        self.owed: dict[tuple[str, str], list[int]] = {}
        self.granted: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.number = 0
        self.last: tuple[str, Request] | None = None

    @rule(
        device=st.sampled_from(["pi", "nuc", "cam"]),
        digest=st.sampled_from([A, B]),
        ranges=RANGES,
        credit=st.integers(0, MAX_CREDIT_BYTES),
        fresh=st.booleans(),
    )
    def asks(self, device: str, digest: str, ranges: list[tuple[int, int]], credit: int, fresh: bool) -> None:
        self.number += 1
        request = ask(str(self.number), *ranges, digest=digest, credit=credit, fresh=fresh)
        if self.hub.ask(device, request, SIZE) is not None:
            return
        self.last = device, request
        named = [first + step for first, count in ranges for step in range(count)]
        self.granted[device] += credit
        queue = [] if fresh else self.owed.get((device, digest), [])
        # More than one window is never held: the newest go first.
        self.owed[device, digest] = (queue + named)[: WINDOW_BLOCKS + 1]

    @precondition(lambda self: self.last is not None)
    @rule()
    def the_broker_repeats_the_last_request(self) -> None:
        assert self.last is not None
        assert self.hub.ask(self.last[0], self.last[1], SIZE) is None

    @rule(device=st.sampled_from(["pi", "nuc", "cam"]))
    def goes(self, device: str) -> None:
        self.hub.forget(device)
        self.last = None
        for key in [key for key in self.owed if key[0] == device]:
            del self.owed[key]

    @rule(turns=st.integers(1, 30))
    def sends(self, turns: int) -> None:
        for _ in range(turns):
            piece = self.hub.next_piece(0.0)
            if piece is None:
                assert not any(self.owed.values())
                return
            assert self.owed[piece.device, piece.digest].pop(0) == piece.block
            self.hub.count_sent(piece)

    @rule()
    def the_broker_goes(self) -> None:
        self.hub.clear()
        self.owed.clear()

    @invariant()
    def credit_is_never_exceeded(self) -> None:
        self.sent.update(self.hub.take_sent())
        assert all(sent <= self.granted[device] for device, sent in self.sent.items())

    @invariant()
    def idle_says_whether_something_waits(self) -> None:
        assert self.hub.idle == (not any(self.owed.values()))


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(max_examples=60, stateful_step_count=25)


# One against the others --------------------------------------------------------------------------------


def test_a_device_that_asks_for_many_blobs_makes_the_hub_busy_for_nobody_else() -> None:
    hub = Hub(TokenBucket(1e6, 0.0))
    for number in range(BLOBS_AT_ONCE):
        digest = "sha256:" + f"{number:064x}"
        hub.ask("greedy", ask(digest[-9:], (0, WINDOW_BLOCKS), digest=digest), SIZE)
    assert hub.busy_s() is None
    assert sum(piece.size for piece in drain(hub, 1e9)) <= MAX_CREDIT_BYTES + BLOBS_AT_ONCE * BLOCK_BYTES


def test_a_device_that_asks_for_much_metadata_makes_the_hub_busy_for_nobody_else() -> None:
    hub, large = unlimited(), bytes(4 * 1024 * 1024)
    taken = [hub.reply("greedy", str(number), large) for number in range(12)]
    assert taken[0]
    assert not taken[-1]
    assert hub.busy_s() is None
    assert hub.reply("pi", "1", large)


def test_a_device_that_floods_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = DeviceLog(logging.getLogger("edgefleet.server"))
    for _ in range(10_000):
        said.say(logging.WARNING, "pi", "x" * 60_000)
    said.say(logging.WARNING, "nuc", "heard all the same")
    now[0] += 2.0
    said.say(logging.WARNING, "pi", "again")
    assert len(caplog.records) == LINE_BURST + 2
    assert sum(len(record.message) for record in caplog.records) < LINE_BURST * 500
    assert "9950 more lines" in caplog.records[-1].message
