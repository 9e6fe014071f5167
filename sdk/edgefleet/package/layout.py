"""Read and write a package as an OCI image layout (image-spec 1.1, image-layout.md).

    oci-layout, index.json → image index of one package version → one manifest per variant → layers

The same inputs give the same bytes: JSON is written with sorted keys, no clock and no host enters it.
A new package is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgefleet.errors import InputError, IntegrityError, StorageError, short_line
from edgefleet.package import digest as digests
from edgefleet.package import integrity, modelpack
from edgefleet.package import manifest as model

SETTINGS_FILE = "variant.json"
GOLDEN_FILE = "golden.npz"
BLOCKS_FILE = "blocks.sha256"
MAX_SMALL_BYTES = 4 * 1024 * 1024
"""Of an index, a manifest or settings: what registries may refuse (distribution-spec), and nobody reads into memory."""
_INDEX_ANNOTATIONS = (model.TITLE_ANNOTATION, model.VERSION_ANNOTATION, model.RELEASE_ANNOTATION)

Record = TypeVar("Record", bound=BaseModel)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _dump(record: BaseModel) -> bytes:
    return _json(record.model_dump(mode="json", by_alias=True, exclude_none=True))


class BlobStore:
    """The `blobs/sha256` folder of a layout."""

    def __init__(self, layout: Path) -> None:
        self.folder = layout / "blobs" / "sha256"

    def path(self, digest: str) -> Path:
        """Where a blob lies; `digest` must be well formed (nothing else may reach the file system)."""
        if not digests.is_digest(digest):
            raise IntegrityError("opening a blob", f"{digest!r} is not a sha256 digest", "check who asked for it")
        return self.folder / digest.removeprefix("sha256:")

    def add(self, content: bytes) -> str:
        """Store bytes under their digest; already stored content is left alone."""
        digest = digests.digest_of(content)
        path = self.path(digest)
        if not path.exists():
            path.write_bytes(content)
        return digest

    def add_file(self, source: Path) -> str:
        """Store a file's content under its digest."""
        digest = digests.digest_of_file(source)
        path = self.path(digest)
        if not path.exists():
            shutil.copyfile(source, path)
        return digest

    def read(self, digest: str, *, doing: str) -> bytes:
        """Content of a small blob, checked against its digest; raises IntegrityError or InputError."""
        path = self.path(digest)
        try:
            if path.stat().st_size > MAX_SMALL_BYTES:
                raise InputError(doing, f"blob {digest[:19]}… is too large for what it is", "write the package again")
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                doing, f"blob {digest[:19]}… cannot be read ({error.strerror})", "write the package again"
            ) from error
        if digests.digest_of(content) != digest:
            raise IntegrityError(doing, f"blob {digest[:19]}… does not match its digest", "write the package again")
        return content


def _layer(store: BlobStore, path: Path, kind: model.Layer, name: str) -> model.Descriptor:
    return model.Descriptor(
        media_type=kind,
        digest=store.add_file(path),
        size=path.stat().st_size,
        annotations={model.FILEPATH_ANNOTATION: name},
    )


def _bytes_layer(store: BlobStore, content: bytes, kind: model.Layer, name: str) -> model.Descriptor:
    return model.Descriptor(
        media_type=kind,
        digest=store.add(content),
        size=len(content),
        annotations={model.FILEPATH_ANNOTATION: name},
    )


def _config(
    store: BlobStore, spec: model.VariantSpec, layers: Sequence[model.Descriptor], name: str, version: str
) -> model.Descriptor:
    content = _json(modelpack.config(spec, [layer.digest for layer in layers], name, version))
    return model.Descriptor(media_type=model.CONFIG_MEDIA_TYPE, digest=store.add(content), size=len(content))


def _check_names(variant: model.VariantFiles) -> None:
    names = [path.name for path in variant.model_files]
    if variant.spec.model_file not in names or set(names) & {SETTINGS_FILE, GOLDEN_FILE, BLOCKS_FILE}:
        raise InputError(
            f"packaging the variant {variant.spec.name}",
            f"its model files are {', '.join(names) or 'none'}",
            f"one must be {variant.spec.model_file}, and none may have the name of our own layers",
        )


def _layers(store: BlobStore, variant: model.VariantFiles) -> list[model.Descriptor]:
    """Model files, settings, golden arrays, and last the block digests of all of these."""
    layers = [_layer(store, path, model.Layer.MODEL, path.name) for path in variant.model_files]
    layers.append(_bytes_layer(store, _dump(variant.spec), model.Layer.SETTINGS, SETTINGS_FILE))
    layers.append(_layer(store, variant.golden_file, model.Layer.GOLDEN, GOLDEN_FILE))
    blocks = b"".join(raw for layer in layers for raw in digests.block_digests(store.path(layer.digest)))
    return [*layers, _bytes_layer(store, blocks, model.Layer.BLOCKS, BLOCKS_FILE)]


def _add_variant(store: BlobStore, variant: model.VariantFiles, name: str, version: str) -> list[model.Descriptor]:
    """Store one variant; returns its manifest's descriptor once for every architecture it is offered to."""
    spec = variant.spec
    _check_names(variant)
    layers = _layers(store, variant)
    manifest = model.Manifest(
        config=_config(store, spec, layers, name, version),
        layers=tuple(layers),
        annotations={model.VARIANT_ANNOTATION: spec.name, model.VERSION_ANNOTATION: version},
    )
    content = _dump(manifest)
    digest = store.add(content)
    annotations = {
        model.VARIANT_ANNOTATION: spec.name,
        model.RUNTIME_ANNOTATION: spec.runtime.value,
        model.RUNTIME_VERSION_ANNOTATION: spec.runtime_version,
        model.PRECISION_ANNOTATION: spec.precision.value,
        model.BYTES_ANNOTATION: str(sum(layer.size for layer in layers)),
    }
    return [
        model.Descriptor(
            media_type=model.MANIFEST_MEDIA_TYPE,
            digest=digest,
            size=len(content),
            # No artifactType here: older registry tools rewrite an index that has it, which changes its digest.
            platform=model.Platform(architecture=architecture),
            annotations=annotations,
        )
        for architecture in sorted(spec.architectures)
    ]


def write_package(
    folder: Path, *, name: str, version: str, release: int, variants: Sequence[model.VariantFiles]
) -> str:
    """Write a package to `folder` (which must not exist yet, or be empty) and return its index digest.

    Raises InputError when the folder is taken, StorageError when the disk refuses.
    """
    doing = f"writing the package to {folder}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            staging.chmod(0o755)
            digest = _write_layout(staging, name, version, release, variants)
            os.rename(staging, folder)  # noqa: PTH104 - Path.rename says less about replacing an empty folder
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(doing, f"{error.strerror or error}", "free some space or choose another disk") from error
    return digest


def _write_layout(folder: Path, name: str, version: str, release: int, variants: Sequence[model.VariantFiles]) -> str:
    store = BlobStore(folder)
    store.folder.mkdir(parents=True)
    descriptors = [entry for variant in variants for entry in _add_variant(store, variant, name, version)]
    content = _dump(
        model.Index(
            artifact_type="application/vnd.edgefleet.package.v1",
            manifests=tuple(descriptors),
            annotations={
                model.TITLE_ANNOTATION: name,
                model.VERSION_ANNOTATION: version,
                model.RELEASE_ANNOTATION: str(release),
            },
        )
    )
    digest = store.add(content)
    write_top(folder, digest, len(content), version)
    return digest


def write_top(folder: Path, digest: str, size_bytes: int, version: str) -> None:
    """Write `oci-layout` and `index.json` of a layout whose one image index is the blob `digest`; raises OSError."""
    entry = model.Descriptor(
        media_type=model.INDEX_MEDIA_TYPE,
        digest=digest,
        size=size_bytes,
        annotations={model.REFERENCE_ANNOTATION: version},
    )
    (folder / "index.json").write_bytes(_dump(model.Index(manifests=(entry,))))
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


class Package:
    """A package on disk, read-only: the one image index of a layout and everything below it."""

    def __init__(self, folder: Path) -> None:
        """Open and check the layout's index; raises InputError or IntegrityError."""
        self.folder = folder
        self.blobs = BlobStore(folder)
        doing = f"opening the package {folder}"
        try:
            layout = model.Index.model_validate_json((folder / "index.json").read_bytes())
        except (OSError, ValidationError) as error:
            found = "index.json is not an OCI image index"
            if isinstance(error, OSError):
                found = f"it has no index.json ({error.strerror})" if folder.is_dir() else str(error.strerror)
            raise InputError(doing, str(found), "name a folder written by `edgefleet package`") from error
        if len(layout.manifests) != 1:
            raise InputError(
                doing, f"{len(layout.manifests)} package versions in one layout", "name a folder with one version"
            )
        self._entry = layout.manifests[0]
        self.digest = self._entry.digest
        self.index = self._parse(model.Index, self.digest, doing)
        notes = self.index.annotations or {}
        missing = [key for key in _INDEX_ANNOTATIONS if key not in notes]
        if missing:
            raise InputError(doing, f"its index has no {missing[0]}", "name a folder written by `edgefleet package`")
        if not (notes[model.TITLE_ANNOTATION] + notes[model.VERSION_ANNOTATION]).isprintable():
            raise InputError(doing, "its name cannot be printed", "name a folder written by `edgefleet package`")
        release = notes[model.RELEASE_ANNOTATION]
        if not (release.isdecimal() and len(release) <= model.MAX_COUNT_DIGITS):
            raise InputError(
                doing, f"its release is {short_line(release)!r}", "name a folder written by `edgefleet package`"
            )

    def _parse(self, kind: type[Record], digest: str, doing: str) -> Record:
        """A small JSON blob as a record; raises InputError or IntegrityError."""
        try:
            return kind.model_validate_json(self.blobs.read(digest, doing=doing))
        except ValidationError as error:
            raise InputError(
                doing, f"blob {digest[:19]}… is not what this version writes there", "write the package again"
            ) from error

    @property
    def name(self) -> str:
        """The package's name."""
        return (self.index.annotations or {})[model.TITLE_ANNOTATION]

    @property
    def version(self) -> str:
        """The package's version."""
        return (self.index.annotations or {})[model.VERSION_ANNOTATION]

    @property
    def release(self) -> int:
        """The monotonic release counter."""
        return int((self.index.annotations or {})[model.RELEASE_ANNOTATION])

    def manifest(self, digest: str) -> model.Manifest:
        """One variant's manifest; raises InputError or IntegrityError."""
        return self._parse(model.Manifest, digest, f"reading a manifest of {self.folder}")

    def spec(self, manifest: model.Manifest) -> model.VariantSpec:
        """What a variant says about itself; raises InputError or IntegrityError."""
        doing = f"reading a variant of {self.folder}"
        layers = [layer for layer in manifest.layers if layer.media_type == model.Layer.SETTINGS]
        if len(layers) != 1:
            raise InputError(doing, f"it has {len(layers)} {SETTINGS_FILE} layers", "write the package again")
        return self._parse(model.VariantSpec, layers[0].digest, doing)

    def digests(self) -> list[str]:
        """Every blob that the package consists of, index first; each once."""
        found = {self.digest: None}
        for descriptor in self.index.manifests:
            manifest = self.manifest(descriptor.digest)
            found |= dict.fromkeys([descriptor.digest, manifest.config.digest])
            found |= dict.fromkeys(layer.digest for layer in manifest.layers)
        return list(found)

    def verify(self) -> None:
        """Re-hash every blob, and check the manifests' sizes and blocks; raises InputError or IntegrityError."""
        manifests = [self.manifest(digest) for digest in dict.fromkeys(entry.digest for entry in self.index.manifests)]
        integrity.check(self.blobs.path, self._entry, self.index, manifests, f"verifying {self.folder}")
