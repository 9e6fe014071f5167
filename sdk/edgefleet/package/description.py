"""What a package holds, as people and programs are shown it: its version, its variants, their scores and layers.

Reads manifests and settings only, so a layout without model files can be described too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgefleet.package.layout import Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Descriptor, Manifest, Score


def describe(package: Package) -> dict[str, Any]:
    """The package as JSON: name, version, release, index_digest, variants; raises InputError or IntegrityError."""
    architectures: dict[str, list[str]] = {}
    for entry in package.index.manifests:
        architectures.setdefault(entry.digest, []).append(entry.platform.architecture if entry.platform else "any")
    return {
        "name": package.name,
        "version": package.version,
        "release": package.release,
        "index_digest": package.digest,
        "variants": [_variant(package, digest, names) for digest, names in architectures.items()],
    }


def table(described: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows for a terminal, the head first; a stranger's control characters are not in them."""
    yield ("variant", "runtime", "precision", "size", "score", "architectures", "layers")
    for row in described["variants"]:
        cells = (
            row["name"],
            f"{row['runtime']} {row['runtime_version']}",
            row["precision"],
            in_words(row["size_bytes"]),
            _score(row["score"], row["marks"]),
            ", ".join(row["architectures"]),
            ", ".join(f"{layer['name']} {in_words(layer['size_bytes'])}" for layer in row["layers"]),
        )
        yield tuple("".join(char if char.isprintable() else "?" for char in cell) for cell in cells)


def in_words(size_bytes: int) -> str:
    """A size in the largest binary unit that leaves at least one of it."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    return f"{size_bytes / 1024:.1f} KiB" if size_bytes < 1024**2 else f"{size_bytes / 1024**2:.1f} MiB"


def _variant(package: Package, digest: str, architectures: list[str]) -> dict[str, Any]:
    manifest: Manifest = package.manifest(digest)
    spec = package.spec(manifest)
    return {
        "name": spec.name,
        "digest": digest,
        "runtime": spec.runtime.value,
        "runtime_version": spec.runtime_version,
        "precision": spec.precision.value,
        "size_bytes": sum(layer.size for layer in manifest.layers),
        "score": None if spec.score is None else spec.score.model_dump(mode="json", exclude_none=True),
        "marks": [mark.value for mark in spec.marks],
        "labels": len(spec.labels),
        "architectures": architectures,
        "layers": [_layer(layer) for layer in manifest.layers],
    }


def _layer(layer: Descriptor) -> dict[str, Any]:
    name = (layer.annotations or {}).get(FILEPATH_ANNOTATION, "")
    return {"name": name, "media_type": layer.media_type, "digest": layer.digest, "size_bytes": layer.size}


def _score(score: dict[str, Any] | None, marks: list[str]) -> str:
    said = "none" if score is None else _measured(Score.model_validate(score))
    return f"{said} ({', '.join(marks)})" if marks else said


def _measured(score: Score) -> str:
    return f"{score.metric} {score.value:.4g} of {score.reference:.4g}"
