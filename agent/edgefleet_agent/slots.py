"""Variants on disk: one folder each, and `current`, a link that is switched by one atomic rename.

A folder appears under `slots/` only when every file in it matched its digest. It knows nothing of the lifecycle.
"""

from __future__ import annotations

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
        for file in path.iterdir():
            # A power cut while it was finished: what was pulled is still good for its part file.
            if file.name == MANIFEST_FILE:
                file.unlink()
            elif file.suffix != ".part":
                file.replace(file.with_name(f"{file.name}.part"))
        return path

    @staticmethod
    def part(staging: Path, layer: Descriptor) -> Path:
        """Part file of a layer."""
        return staging / f"{file_name(layer)}.part"

    def finish(self, digest: str, manifest_bytes: bytes) -> VariantSpec:
        """Make a slot of a staging folder whose part files are complete; each file is hashed once, here.

        Raises SlotDamagedError (the file that does not match is gone then) or OSError.
        """
        staging, slot = self.staging(digest), self.path(digest)
        for layer in layers_to_pull(Manifest.model_validate_json(manifest_bytes)):
            part = self.part(staging, layer)
            if digest_of_file(part) != layer.digest:
                part.unlink()
                raise SlotDamagedError(f"{file_name(layer)} does not match its digest")
            part.replace(staging / file_name(layer))
        durable.write_file(staging / MANIFEST_FILE, manifest_bytes)
        spec = _read_spec(staging)
        shutil.rmtree(slot, ignore_errors=True)
        staging.rename(slot)
        durable.sync_folder(self._slots)
        return spec

    def check(self, digest: str) -> VariantSpec:
        """Re-hash a slot; returns its spec or raises SlotDamagedError."""
        slot = self.path(digest)
        try:
            content = (slot / MANIFEST_FILE).read_bytes()
            if digest_of(content) != digest:
                raise SlotDamagedError(f"{MANIFEST_FILE} does not match its digest")
            for layer in layers_to_pull(Manifest.model_validate_json(content)):
                if digest_of_file(slot / file_name(layer)) != layer.digest:
                    raise SlotDamagedError(f"{file_name(layer)} does not match its digest")
            return _read_spec(slot)
        except (OSError, ValueError) as error:
            raise SlotDamagedError(str(error)) from error

    def activate(self, digest: str) -> None:
        """Point `current` at a slot: one atomic rename; raises OSError."""
        link = self._current.with_name(".current.new")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(self.path(digest), self._current.parent))
        link.replace(self._current)
        durable.sync_folder(self._current.parent)

    def collect(self, keep: str | None, assembling: str | None = None) -> None:
        """Remove every slot but one, and everything half assembled but one; both are manifest digests."""
        kept_slot = None if keep is None else self.path(keep)
        kept_staging = None if assembling is None else self._staging / self.path(assembling).name
        for folder in (*self._slots.iterdir(), *self._staging.iterdir()):
            if folder not in (kept_slot, kept_staging):
                shutil.rmtree(folder, ignore_errors=True)


def _read_spec(slot: Path) -> VariantSpec:
    """The spec of a folder whose files are verified; raises SlotDamagedError or OSError."""
    try:
        spec = VariantSpec.model_validate_json((slot / SETTINGS_FILE).read_bytes())
        layers = layers_to_pull(Manifest.model_validate_json((slot / MANIFEST_FILE).read_bytes()))
    except ValueError as error:
        raise SlotDamagedError(str(error).splitlines()[0]) from error
    models = [file_name(layer) for layer in layers if layer.media_type == Layer.MODEL]
    if spec.model_file not in models:
        # Anything else would be opened without ever having been verified.
        raise SlotDamagedError(f"the model file {spec.model_file!r} is not one of its layers")
    return spec


def layers_to_pull(manifest: Manifest) -> list[Descriptor]:
    """Layers that travel as blocks; the block digests themselves are metadata."""
    return [layer for layer in manifest.layers if layer.media_type != Layer.BLOCKS]


def blocks_layer(manifest: Manifest) -> Descriptor:
    """The layer of block digests; raises ValueError when there is none."""
    found = [layer for layer in manifest.layers if layer.media_type == Layer.BLOCKS]
    if len(found) != 1:
        raise ValueError(f"{len(found)} block digest layers, one is needed")
    return found[0]
