"""Small blobs over the reply topic: whole, verified, and asked for again when they are not."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.protocol.messages import Reply, Status
from edgefleet_agent.metadata import (
    MAX_BAD,
    MAX_BYTES,
    MAX_PARTS,
    MAX_TRIES,
    OPEN_REQUESTS,
    RETRY_CAP_S,
    RETRY_S,
    Fetch,
)

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


@given(st.permutations(range(7)), st.lists(st.integers(0, 6)))
def test_parts_in_any_order_with_repeats(order: list[int], repeated: list[int]) -> None:
    fetch, parts = asked(), cut(7)
    for number in [*repeated, *order]:
        assert fetch.add(parts[number], 0.0)
    assert fetch.content == CONTENT
    assert not fetch.due(1e9)


def test_answers_to_two_requests_are_not_mixed() -> None:
    fetch = asked()
    first, second = cut(2, "1-1")
    fetch.add(first, 0.0)
    fetch.asked("1-2", 3.0)
    for part in cut(3, "1-2")[:2]:
        assert fetch.owns(part)
        fetch.add(part, 3.0)
    assert not fetch.content
    # A slow line: the answer to the first request is only now complete.
    assert fetch.owns(second)
    fetch.add(second, 3.0)
    assert (fetch.content, fetch.bad) == (CONTENT, 0)
    assert not fetch.owns(second)


def test_an_answer_to_a_much_older_request_is_nobodys() -> None:
    fetch = asked()
    for number in range(OPEN_REQUESTS):
        fetch.asked(f"2-{number}", 0.0)
    assert not fetch.owns(reply(0, 1, CONTENT, "1-1"))
    fetch.add(reply(0, 1, CONTENT, "1-1"), 0.0)
    assert fetch.content is None


def test_parts_that_still_come_put_the_next_request_off() -> None:
    fetch, parts = asked(), cut(7)
    for number, part in enumerate(parts[:-1]):
        assert not fetch.due(number * 1.9)
        fetch.add(part, number * 1.9)
    assert fetch.due(5 * 1.9 + RETRY_S)


def test_more_than_metadata_may_be_is_not_kept() -> None:
    fetch, body = asked(), bytes(MAX_BYTES // 4)
    for part in range(6):
        assert fetch.add(reply(part, 6, body), 0.0)
    assert (fetch.content, fetch.bad) == (None, 0)
    assert sum(len(held) for held in fetch._answers["1-1"].values()) == MAX_BYTES


def test_damaged_content_is_asked_for_again_at_once_and_given_up_in_the_end() -> None:
    fetch = asked()
    for bad in range(1, MAX_BAD):
        assert fetch.add(reply(0, 1, CONTENT[:-1], f"1-{bad}"), 0.0)
        assert (fetch.content, fetch.bad) == (None, bad)
        assert fetch.due(0.0)
        fetch.asked(f"1-{bad + 1}", 0.0)
    assert not fetch.add(reply(0, 1, CONTENT + b"x", f"1-{MAX_BAD}"), 0.0)
    assert fetch.content is None


def test_good_content_after_damaged_content_is_taken() -> None:
    fetch = asked()
    fetch.add(reply(0, 1, b""), 0.0)
    fetch.asked("1-2", 0.0)
    fetch.add(reply(0, 1, CONTENT, "1-2"), 0.0)
    assert fetch.content == CONTENT


@pytest.mark.parametrize(("part", "parts"), [(1, 1), (9, 3), (0, MAX_PARTS + 1), (10**12, 10**12)])
def test_parts_that_cannot_be_are_dropped(part: int, parts: int) -> None:
    fetch = asked()
    assert fetch.add(reply(part, parts, b"x"), 0.0)
    fetch.add(reply(0, 1, CONTENT), 0.0)
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
    for jitter in (0.0, 1.0):
        fetch = asked()
        fetch.wait(30.0, 1.0, jitter)
        later_s = 15.0 * jitter
        assert not fetch.due(30.9 + later_s)
        assert fetch.due(31.0 + later_s)
    fetch.wait(30.0, 1.0)
    assert not fetch.due(30.9)
    assert fetch.due(46.0)


def test_a_server_that_stays_silent_is_given_up_after_half_an_hour() -> None:
    fetch, now = Fetch(DIGEST), 0.0
    while not fetch.gave_up:
        assert fetch.due(now)
        fetch.asked("1-1", now)
        now = fetch._next_at
    assert 20 * 60 < now < 40 * 60
    fetch.reconnected()
    assert not fetch.gave_up
    for _ in range(MAX_TRIES):
        fetch.asked("1-1", now)
    assert not fetch.gave_up


@pytest.mark.parametrize("parts", [1, 3])
def test_a_deflated_blob_is_inflated_by_its_digest(parts: int) -> None:
    fetch, deflated = asked(), zlib.compress(CONTENT)
    step = -(-len(deflated) // parts)
    for number in range(parts):
        assert fetch.add(reply(number, parts, deflated[number * step : (number + 1) * step]), 0.0)
    assert fetch.content == CONTENT


def test_what_inflates_to_something_else_or_without_end_is_no_answer() -> None:
    for body in (zlib.compress(CONTENT + b"x"), zlib.compress(bytes(4 * MAX_BYTES)), zlib.compress(CONTENT)[:-20]):
        fetch = asked()
        assert fetch.add(reply(0, 1, body), 0.0)
        assert (fetch.content, fetch.bad) == (None, 1)
