"""A blob on its way to disk: only blocks that match their digests get there."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet_agent.part_file import MAX_INCOMPLETE, Added, PartFile

UNIT = 15 * 1024
SIZE = 2 * BLOCK_BYTES + 20_000
CONTENT = bytes((place * 31 + place // 997) % 256 for place in range(SIZE))


def digests(content: bytes) -> bytes:
    starts = range(0, len(content), BLOCK_BYTES)
    return b"".join(hashlib.sha256(content[start : start + BLOCK_BYTES]).digest() for start in starts)


def part(path: Path, content: bytes = CONTENT) -> PartFile:
    return PartFile(path, len(content), digests(content))


def said(added: Added | None) -> tuple[int, bool | None] | None:
    return None if added is None else (added.block, added.verified)


def pieces(block: int, units: int, content: bytes = CONTENT) -> list[tuple[int, bytes]]:
    """(piece number, bytes) of a block cut into pieces of `units` × 15 KiB."""
    whole = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    step = units * UNIT
    return [(block * 4 + start // UNIT, whole[start : start + step]) for start in range(0, len(whole), step)]


@pytest.mark.parametrize("units", [1, 2, 4])
@pytest.mark.parametrize("backwards", [False, True])
def test_pieces_of_every_size_in_any_order(tmp_path: Path, units: int, backwards: bool) -> None:
    made = part(tmp_path / "p")
    assert made.missing == [0, 1, 2]
    for block in (2, 0, 1):
        cut = pieces(block, units)
        results = [made.add(*piece) for piece in (cut[::-1] if backwards else cut)]
        assert [said(result) for result in results] == [(block, None)] * (len(cut) - 1) + [(block, True)]
        # What is held never falls, and is the whole block in the end.
        held = [result.held_bytes for result in results if result is not None]
        assert held == sorted(held)
        assert held[-1] == made.block_size(block)
    assert (made.missing, made.verified_bytes) == ([], SIZE)
    made.close()
    assert (tmp_path / "p").read_bytes() == CONTENT


def test_repeated_pieces_are_harmless(tmp_path: Path) -> None:
    made = part(tmp_path / "p")
    first, second, third, fourth = pieces(0, 1)
    for piece in (second, second, first, second, fourth):
        assert said(made.add(*piece)) == (0, None)
    assert said(made.add(*third)) == (0, True)
    assert made.add(*third) is None
    assert made.verified == {0}


def test_a_repeated_piece_is_not_counted_twice(tmp_path: Path) -> None:
    made = part(tmp_path / "p")
    held = [made.add(*piece) for piece in (pieces(0, 1)[1], pieces(0, 1)[1], pieces(0, 2)[0], pieces(0, 1)[0])]
    assert [added.held_bytes for added in held if added is not None] == [UNIT, UNIT, 2 * UNIT, UNIT]


def test_the_beginnings_of_many_blocks_do_not_fill_the_memory(tmp_path: Path) -> None:
    content = bytes(200 * BLOCK_BYTES)
    made = part(tmp_path / "p", content)
    taken = [made.add(block * 4, bytes(UNIT)) is not None for block in range(200)]
    assert taken == [True] * MAX_INCOMPLETE + [False] * (200 - MAX_INCOMPLETE)
    for number, piece in pieces(0, 1, content):
        made.add(number, piece)
    assert made.verified == {0}
    assert made.add(199 * 4, bytes(UNIT)) is not None


def test_a_whole_block_after_some_of_its_pieces_is_taken(tmp_path: Path) -> None:
    """A hub that came back with another piece size: what is left of the old pieces must not spoil the new one."""
    made = part(tmp_path / "p")
    assert said(made.add(*pieces(0, 1)[1])) == (0, None)
    assert said(made.add(*pieces(0, 4)[0])) == (0, True)


@pytest.mark.parametrize(
    ("piece", "content"),
    [
        (0, b""),
        (0, CONTENT[: UNIT - 1]),
        (1, CONTENT[UNIT : 2 * UNIT + 1]),
        (8, CONTENT[2 * BLOCK_BYTES : -1]),
        (0, CONTENT[: BLOCK_BYTES + 1]),
        (3, CONTENT[3 * UNIT : 3 * UNIT + UNIT + 1]),
        (8, CONTENT[2 * BLOCK_BYTES :] + b"x"),
        (12, b"x"),
        (999_999_999, b"x"),
        (10, b"x"),
    ],
)
def test_pieces_that_fit_nowhere_are_dropped(tmp_path: Path, piece: int, content: bytes) -> None:
    made = part(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()
    assert made.add(piece, content) is None
    for block in range(3):
        assert said(made.add(*pieces(block, 4)[0])) == (block, True)
    assert before == bytes(SIZE)


def test_a_block_that_does_not_match_is_never_written_and_can_come_again(tmp_path: Path) -> None:
    made = part(tmp_path / "p")
    damaged = bytearray(CONTENT[:BLOCK_BYTES])
    damaged[-1] ^= 1
    assert said(made.add(0, bytes(damaged))) == (0, False)
    for number, piece in pieces(1, 1):
        result = said(made.add(number + 0, bytes(len(piece))))
    assert result == (1, False)
    assert (tmp_path / "p").read_bytes() == bytes(SIZE)
    assert made.missing == [0, 1, 2]
    assert [said(made.add(*piece)) for piece in pieces(0, 2)] == [(0, None), (0, True)]


def test_a_block_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    made = part(tmp_path / "p")
    assert said(made.add(0, CONTENT[BLOCK_BYTES : 2 * BLOCK_BYTES])) == (0, False)
    assert said(made.add(8, CONTENT[: SIZE - 2 * BLOCK_BYTES])) == (2, False)
    assert made.verified_bytes == 0


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_awkward_sizes(tmp_path: Path, size: int) -> None:
    content = CONTENT[:size]
    made = part(tmp_path / "p", content)
    assert len(made.missing) == -(-size // BLOCK_BYTES)
    for block in made.missing:
        for piece in pieces(block, 4, content):
            assert said(made.add(*piece)) == (block, True)
    made.close()
    assert (tmp_path / "p").read_bytes() == content
    assert part(tmp_path / "p", content).missing == []


# After a restart --------------------------------------------------------------------------------------


def test_resuming_finds_what_is_good_and_nothing_else(tmp_path: Path) -> None:
    first = part(tmp_path / "p")
    for block in (0, 2):
        first.add(*pieces(block, 4)[0])
    first.add(*pieces(1, 1)[0])
    first.abandon()
    again = part(tmp_path / "p")
    assert (again.verified, again.missing) == ({0, 2}, [1])
    assert again.verified_bytes == SIZE - BLOCK_BYTES
    assert said(again.add(*pieces(1, 4)[0])) == (1, True)
    again.close()
    assert (tmp_path / "p").read_bytes() == CONTENT


def test_a_torn_block_is_asked_for_again(tmp_path: Path) -> None:
    first = part(tmp_path / "p")
    for block in range(3):
        first.add(*pieces(block, 4)[0])
    first.close()
    with (tmp_path / "p").open("r+b") as stream:  # a power cut in the middle of a block's write
        stream.seek(BLOCK_BYTES + 4096)
        stream.write(bytes(8192))
    again = part(tmp_path / "p")
    assert again.missing == [1]


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_part_file_of_another_size_is_begun_anew(tmp_path: Path, size: int) -> None:
    (tmp_path / "p").write_bytes((CONTENT + b"x")[:size])
    made = part(tmp_path / "p")
    assert made.missing == [0, 1, 2]
    assert (tmp_path / "p").stat().st_size == SIZE


def test_another_blobs_part_file_holds_nothing_of_use(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(CONTENT[::-1])
    assert part(tmp_path / "p").verified == set()


# The disk ---------------------------------------------------------------------------------------------


def test_a_disk_that_cannot_hold_the_blob_is_known_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        part(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_an_error_and_no_verified_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = part(tmp_path / "p")
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, whole, offset: real(descriptor, whole[:100], offset))
        with pytest.raises(OSError, match="No space left"):
            made.add(*pieces(0, 4)[0])
    assert 0 in made.missing
    assert said(made.add(*pieces(0, 4)[0])) == (0, True)


def test_an_error_at_fsync_takes_the_file_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write, so re-hashing would believe what is only in memory."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    made = part(tmp_path / "p")
    made.add(*pieces(0, 4)[0])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        made.close()
    assert list(tmp_path.iterdir()) == []


def test_rehashing_stops_when_told_to(tmp_path: Path) -> None:
    first = part(tmp_path / "p")
    for block in range(3):
        first.add(*pieces(block, 4)[0])
    first.close()
    answers = iter([False, True])
    again = PartFile(tmp_path / "p", SIZE, digests(CONTENT), lambda: next(answers))
    assert again.verified == {0}


@settings(max_examples=40)
@given(st.data())
def test_whatever_comes_in_only_good_blocks_reach_the_disk(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("part") / "p"
    made = part(path)
    for _ in range(data.draw(st.integers(0, 15))):
        block, units = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([1, 2, 4]))
        number, piece = data.draw(st.sampled_from(pieces(block, units)))
        if data.draw(st.integers(0, 3)) == 0:
            piece = data.draw(st.sampled_from([piece[:-1], piece + b"x", b"\x01" + piece[1:], piece[::-1]]))
        made.add(number, piece)
    made.close()
    on_disk = path.read_bytes()
    for block in range(3):
        there = on_disk[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        good = CONTENT[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        assert there == (good if block in made.verified else bytes(len(good)))
