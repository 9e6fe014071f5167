"""The hash of a file that is still being written: of what it holds, in any order of writing."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from edgefleet.package.digest import BLOCK_BYTES, block_digests, digest_of
from edgefleet_agent.part_file import PartFile
from edgefleet_agent.whole_digest import STEP_BYTES, WholeDigest

CONTENT = random.Random(1).randbytes(3 * STEP_BYTES + 4567)
SIZES = (0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, len(CONTENT))


@pytest.mark.parametrize("size_bytes", SIZES)
def test_it_is_the_hash_of_the_whole_wherever_the_writer_paused(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    with path.open("w+b", buffering=0) as stream:
        whole = WholeDigest(stream)
        for start in range(0, size_bytes, 300_000):
            stream.write(CONTENT[start : min(size_bytes, start + 300_000)])
            whole.follow(min(size_bytes, start + 300_000))
        assert whole.finish(size_bytes) == digest_of(CONTENT[:size_bytes])


def _part(path: Path) -> PartFile:
    source = path.with_suffix(".source")
    source.write_bytes(CONTENT)
    return PartFile(path, len(CONTENT), b"".join(block_digests(source)))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_may_come_in_any_order(tmp_path: Path, seed: int) -> None:
    part = _part(tmp_path / "p.part")
    blocks = part.missing
    random.Random(seed).shuffle(blocks)
    for block in blocks:
        assert part.add_block(block, CONTENT[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
    assert part.close() == digest_of(CONTENT)


def _add(part: PartFile, block: int) -> None:
    assert part.add_block(block, CONTENT[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])


def test_it_reads_what_lies_in_the_file_and_not_what_was_written(tmp_path: Path) -> None:
    part = _part(tmp_path / "p.part")
    first, *others = part.missing
    for block in others:
        _add(part, block)
    changed = bytearray(CONTENT)
    changed[-1] ^= 1
    with part.path.open("r+b") as stream:
        stream.seek(len(CONTENT) - 1)
        stream.write(changed[-1:])
    _add(part, first)
    assert part.close() == f"sha256:{hashlib.sha256(changed).hexdigest()}"


def test_a_file_cut_short_meanwhile_has_another_hash_and_ends(tmp_path: Path) -> None:
    part = _part(tmp_path / "p.part")
    first, *others = part.missing
    for block in others:
        _add(part, block)
    with part.path.open("r+b") as stream:
        stream.truncate(len(CONTENT) - BLOCK_BYTES // 2)
    _add(part, first)
    assert part.close() != digest_of(CONTENT)


def test_what_comes_in_order_leaves_nothing_to_read_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = _part(tmp_path / "p.part")
    for block in part.missing:
        _add(part, block)
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read again"))
    assert part.close() == digest_of(CONTENT)


def test_no_block_waits_for_the_hash_of_all_that_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = _part(tmp_path / "p.part")
    first, *others = part.missing
    for block in others:
        _add(part, block)
    real, read = os.pread, []

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    _add(part, first)
    assert sum(read) <= STEP_BYTES
    assert part.close() == digest_of(CONTENT)


def test_an_abandoned_file_is_read_no_more(tmp_path: Path) -> None:
    part = _part(tmp_path / "p.part")
    for block in part.missing[:-1]:
        part.add_block(block, CONTENT[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
    part.abandon()
    with pytest.raises(ValueError, match="closed file"):
        part.close()
