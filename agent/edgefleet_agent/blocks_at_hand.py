"""Blocks that are on the device already: found by digest in the variants on disk, wherever they came from.

The lists of digests that lie beside the files are believed only as far as where to look: what is read there is
verified by whoever wanted it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgefleet.package.digest import BLOCK_BYTES, DIGEST_BYTES, block_count
from edgefleet.package.layout import BLOCKS_FILE
from edgefleet.package.manifest import Manifest
from edgefleet_agent.slots import MANIFEST_FILE, file_name, layers_to_pull, part_name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block should lie."""

    path: Path
    offset: int

    def read(self) -> bytes | None:
        """What lies there, at most a block; None when it cannot be read."""
        try:
            with self.path.open("rb") as stream:
                return os.pread(stream.fileno(), BLOCK_BYTES, self.offset)
        except OSError:
            return None


def find(folders: Iterable[Path], wanted: frozenset[bytes]) -> dict[bytes, list[Place]]:
    """Places of the blocks with these raw digests; folders without a readable list of digests are passed over."""
    found: dict[bytes, list[Place]] = {}
    for folder in folders:
        try:
            for digest, place in _blocks_of(folder):
                if digest in wanted:
                    found.setdefault(digest, []).append(place)
        except (OSError, ValueError):
            continue
    return found


def _blocks_of(folder: Path) -> list[tuple[bytes, Place]]:
    """(raw digest, place) of every block of a variant on disk; raises OSError or ValueError."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    digests = (folder / BLOCKS_FILE).read_bytes()
    blocks: list[tuple[bytes, Place]] = []
    for layer in layers_to_pull(manifest):
        whole, part = folder / file_name(layer), folder / part_name(layer)
        path = whole if whole.exists() else part
        for number in range(block_count(layer.size)):
            start = len(blocks) * DIGEST_BYTES
            blocks.append((digests[start : start + DIGEST_BYTES], Place(path, number * BLOCK_BYTES)))
    return blocks
