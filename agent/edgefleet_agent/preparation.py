"""The disk before the first byte is asked for and after the last one came: room, part files, blocks at hand, the slot.

It runs beside the loop and asks nobody for anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgefleet.package.digest import DIGEST_BYTES, block_count
from edgefleet.package.manifest import Descriptor, Manifest, VariantSpec
from edgefleet_agent import blocks_at_hand
from edgefleet_agent import slots as slot_files
from edgefleet_agent.part_file import PartFile
from edgefleet_agent.slots import Slots

# For the journal, the spool and whoever else lives on the disk, at least; of a small disk a part.
FLOOR_BYTES = 16 * 1024 * 1024
FLOOR_SHARE = 32


class NoRoomError(Exception):
    """The disk is too small for the variant; the text says what is needed and what there is."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer on its way to disk; `first` is the number of its first block among all of the variant's."""

    layer: Descriptor
    part: PartFile
    first: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was found and made."""

    files: tuple[LayerFile, ...]
    reused_bytes: int
    """Bytes that other variants on this device had."""

    @property
    def verified_bytes(self) -> int:
        """Bytes that need not be pulled, those of an interrupted pull included."""
        return sum(file.part.verified_bytes for file in self.files)

    @property
    def total_bytes(self) -> int:
        """Bytes of the variant."""
        return sum(file.part.size_bytes for file in self.files)


def kept_free(disk_bytes: int, floor_mib: float) -> int:
    """Bytes that an install leaves free on a disk of that size, of a profile's `free_floor_mib`."""
    return min(max(FLOOR_BYTES, int(floor_mib * 2**20)), disk_bytes // FLOOR_SHARE)


def prepare(
    slots: Slots,
    digest: str,
    manifest_bytes: bytes,
    digests: bytes,
    cancelled: Callable[[], bool],
    *,
    floor_mib: float = 0.0,
) -> Prepared:
    """Reserve the disk for every layer of the variant `digest`, re-hash what was pulled, copy what is at hand.

    `digests` are the raw block digests of all layers, in order; `floor_mib` is as for `kept_free`. Raises NoRoomError,
    ValueError (the package makes no sense) or OSError.
    """
    layers = slot_files.layers_to_pull(Manifest.model_validate_json(manifest_bytes))
    _check(layers, digests)
    staging = slots.staging(digest)
    need = _needed(slots, staging, layers) + len(manifest_bytes) + len(digests)
    _make_room(slots, digest, staging, need, floor_mib)
    slots.describe(staging, manifest_bytes, digests)
    files: list[LayerFile] = []
    first = 0
    try:
        for layer in layers:
            end = first + block_count(layer.size)
            own = digests[first * DIGEST_BYTES : end * DIGEST_BYTES]
            files.append(LayerFile(layer, PartFile(slots.part(staging, layer), layer.size, own, cancelled), first))
            first = end
        others = [folder for folder in slots.folders() if folder != staging]
        reused_bytes = _reuse(files, others, cancelled)
    except BaseException:
        _abandon(files)
        raise
    if cancelled():
        _abandon(files)
    return Prepared(tuple(files), reused_bytes)


def finish(slots: Slots, digest: str, manifest_bytes: bytes, digests: bytes, prepared: Prepared) -> VariantSpec:
    """Put what is complete on disk for good and make a slot of it; raises SlotDamagedError or OSError."""
    for file in prepared.files:
        file.part.close()
    return slots.finish(digest, manifest_bytes, digests)


def _abandon(files: Iterable[LayerFile]) -> None:
    for file in files:
        file.part.abandon()


def _check(layers: list[Descriptor], digests: bytes) -> None:
    if not layers:
        raise ValueError("the variant has no layers")
    if len({slot_files.file_name(layer) for layer in layers}) < len(layers):
        raise ValueError("two layers have the same file name")
    if len(digests) != DIGEST_BYTES * sum(block_count(layer.size) for layer in layers):
        raise ValueError("the block digests do not fit the layers")


def _needed(slots: Slots, staging: Path, layers: list[Descriptor]) -> int:
    """Bytes of the layers that the disk has not reserved yet."""
    return sum(layer.size - _allocated(slots.part(staging, layer), layer.size) for layer in layers)


def _make_room(slots: Slots, digest: str, staging: Path, need: int, floor_mib: float) -> None:
    """Make sure that so many bytes fit, with a floor left free; what nobody runs goes when it must."""
    have, floor = _free(staging, floor_mib)
    if need > have:
        for folder in slots.spare(digest):
            shutil.rmtree(folder, ignore_errors=True)
        have, floor = _free(staging, floor_mib)
    if need > have:
        raise NoRoomError(f"{need} bytes are needed, {have} are free beside the {floor} that stay free")


def _allocated(part: Path, size: int) -> int:
    """Bytes of a part file that the disk has reserved already."""
    try:
        found = part.stat()
    except FileNotFoundError:
        return 0
    return min(found.st_blocks * 512, size) if found.st_size == size else 0


def _free(folder: Path, floor_mib: float) -> tuple[int, int]:
    """(bytes that may be used, bytes that stay free)."""
    usage = shutil.disk_usage(folder)
    floor = kept_free(usage.total, floor_mib)
    return max(0, usage.free - floor), floor


def _reuse(files: list[LayerFile], folders: list[Path], cancelled: Callable[[], bool]) -> int:
    """Copy the blocks that other variants have; returns the bytes that came, or had come, from there."""
    wanted = frozenset(f.part.digest(block) for f in files for block in range(block_count(f.part.size_bytes)))
    places = blocks_at_hand.find(folders, wanted)
    reused_bytes = 0
    for file in files:
        part = file.part
        for block in range(block_count(part.size_bytes)):
            if cancelled():
                return reused_bytes
            if _is_here(part, block, places.get(part.digest(block), ())):
                reused_bytes += part.block_size(block)
    return reused_bytes


def _is_here(part: PartFile, block: int, places: Iterable[blocks_at_hand.Place]) -> bool:
    """Whether another variant has a block; it is in its part file then."""
    for place in places:
        if block in part.verified:
            return True
        content = place.read()
        if content is not None and part.add_block(block, content[: part.block_size(block)]):
            return True
    return False
