"""Shared memory and the pipes beside it: laid out without overlap, never made smaller, and lines however they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.channel import INFER, INFERRED, Channel, parsed
from edgefleet_agent.tensors import ALIGNMENT_BYTES, FIRST_BYTES, HEADER_BYTES, MAX_BYTES, Region, lay_out


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_tensors_are_aligned_and_never_overlap(sizes: list[int]) -> None:
    places, end = lay_out((f"t{size}", "int8", (size,), size) for size in sizes)
    before = HEADER_BYTES
    for (_, _, _, offset, size), wanted in zip(places, sizes, strict=True):
        assert size == wanted
        assert before <= offset < before + ALIGNMENT_BYTES
        assert offset % ALIGNMENT_BYTES == 0
        before = offset + size
    assert end == before


def test_what_one_writes_the_other_reads_also_after_it_grew() -> None:
    ours = Region.make()
    theirs = Region(os.dup(ours.fileno()))
    ours.view[100] = 7
    assert theirs.reserve(3 * FIRST_BYTES)
    theirs.view[3 * FIRST_BYTES - 1] = 9
    assert (theirs.view[100], len(ours.view)) == (7, FIRST_BYTES)
    assert ours.reserve(3 * FIRST_BYTES)
    assert (ours.view[100], ours.view[3 * FIRST_BYTES - 1]) == (7, 9)
    assert not ours.reserve(3 * FIRST_BYTES)
    theirs.inference_s = 0.125
    assert ours.inference_s == 0.125
    ours.close()
    theirs.close()


def test_nobody_can_make_it_smaller() -> None:
    """Whoever read behind its new end would die of SIGBUS."""
    region = Region.make()
    with pytest.raises(PermissionError):
        os.ftruncate(region.fileno(), FIRST_BYTES // 2)
    region.close()


def test_more_than_is_allowed_is_not_even_tried() -> None:
    region = Region.make()
    with pytest.raises(ValueError, match="are allowed"):
        region.reserve(MAX_BYTES + 1)
    assert len(region.view) == FIRST_BYTES
    region.close()


@pytest.fixture(name="pipe")
def _pipe() -> Iterator[tuple[Channel, int]]:
    """A worker's channel, and the end at which its agent writes."""
    reads, agent_writes = os.pipe()
    agent_reads, writes = os.pipe()
    yield Channel(reads, writes), agent_writes
    for descriptor in (reads, writes, agent_reads):
        os.close(descriptor)


def test_messages_come_one_by_one_however_their_bytes_come(pipe: tuple[Channel, int]) -> None:
    channel, agent = pipe
    os.write(agent, b'{"kind": "a"}\n{"kind": "b"}\n{"ki')
    assert [channel.receive(0.0), channel.receive(0.0)] == [{"kind": "a"}, {"kind": "b"}]
    assert channel.receive(0.0) is None
    assert channel.receive(0.06) is None
    os.write(agent, b'nd": "c"}\n')
    assert channel.receive(None) == {"kind": "c"}
    os.close(agent)
    with pytest.raises(EOFError):
        channel.receive(None)


def test_what_is_known_by_its_bytes_is_what_it_says() -> None:
    for line in (INFER, INFERRED):
        assert parsed(line.encode()) == json.loads(line)
