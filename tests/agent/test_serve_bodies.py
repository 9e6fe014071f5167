"""Bodies of a known length and in chunks, however the network cuts them up. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.bodies import MAX_CHUNKS, Body, ChunkedBody, SizedBody

LIMIT = 1000
REFUSED = {
    b"\r\n": 400,
    b"x\r\n": 400,
    b"-1\r\n": 400,
    b"0x1\r\n": 400,
    b" 1\r\n": 400,
    b"1 \r\n": 400,
    b"1\n": 0,
    b"1\r\nab\r\n": 400,
    b"1\r\na\n": 400,
    b"1;" + b"x" * 300: 400,
    b"1;\x00\r\n": 400,
    b"f" * 13 + b"\r\n": 400,
    b"3e9\r\n": 413,
    b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n": 413,
    b"0\r\n" + b"x" * 20_000: 400,
    b"1\r\nx\r\n" * (MAX_CHUNKS + 1): 400,
}


def fed(body: Body, data: bytes, cuts: list[int]) -> bytes:
    """Feed it in pieces; returns what came after its end."""
    rest, start = b"", 0
    for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        piece, start = data[start:end], end
        rest += piece if body.complete else body.feed(piece)
    return rest


cuts = st.lists(st.integers(0, 400), max_size=8)


@given(st.binary(max_size=300), st.binary(max_size=20), cuts)
def test_a_sized_body_takes_its_bytes_and_no_more(whole: bytes, after: bytes, cut: list[int]) -> None:
    body = SizedBody(len(whole))
    assert fed(body, whole + after, cut) == after
    assert (body.complete, bytes(body.content())) == (True, whole)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=20), cuts)
def test_a_chunked_body_is_put_together(chunks: list[bytes], after: bytes, cut: list[int]) -> None:
    coded = b"".join(b"%X ;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    body = ChunkedBody(LIMIT)
    assert fed(body, coded + b"0\r\nX-Trailer: 1\r\n\r\n" + after, cut) == after
    assert (body.complete, bytes(body.content())) == (True, b"".join(chunks))


@pytest.mark.parametrize("raw", REFUSED, ids=lambda raw: repr(raw[:20]))
def test_what_is_no_clean_coding_is_refused(raw: bytes) -> None:
    body = ChunkedBody(LIMIT if len(raw) < 50_000 else 10**6)
    if REFUSED[raw] == 0:
        assert body.feed(raw) == b""
        assert not body.complete
        return
    with pytest.raises(RefusedError) as refused:
        body.feed(raw)
    assert refused.value.status == REFUSED[raw]


@given(st.binary(max_size=200), cuts)
def test_no_bytes_do_anything_but_wait_end_or_be_refused(raw: bytes, cut: list[int]) -> None:
    body = ChunkedBody(LIMIT)
    try:
        rest = fed(body, raw, cut)
    except RefusedError:
        return
    assert body.complete or rest == b""
    assert len(body.content()) <= LIMIT
