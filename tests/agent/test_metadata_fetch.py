"""Small blobs over the reply topic: whole, verified, and asked for again when they are not."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.protocol.messages import Reply, Status
from edgefleet_agent.metadata import MAX_BAD, MAX_PARTS, RETRY_CAP_S, RETRY_S, Fetch

CONTENT = bytes(range(256)) * 4
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def reply(part: int, parts: int, body: bytes, req_id: str = "1-1") -> Reply:
    return Reply(req_id=req_id, status=Status.OK, part=part, parts=parts, body=body)


def cut(parts: int, req_id: str = "1-1") -> list[Reply]:
    step = -(-len(CONTENT) // parts)
    return [reply(n, parts, CONTENT[n * step : (n + 1) * step], req_id) for n in range(parts)]


def asked(now: float = 0.0) -> Fetch:
    fetch = Fetch(DIGEST)
    fetch.asked("1-1", now)
    return fetch


def test_a_new_fetch_is_due_and_owns_nothing() -> None:
    fetch = Fetch(DIGEST)
    assert fetch.due(0.0)
    assert not fetch.owns(reply(0, 1, CONTENT, "1-1"))


@settings(deadline=None)
@given(st.permutations(range(7)), st.lists(st.integers(0, 6)))
def test_parts_in_any_order_with_repeats(order: list[int], repeated: list[int]) -> None:
    fetch, parts = asked(), cut(7)
    for number in [*repeated, *order]:
        assert fetch.add(parts[number])
    assert fetch.content == CONTENT
    assert not fetch.due(1e9)


def test_an_answer_to_an_older_request_is_nobodys() -> None:
    fetch = asked()
    first, second = cut(2, "1-1")
    assert fetch.owns(first)
    fetch.add(first)
    fetch.asked("1-2", 3.0)
    assert not fetch.owns(second)
    # What came for the older request is not mixed with the new answer.
    for part in cut(3, "1-2"):
        assert fetch.owns(part)
        fetch.add(part)
    assert (fetch.content, fetch.bad) == (CONTENT, 0)


def test_damaged_content_is_asked_for_again_at_once_and_given_up_in_the_end() -> None:
    fetch = asked()
    for bad in range(1, MAX_BAD):
        assert fetch.add(reply(0, 1, CONTENT[:-1], f"1-{bad}"))
        assert (fetch.content, fetch.bad) == (None, bad)
        assert fetch.due(0.0)
        fetch.asked(f"1-{bad + 1}", 0.0)
    assert not fetch.add(reply(0, 1, CONTENT + b"x"))
    assert fetch.content is None


def test_good_content_after_damaged_content_is_taken() -> None:
    fetch = asked()
    fetch.add(reply(0, 1, b""))
    fetch.asked("1-2", 0.0)
    fetch.add(reply(0, 1, CONTENT, "1-2"))
    assert fetch.content == CONTENT


@pytest.mark.parametrize(("part", "parts"), [(1, 1), (9, 3), (0, MAX_PARTS + 1), (10**12, 10**12)])
def test_parts_that_cannot_be_are_dropped(part: int, parts: int) -> None:
    fetch = asked()
    assert fetch.add(reply(part, parts, b"x"))
    fetch.add(reply(0, 1, CONTENT))
    assert fetch.content == CONTENT


def test_repeats_come_later_and_later_up_to_a_minute() -> None:
    fetch, now, wait_s = Fetch(DIGEST), 0.0, RETRY_S
    for number in range(10):
        assert fetch.due(now)
        fetch.asked(f"1-{number}", now)
        assert not fetch.due(now + wait_s - 0.001)
        now, wait_s = now + wait_s, min(RETRY_CAP_S, 2 * wait_s)
    assert wait_s == RETRY_CAP_S


def test_a_reconnect_asks_at_once_and_begins_the_waits_anew() -> None:
    fetch = Fetch(DIGEST)
    for number in range(6):
        fetch.asked(f"1-{number}", 0.0)
    fetch.reconnected()
    assert fetch.due(0.0)
    fetch.asked("2-1", 100.0)
    assert fetch.due(100.0 + RETRY_S)


def test_a_busy_hub_says_when_to_come_back() -> None:
    fetch = asked()
    fetch.wait(30.0, 1.0)
    assert not fetch.due(30.9)
    assert fetch.due(31.0)


def test_a_server_that_is_silent_for_days_does_not_end_the_agent() -> None:
    """1,100 requests, one a minute, are 18 hours."""
    fetch, now = Fetch(DIGEST), 0.0
    for number in range(1100):
        fetch.asked(f"1-{number}", now)
        now += RETRY_CAP_S
        assert fetch.due(now)
