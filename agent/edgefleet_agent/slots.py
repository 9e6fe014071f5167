"""Variants on disk: one folder each, and `current`, a link that is switched by one atomic rename.

A folder appears under `slots/` only when every file in it matched its digest. It knows nothing of the lifecycle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from edgefleet import durable
from edgefleet.package.digest import digest_of, digest_of_file
from edgefleet.package.layout import SETTINGS_FILE
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Descriptor, Layer, Manifest, VariantSpec

MANIFEST_FILE = "manifest.json"


class SlotDamagedError(Exception):
    """A slot's files do not match its manifest any more; the text says which."""


def file_name(layer: Descriptor) -> str:
    """Name of a layer's file in a slot; raises ValueError for names that would leave the folder."""
    name = (layer.annotations or {}).get(FILEPATH_ANNOTATION, "")
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"the layer {layer.digest[:19]}… has the file name {name!r}")
    return name


class Slots:
    """The variants below one state folder."""

    def __init__(self, folder: Path) -> None:
        """Create what is missing; raises OSError."""
        self._slots = folder / "slots"
        self._staging = folder / "staging"
        self._current = folder / "current"
        for path in (self._slots, self._staging):
            path.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Folder of a variant, by its manifest's digest."""
        return self._slots / digest.removeprefix("sha256:")[:32]

    def staging(self, digest: str) -> Path:
        """Folder in which a variant is assembled; it survives restarts."""
        path = self._staging / digest.removeprefix("sha256:")[:32]
        path.mkdir(parents=True, exist_ok=True)
        return path

    @staticmethod
    def part(staging: Path, layer: Descriptor) -> Path:
        """Part file of a layer."""
        return staging / f"{file_name(layer)}.part"

    def finish(self, digest: str, manifest_bytes: bytes) -> Path:
        """Make a slot of a staging folder whose part files are complete; raises SlotDamagedError, OSError."""
        staging = self.staging(digest)
        manifest = Manifest.model_validate_json(manifest_bytes)
        for layer in manifest.layers:
            part, final = self.part(staging, layer), staging / file_name(layer)
            if part.exists():
                if digest_of_file(part) != layer.digest:
                    part.unlink()
                    raise SlotDamagedError(f"{final.name} does not match its digest")
                part.replace(final)
        durable.write_file(staging / MANIFEST_FILE, manifest_bytes)
        self._check(staging, digest)
        slot = self.path(digest)
        shutil.rmtree(slot, ignore_errors=True)
        staging.rename(slot)
        durable.sync_folder(self._slots)
        return slot

    def check(self, digest: str) -> VariantSpec:
        """Re-hash a slot; returns its spec or raises SlotDamagedError."""
        return self._check(self.path(digest), digest)

    @staticmethod
    def _check(slot: Path, digest: str) -> VariantSpec:
        try:
            content = (slot / MANIFEST_FILE).read_bytes()
            if digest_of(content) != digest:
                raise SlotDamagedError(f"{MANIFEST_FILE} does not match its digest")
            for layer in Manifest.model_validate_json(content).layers:
                if digest_of_file(slot / file_name(layer)) != layer.digest:
                    raise SlotDamagedError(f"{file_name(layer)} does not match its digest")
            return VariantSpec.model_validate(json.loads((slot / SETTINGS_FILE).read_bytes()))
        except (OSError, ValueError) as error:
            raise SlotDamagedError(str(error)) from error

    def activate(self, digest: str) -> None:
        """Point `current` at a slot: one atomic rename; raises OSError."""
        link = self._current.with_name(".current.new")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(self.path(digest), self._current.parent))
        link.replace(self._current)
        durable.sync_folder(self._current.parent)

    def discard(self, digest: str) -> None:
        """Throw a staging folder away."""
        shutil.rmtree(self._staging / digest.removeprefix("sha256:")[:32], ignore_errors=True)

    def collect(self, keep: str) -> None:
        """Remove every slot but one, and everything half assembled."""
        for folder in (*self._slots.iterdir(), *self._staging.iterdir()):
            if folder != self.path(keep):
                shutil.rmtree(folder, ignore_errors=True)


def layers_to_pull(manifest: Manifest) -> list[Descriptor]:
    """Layers that travel as blocks; the block digests themselves are metadata."""
    return [layer for layer in manifest.layers if layer.media_type != Layer.BLOCKS]


def blocks_layer(manifest: Manifest) -> Descriptor:
    """The layer of block digests; raises ValueError when there is none."""
    found = [layer for layer in manifest.layers if layer.media_type == Layer.BLOCKS]
    if len(found) != 1:
        raise ValueError(f"{len(found)} block digest layers, one is needed")
    return found[0]
