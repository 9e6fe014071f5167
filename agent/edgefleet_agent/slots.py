"""Variants on disk: one folder each, and `current`, a link that is switched by one atomic rename.

A folder appears under `slots/` only when every block in it matched its digest. It knows nothing of the lifecycle.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from edgefleet import durable
from edgefleet.package.digest import digest_of, digest_of_file
from edgefleet.package.layout import BLOCKS_FILE, SETTINGS_FILE
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Descriptor, Layer, Manifest, VariantSpec

MANIFEST_FILE = "manifest.json"
PART_SUFFIX = ".part"
NEW_LINK = ".current.new"
# What describes a variant, beside its files.
_DESCRIPTION = (MANIFEST_FILE, BLOCKS_FILE)


class SlotDamagedError(Exception):
    """A slot's files do not match its manifest any more; the text says which."""


def file_name(layer: Descriptor) -> str:
    """Name of a layer's file in a slot; raises ValueError for names that would leave the folder, or are taken."""
    name = (layer.annotations or {}).get(FILEPATH_ANNOTATION, "")
    taken = name in _DESCRIPTION or name.endswith(PART_SUFFIX)
    if not name or name != Path(name).name or name.startswith(".") or taken:
        raise ValueError(f"the layer {layer.digest[:19]}… has the file name {name!r}")
    return name


def part_name(layer: Descriptor) -> str:
    """Name of a layer's part file; raises ValueError as `file_name` does."""
    return f"{file_name(layer)}{PART_SUFFIX}"


class Slots:
    """The variants below one state folder."""

    def __init__(self, folder: Path) -> None:
        """Create what is missing; raises OSError."""
        self._slots = folder / "slots"
        self._staging = folder / "staging"
        self._current = folder / "current"
        self.turn = threading.Lock()
        """Held by whoever assembles: one at a time."""
        self.reserved: set[str] = set()
        """Digests of variants that are about to be used: nobody may remove them to make room."""
        for path in (self._slots, self._staging):
            path.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Folder of a variant, by its manifest's digest."""
        return self._slots / digest.removeprefix("sha256:")[:32]

    def folders(self) -> list[Path]:
        """Every variant on disk, whole ones first."""
        return [*sorted(self._slots.iterdir()), *sorted(self._staging.iterdir())]

    def staging(self, digest: str) -> Path:
        """Folder in which a variant is assembled; it survives restarts."""
        path = self._staging / self.path(digest).name
        path.mkdir(parents=True, exist_ok=True)
        for file in path.iterdir():
            # A power cut while it was finished: what was pulled is still good for its part file.
            if file.name.startswith("."):
                file.unlink()
            elif file.name not in _DESCRIPTION and file.suffix != PART_SUFFIX:
                file.replace(file.with_name(f"{file.name}{PART_SUFFIX}"))
        return path

    @staticmethod
    def part(staging: Path, layer: Descriptor) -> Path:
        """Part file of a layer."""
        return staging / part_name(layer)

    @staticmethod
    def describe(staging: Path, manifest_bytes: bytes, block_digests: bytes) -> None:
        """Say in a staging folder what is assembled there; raises OSError."""
        for name, content in zip(_DESCRIPTION, (manifest_bytes, block_digests), strict=True):
            (staging / name).write_bytes(content)

    def finish(self, digest: str, manifest_bytes: bytes, block_digests: bytes) -> VariantSpec:
        """Make a slot of a staging folder whose part files are complete, verified block by block, and durable.

        Raises SlotDamagedError (its settings are none) or OSError.
        """
        staging, slot = self.staging(digest), self.path(digest)
        for layer in layers_to_pull(Manifest.model_validate_json(manifest_bytes)):
            self.part(staging, layer).replace(staging / file_name(layer))
        durable.write_file(staging / BLOCKS_FILE, block_digests)
        # Its fsync of the folder makes the renames before it durable too.
        durable.write_file(staging / MANIFEST_FILE, manifest_bytes)
        spec = _read_spec(staging)
        self._replace(slot, staging)
        return spec

    def _replace(self, slot: Path, staging: Path) -> None:
        """Put a finished folder in its place; a damaged one that is there goes aside first, and then away."""
        aside = slot.with_name(f".{slot.name}.old")
        if slot.exists():
            shutil.rmtree(aside, ignore_errors=True)
            slot.rename(aside)
        staging.rename(slot)
        durable.sync_folder(self._slots)
        durable.sync_folder(self._staging)
        shutil.rmtree(aside, ignore_errors=True)

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
        """Point `current` at a slot: one atomic rename; raises OSError, and may have switched then (`collect`)."""
        link = self._current.with_name(NEW_LINK)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(self.path(digest), self._current.parent))
        try:
            link.replace(self._current)
        except OSError:
            with suppress(OSError):
                link.unlink()
            raise
        durable.sync_folder(self._current.parent)

    def spare(self, assembling: str) -> list[Path]:
        """Folders that nobody needs: not what `current` points at, nor what is reserved or being assembled."""
        kept = [self._current.resolve(), (self._staging / self.path(assembling).name).resolve()]
        kept += [self.path(digest).resolve() for digest in self.reserved]
        return [folder for folder in self.folders() if folder.resolve() not in kept]

    def settle(self, keep: str) -> None:
        """Have `current` lead to a variant again, after a switch to another was cut off or failed; never raises."""
        if self._current.is_symlink() and self._current.resolve() != self.path(keep).resolve():
            with suppress(OSError):
                self.activate(keep)

    def collect(self, keep: str | None, assembling: str | None = None, previous: str | None = None) -> None:
        """Remove every slot but one or two, and everything half assembled but one; all are manifest digests.

        `keep` is what `current` leads to: it must not lead to what is removed. `previous` is gone back to.
        """
        kept = [self.path(digest) for digest in (keep, previous) if digest is not None]
        if keep is not None:
            self.settle(keep)
        if assembling is not None:
            kept.append(self._staging / self.path(assembling).name)
        for folder in self.folders():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        if keep is not None:
            # A full disk that had no room for a link may have it now.
            self.settle(keep)


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
