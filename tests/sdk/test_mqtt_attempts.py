"""When to try again, with which version, and whether a packet's size was to blame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgefleet.mqtt.attempts import RECONNECT_CAP_S, TAKEOVER_COUNT, TAKEOVER_WINDOW_S, Attempts
from edgefleet.mqtt.largest_publish import SUSPECT_FROM_BYTES, WITHIN_S, LargestPublish


def test_a_broker_that_closes_on_5_gets_311_at_once_until_it_was_away() -> None:
    attempts = Attempts()
    attempts.refused_5(10.0, said_so=False)
    assert (attempts.protocol.value, attempts.next_at, attempts.failures) == ("3.1.1", 10.0, 0)
    attempts.ended(20.0, 8.0)
    assert attempts.protocol.value == "3.1.1", "what it has taken once it takes again"
    attempts.failed(21.0)
    assert attempts.protocol.value == "5", "another broker may have come back"


def test_a_broker_that_took_5_is_not_thought_too_old_when_it_is_busy() -> None:
    """A thousand devices that come back at once must not each connect twice."""
    attempts = Attempts()
    assert attempts.doubts_5
    attempts.accepted()
    attempts.ended(10.0, 8.0)
    doubts = []
    for _ in range(4):
        doubts.append(attempts.doubts_5)
        attempts.failed(20.0)
    assert doubts == [False, False, True, True]
    attempts.accepted()
    attempts.ended(100.0, 8.0)
    assert not attempts.doubts_5


def test_a_broker_that_said_that_it_has_no_5_is_never_asked_again() -> None:
    attempts = Attempts()
    attempts.refused_5(10.0, said_so=True)
    attempts.failed(11.0)
    attempts.failed(12.0)
    assert attempts.protocol.value == "3.1.1"


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 100.0)), max_size=60))
def test_the_wait_is_never_long_nor_nothing(lives_s: list[float | None]) -> None:
    attempts, now = Attempts(), 1000.0
    for lived_s in lives_s:
        if lived_s is None:
            attempts.failed(now)
        else:
            attempts.ended(now, lived_s)
        assert 0.09 < attempts.next_at - now <= RECONNECT_CAP_S
        if lived_s is not None and lived_s >= TAKEOVER_WINDOW_S:
            assert attempts.next_at - now <= 1.0, "a connection that lasted is tried again soon"
        now = attempts.next_at


def test_taken_over_until_a_connection_lasts() -> None:
    attempts = Attempts()
    for number in range(1, TAKEOVER_COUNT + 1):
        assert not attempts.taken_over
        attempts.ended(float(number), 0.5)
    assert attempts.taken_over
    attempts.lasts(TAKEOVER_WINDOW_S - 0.1)
    assert attempts.taken_over
    attempts.lasts(TAKEOVER_WINDOW_S)
    assert not attempts.taken_over


def test_only_the_first_publish_of_its_size_is_suspect() -> None:
    largest = LargestPublish()
    assert not largest.is_suspect(0.0)
    largest.sent(SUSPECT_FROM_BYTES, 10.0)
    assert not largest.is_suspect(10.0), "no broker limits packets so low"
    largest.sent(61_440, 20.0)
    assert largest.is_suspect(20.0)
    largest.sent(61_440, 20.0 + WITHIN_S)
    assert not largest.is_suspect(20.1 + WITHIN_S), "its size has passed: a broker that ends now has another reason"
