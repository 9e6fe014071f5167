"""What a pull asks for and when, on a clock set by hand."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import MAX_CREDIT_BYTES
from edgefleet.server.budget import RequestBudget
from edgefleet_agent.line import THIN_BYTES_PER_S, Line
from edgefleet_agent.pull import MAX_SILENCES, STALL_CAP_S, STALL_S, Pull, ranges

SIZES = [BLOCK_BYTES] * 1000
UNIT = BLOCK_BYTES // 4


def fresh(blocks: Iterable[int]) -> Pull:
    return Pull(SIZES, blocks)


def measured(blocks: Iterable[int], rate_bytes_per_s: float = 2.0 * BLOCK_BYTES) -> Pull:
    """A pull on a line of known speed; by default its window is four blocks."""
    pull = fresh(blocks)
    pull.line.rate_bytes_per_s = rate_bytes_per_s
    return pull


def comes(pull: Pull, block: int, now: float) -> None:
    """A whole block arrives and is good."""
    pull.arrived(block, BLOCK_BYTES, now)
    pull.verified(block)


def test_the_first_request_is_one_block() -> None:
    """Nothing is known of the line yet: a whole window would block a thin one for minutes."""
    pull = fresh(range(100))
    assert pull.next_request(0.0) == [0]
    assert pull.next_request(0.0) is None
    assert (pull.done, pull.in_flight_bytes, pull.asked) == (False, BLOCK_BYTES, [0])


def test_the_window_opens_with_the_measured_rate() -> None:
    pull, now = fresh(range(1000)), 0.0
    sizes: list[int] = []
    asked = pull.next_request(now)
    while asked is not None and len(sizes) < 12:
        sizes.append(len(asked))
        for block in asked:
            now += 0.02
            comes(pull, block, now)
        asked = pull.next_request(now)
    assert sizes[1] >= 2
    # 60 KiB every 20 ms are 3 MB/s: two seconds of it are more than the 4 MiB that may be in flight.
    assert sizes[-1] == MAX_CREDIT_BYTES // BLOCK_BYTES


def test_the_next_request_comes_when_half_the_window_is_free() -> None:
    pull = measured([0, 1, 2, 3, 10, 11, 20], 2.0 * BLOCK_BYTES)
    assert pull.next_request(0.0) == [0, 1, 2, 3]
    pull.verified(0)
    assert pull.next_request(0.5) is None
    pull.verified(3)
    assert pull.next_request(1.0) == [10, 11]
    assert pull.next_request(1.0) is None


def test_a_long_line_is_asked_before_half_the_window_is_free() -> None:
    pull = measured(range(100), 10.0 * BLOCK_BYTES)
    pull.line.round_trip_s = 1.2
    assert len(pull.next_request(0.0) or ()) == 20
    for block in range(5):
        pull.verified(block)
    assert pull.next_request(0.5) == [20, 21, 22, 23, 24]


@pytest.mark.parametrize("round_trip_s", [0.0002, 0.009, 0.1, 2.0])
@pytest.mark.parametrize("rate", [8e3, 125e3, 1.2e6, 5e6, 40e6, 370e6])
def test_no_line_makes_a_pull_ask_more_often_than_a_hub_admits(rate: float, round_trip_s: float) -> None:
    """A device that was told `busy` waits for a second, whatever its line carries."""
    pull, budget, now = measured(range(1000), rate), RequestBudget(), 0.0
    waiting: deque[int] = deque(pull.next_request(now) or ())
    assert budget.admit("d", now)
    while waiting:
        now += BLOCK_BYTES / rate
        budget.served("d", BLOCK_BYTES)
        comes(pull, waiting.popleft(), now)
        pull.line.rate_bytes_per_s, pull.line.round_trip_s = rate, round_trip_s
        if asked := pull.next_request(now):
            assert budget.admit("d", now)
            waiting += asked
    assert pull.done


def test_pieces_of_a_block_free_what_they_brought_and_repeats_of_them_nothing() -> None:
    pull = fresh(range(8))
    pull.next_request(0.0)
    for held, left in ((UNIT, 3), (UNIT, 3), (2 * UNIT, 2), (3 * UNIT, 1)):
        pull.holds(0, held)
        assert pull.in_flight_bytes == left * UNIT
    pull.holds(5, UNIT)  # of a block that was not asked for
    assert pull.in_flight_bytes == UNIT
    pull.verified(0)
    pull.verified(0)
    pull.verified(7)
    assert pull.in_flight_bytes == 0


def test_short_blocks_count_what_they_hold() -> None:
    """The small layers of a variant are asked for together."""
    pull = Pull([100, 200, BLOCK_BYTES, 300], range(4))
    assert pull.next_request(0.0) == [0, 1]
    assert pull.in_flight_bytes == 300


def test_nothing_missing_is_done() -> None:
    pull = fresh([])
    assert pull.done
    assert pull.next_request(0.0) is None
    assert pull.next_request(1e6) is None
    pull.want([3])
    assert pull.next_request(1e6) == [3]


@pytest.mark.parametrize(("rate", "blocks"), [(1e3, 1), (300_000.0, 9), (1e9, MAX_CREDIT_BYTES // BLOCK_BYTES)])
def test_the_window_is_two_seconds_of_the_measured_rate_within_bounds(rate: float, blocks: int) -> None:
    line = fresh(range(4)).line
    pull, now, rounds = fresh(range(4)), 0.0, 0
    pull.line = line
    line.begins(0.0)
    while now < 3.0 or rounds < 10:
        rounds += 1
        now += max(BLOCK_BYTES / rate, 0.0011)
        for _ in range(max(1, round(0.0011 * rate / BLOCK_BYTES))):
            line.arrived(BLOCK_BYTES, now)
    assert pull.credit_bytes // BLOCK_BYTES == pytest.approx(blocks, abs=1)
    assert BLOCK_BYTES <= pull.credit_bytes <= MAX_CREDIT_BYTES


# The line ---------------------------------------------------------------------------------------------


def test_a_burst_after_a_stall_is_no_fast_line() -> None:
    """TCP hands on at once what waited behind a lost segment."""
    line = Line()
    line.begins(0.0)
    for tenth in range(1, 41):
        line.arrived(12_500, tenth / 10)
    for _ in range(20):
        line.arrived(12_500, 6.0)
    assert line.rate_bytes_per_s <= 1.1 * 125_000


def test_a_silence_of_seconds_does_not_close_the_window() -> None:
    line = Line()
    line.begins(0.0)
    for tenth in range(1, 41):
        line.arrived(12_500, tenth / 10)
    line.arrived(12_500, 6.0)
    assert line.rate_bytes_per_s >= 0.5 * 125_000


def test_a_slower_line_is_believed_within_ten_seconds() -> None:
    line, now = Line(), 0.0
    line.begins(now)
    for rate, seconds in ((1_000_000, 5), (50_000, 10)):
        for _ in range(seconds * 10):
            now += 0.1
            line.arrived(rate // 10, now)
    assert line.rate_bytes_per_s == pytest.approx(50_000, rel=0.7)


def test_the_round_trip_is_that_of_requests_that_waited_for_nothing_else() -> None:
    line = Line()
    line.answered(0.3, 0)
    assert line.round_trip_s == 0.3
    line.rate_bytes_per_s = 1e6
    line.answered(2.0, 2_000_000)
    assert line.round_trip_s == 0.3
    line.answered(0.7, 100_000)
    assert 0.3 < line.round_trip_s < 0.4


def test_an_answer_to_a_repeat_measures_no_round_trip() -> None:
    """Nobody knows which of the two it answers."""
    pull = fresh(range(4))
    pull.next_request(0.0)
    pull.next_request(30.0, 0.0)
    comes(pull, 0, 31.0)
    assert pull.line.round_trip_s == 0.0


# Silence ----------------------------------------------------------------------------------------------


def test_silence_asks_again_and_waits_twice_as_long_each_time() -> None:
    pull = measured(range(100), 1e6)
    wanted = pull.next_request(0.0)
    now, waits, epoch = 0.0, [], pull.epoch
    for _ in range(12):
        waits.append(pull.stall_s)
        assert pull.next_request(now + waits[-1] - 0.001) is None
        now += waits[-1] + 0.001
        again = pull.next_request(now, 0.0)
        assert again is not None
        assert again == (wanted or [])[: len(again)]
        assert pull.epoch == (epoch := epoch + 1)
    assert waits[:5] == [STALL_S, 2 * STALL_S, 4 * STALL_S, 8 * STALL_S, 16 * STALL_S]
    assert waits[6:] == [STALL_CAP_S] * 6


def test_after_silence_half_as_much_is_asked_for() -> None:
    """The line may have become slower; a faster one is seen with the first pieces."""
    pull = measured(range(100), 10.0 * BLOCK_BYTES)
    assert len(pull.next_request(0.0) or ()) == 20
    assert len(pull.next_request(3.0, 0.0) or ()) == 10


@pytest.mark.parametrize("rate", [THIN_BYTES_PER_S, 2000.0, 500.0])
def test_a_block_may_take_as_long_as_the_line_needs_for_it(rate: float) -> None:
    """Asking again for what is on its way costs a thin line the same again, and then for ever."""
    pull = measured(range(100), rate)
    pull.next_request(0.0)
    block_s = BLOCK_BYTES / rate
    assert pull.stall_s == block_s
    assert pull.next_request(block_s - 0.01) is None
    assert pull.next_request(block_s + 0.01, 0.0) == [0]


def test_silence_is_measured_by_the_pieces_and_the_round_trip() -> None:
    pull = measured(range(100), 1e6)
    assert pull.stall_s == STALL_S
    pull.line.round_trip_s = 1.5
    assert pull.stall_s == 4.5
    pull.line.interval_s = 2.0
    assert pull.stall_s == 8.0


def test_before_anything_was_measured_a_thin_line_is_assumed() -> None:
    assert fresh(range(100)).stall_s == BLOCK_BYTES / THIN_BYTES_PER_S > STALL_S


def test_jitter_moves_a_repeat_by_a_quarter_at_most() -> None:
    for jitter in (0.0, 0.5, 1.0):
        pull = measured(range(4), 1e6)
        pull.next_request(0.0)
        pull.next_request(3.0, jitter)
        wait_s = 4.0 + 4.0 / 4 * jitter
        assert pull.next_request(3.0 + wait_s, jitter) is None
        assert pull.next_request(3.0 + wait_s + 0.01, jitter) is not None


def test_another_request_does_not_put_the_silence_off() -> None:
    """No piece for two seconds is silence, whatever was asked meanwhile."""
    pull = measured(range(100), 4.0 * BLOCK_BYTES)
    assert pull.next_request(0.0) == list(range(8))
    for block in range(5):
        comes(pull, block, 0.1)
    pull.line.rate_bytes_per_s = 4.0 * BLOCK_BYTES
    assert pull.next_request(1.5) == [8, 9, 10, 11, 12]
    assert pull.next_request(2.2, 0.0) == [5, 6, 7, 8]


def test_a_piece_ends_the_silence() -> None:
    pull = measured(range(100), 1e6)
    pull.next_request(0.0)
    assert pull.next_request(2.1, 0.0) is not None
    assert pull.stall_s == 4.0
    pull.arrived(0, UNIT, 3.0)
    assert pull.stall_s == STALL_S
    assert pull.next_request(4.9) is None
    assert pull.next_request(5.1, 0.0) is not None


def test_a_piece_that_nobody_wants_is_a_sign_of_life_too() -> None:
    """Repeats of an older request still arrive: the line works, and what was asked for is behind them."""
    pull = measured(range(100))
    pull.next_request(0.0)
    for tenth in range(1, 100):
        pull.arrived(500, BLOCK_BYTES // 5, tenth / 10)
        assert pull.next_request(tenth / 10) is None
    assert pull.stall_s == STALL_S


def test_what_came_in_is_not_asked_for_again_after_a_stall() -> None:
    pull = measured(range(6))
    pull.next_request(0.0)
    comes(pull, 1, 0.5)
    pull.line.rate_bytes_per_s = 4.0 * BLOCK_BYTES
    assert pull.next_request(3.0, 0.0) == [0, 2, 3, 4]
    comes(pull, 5, 3.1)  # late, from an older request
    for block in (0, 2, 3, 4):
        comes(pull, block, 3.2)
    assert pull.done


def test_a_slow_link_is_no_stalled_link() -> None:
    """One piece every 5 s: after a few it is known, and nothing is asked for twice any more."""
    pull, now, repeats_late = fresh(range(200)), 0.0, 0
    pull.next_request(0.0, 0.0)
    for block in range(60):
        for step in range(50):
            epoch = pull.epoch
            pull.next_request(now + step / 10, 0.0)
            repeats_late += pull.epoch > epoch and block > 20
        now += 5.0
        comes(pull, block, now)
    assert repeats_late == 0


def test_a_reconnect_asks_at_once_and_knows_nothing_of_the_new_line() -> None:
    pull = measured(range(100))
    pull.next_request(0.0)
    comes(pull, 0, 0.05)
    epoch = pull.epoch
    pull.reconnected()
    assert pull.next_request(0.05) == [1]
    assert pull.epoch > epoch
    assert pull.next_request(0.05) is None
    pull.reconnected()
    pull.reconnected()
    assert pull.next_request(0.05) == [1]


def test_a_request_that_did_not_leave_is_made_again() -> None:
    pull = measured(range(100))
    assert pull.next_request(0.0) == [0, 1, 2, 3]
    pull.unsent()
    assert pull.in_flight_bytes == 0
    assert pull.next_request(0.0) == [0, 1, 2, 3]
    assert pull.silences == 0


def test_hubs_that_stay_silent_are_given_up_after_half_an_hour() -> None:
    pull, now = measured(range(4), 1e6), 0.0
    while not pull.gave_up:
        pull.next_request(now)
        now += 1.0
    assert 20 * 60 < now < 45 * 60
    assert pull.silences == MAX_SILENCES + 1
    pull.reconnected()
    assert not pull.gave_up


# A busy hub -------------------------------------------------------------------------------------------


def test_a_busy_hub_is_left_alone_as_long_as_it_says_and_a_little_longer() -> None:
    for jitter in (0.0, 1.0):
        pull = measured(range(100), 2.0 * BLOCK_BYTES)
        assert pull.next_request(0.0) == [0, 1, 2, 3]
        pull.busy([0, 1, 2, 3], 10.0, 1.0, jitter)
        until = 11.0 + 5.0 * jitter
        assert pull.in_flight_bytes == 0
        assert pull.next_request(until - 0.01) is None
        assert pull.next_request(until) == [0, 1, 2, 3]
        # The wait was no silence.
        assert pull.next_request(until + 1.9) is None
        assert pull.silences == 0


def test_a_busy_hub_refuses_one_request_and_not_what_came_or_comes() -> None:
    pull = measured(range(100), 2.0 * BLOCK_BYTES)
    pull.next_request(0.0)
    comes(pull, 0, 0.5)
    comes(pull, 1, 1.0)
    assert pull.next_request(1.0) == [4, 5]
    pull.busy([4, 5, 0], 1.0, 1.1, 0.0)
    assert pull.asked == [2, 3]
    comes(pull, 2, 1.5)
    comes(pull, 3, 2.0)
    assert (pull.next_request(2.2) or [])[:2] == [4, 5]


# Damaged blocks ---------------------------------------------------------------------------------------


def test_a_damaged_block_is_asked_for_again_next_and_given_up_in_the_end() -> None:
    pull = measured(range(10))
    pull.next_request(0.0)
    results = []
    for number in range(5):
        results.append(pull.rejected(2))
        if number < 4:
            pull.verified(number + 3)
            assert (pull.next_request(0.0) or [-1])[0] == 2
    assert results == [True] * 4 + [False]


def test_a_damaged_block_does_not_spoil_the_count_of_another() -> None:
    pull = fresh(range(20))
    assert all(pull.rejected(block) for block in range(20) for _ in range(4))


@given(st.lists(st.integers(0, 30), unique=True))
def test_ranges_name_what_they_were_given_in_that_order(blocks: list[int]) -> None:
    found = ranges(blocks)
    assert [first + step for first, count in found for step in range(count)] == blocks
    assert all(a[0] + a[1] != b[0] for a, b in itertools.pairwise(found))


@given(st.data())
def test_what_is_in_flight_is_what_was_asked_for_and_has_not_come(data: st.DataObject) -> None:
    """Whatever happens in whatever order, the account stays right and no more than the window is asked for."""
    pull, now, missing = measured(range(30), 5.0 * BLOCK_BYTES), 0.0, set(range(30))
    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.sampled_from([0.0, 0.1, 3.0]))
        block = data.draw(st.integers(0, 29))
        match data.draw(st.integers(0, 6)):
            case 0 | 1:
                wanted = pull.next_request(now, 0.0)
                assert wanted is None or (wanted and missing.issuperset(wanted))
                assert wanted is None or pull.in_flight_bytes <= max(BLOCK_BYTES, pull.credit_bytes)
            case 2:
                pull.arrived(block, BLOCK_BYTES, now)
                pull.verified(block)
                missing.discard(block)
            case 3:
                pull.holds(block, data.draw(st.sampled_from([UNIT, 3 * UNIT])))
            case 4 if block in missing:
                pull.rejected(block)
            case 5:
                pull.busy([block], 1.0, now, 0.0)
            case 6:
                pull.reconnected()
        assert pull.in_flight_bytes == sum(pull._asked.values())
        assert missing == set(pull._todo) | set(pull._asked)
        assert not set(pull._todo) & set(pull._asked)
