"""Every parser of foreign bytes returns a value or raises what it promises, in one line and in bounded memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import hostile
from fuzz.targets import TARGETS, Target, check, message_classes

MAX_MEMORY_BYTES = 16 * 1024 * 1024
PACKET_BYTES = 60_000
# Their examples name blobs that are not there, which is said last.
WITHOUT_BLOBS = {"Layout", "Package"}
# What a packet of the largest size can hold, at its worst for a parser.
BOMBS = {
    "nested lists": b"[" * PACKET_BYTES,
    "nested objects": b'{"a":' * (PACKET_BYTES // 5),
    "a long number": b"9" * PACKET_BYTES,
    "a long number in a field": b'{"v":1,"seq":' + b"9" * PACKET_BYTES + b"}",
    "a long string": b'{"v":1,"req_id":"' + b"x" * PACKET_BYTES + b'","kind":"blocks"}',
    "a long key with line breaks": b'{"v":1,"machine":{"runtimes":{"' + rb"x\n" * (PACKET_BYTES // 3) + b'":"1"}}}',
    "many ranges": b'{"v":1,"req_id":"1","kind":"blocks","blocks":[' + b"[0,1]," * (PACKET_BYTES // 6) + b"[0,1]]}",
    "many objects": b'{"v":1,"signatures":[' + b"{}," * (PACKET_BYTES // 3) + b"{}]}",
    "no UTF-8": b"\xff" * PACKET_BYTES,
    "half a surrogate": rb'{"v":1,"spool_id":"\ud800","seq":1}',
    "not a number": b'{"v":1,"valid_until":NaN,"at":Infinity}',
}


def test_every_message_class_has_a_target() -> None:
    assert {cls.__name__ for cls in message_classes()} <= set(TARGETS)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - WITHOUT_BLOBS))
def test_examples_are_valid(name: str) -> None:
    for example in TARGETS[name].examples:
        TARGETS[name].parse(example)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_hostile_bytes(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    assert check(target, data.draw(hostile(target.examples))) is None


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", TARGETS)
def test_bombs(name: str, bomb: str) -> None:
    assert check(TARGETS[name], BOMBS[bomb]) is None
    assert _peak_bytes(TARGETS[name], BOMBS[bomb]) < MAX_MEMORY_BYTES


def _peak_bytes(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        check(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
