"""Pieces and replies that are damaged, cut, doubled, out of order, old or somebody else's: never kept, never counted.

An installation in this process against a scripted hub, a few milliseconds each; real processes are beside it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgefleet.package.digest import BLOCK_BYTES, block_digests
from edgefleet.package.manifest import Layer
from edgefleet_agent.slots import SlotDamagedError
from faults.matrix import sampled
from faults.scripted import MODEL_BYTES, Ended, ScriptedHub, install, write_bytes_package
from faults.wire_scripts import FAULTS

# Index, manifest, block digests, settings and golden file, with room.
SMALL_BYTES = 16 * 1024
PLACES = {"first": 0, "second": 1, "middle": 9, "last": -1}


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, the piece that it hits, and the size of the pieces in units of 15 KiB."""

    fault: str
    place: str
    units: int

    def __str__(self) -> str:
        return f"{self.fault}, {self.place}, {self.units * 15} KiB"

    @property
    def at(self) -> int:
        """Number of the piece: of the model's when it has as many, else the last."""
        pieces = -(-MODEL_BYTES // (self.units * 15 * 1024))
        place = PLACES[self.place]
        if "metadata" in self.fault or "parts" in self.fault:
            return min(max(place, 0), 1)
        return pieces - 1 if place < 0 else min(place, pieces - 1)


CASES = [
    Case(fault, place, units)
    for fault in FAULTS
    for place in PLACES
    for units in (4, 2, 1)
    # A unit is the smallest piece that there is.
    if (fault, units) != ("mixed sizes", 1)
]


@pytest.mark.parametrize("case", sampled("wire", CASES))
def test_wire(case: Case, tmp_path: Path) -> None:
    row = FAULTS[case.fault]
    package = write_bytes_package(tmp_path / "package")
    hub = ScriptedHub(package, row.fault(case.at, random.Random(str(case))), case.units)
    ended = install(tmp_path / "state", hub)
    if row.ends is None:
        assert ended.reason is None
        # Every file of the slot is hashed here, against what the package says.
        ended.slots.check(ended.digest)
    else:
        assert row.ends in str(ended.reason)
        with pytest.raises(SlotDamagedError):
            ended.slots.check(ended.digest)
        _keeps_no_unverified_block(ended, hub)
    assert hub.touched > 0
    assert ended.install.bad_blocks > 0 if row.bad else ended.install.bad_blocks <= row.again
    assert hub.delivered_bytes <= MODEL_BYTES + SMALL_BYTES + row.again * (BLOCK_BYTES + 10_000)
    assert ended.install.pulled_bytes <= hub.delivered_bytes
    if ended.reason is None:
        assert ended.install.pulled_bytes >= MODEL_BYTES


def _keeps_no_unverified_block(ended: Ended, hub: ScriptedHub) -> None:
    """What lies in a part file is either a block of the package or zeros that nobody wrote."""
    if not ended.digest:
        return
    manifest = hub.package.manifest(ended.digest)
    layers = [layer for layer in manifest.layers if layer.media_type != Layer.BLOCKS]
    good = {raw for layer in layers for raw in block_digests(hub.package.blobs.path(layer.digest))}
    empty = _digests_of_zeros(layers[0].size % BLOCK_BYTES, *(layer.size % BLOCK_BYTES for layer in layers))
    for part in ended.slots.staging(ended.digest).glob("*.part"):
        assert set(block_digests(part)) <= good | empty


def _digests_of_zeros(*sizes: int) -> set[bytes]:
    return {hashlib.sha256(bytes(size)).digest() for size in (BLOCK_BYTES, *sizes)}
