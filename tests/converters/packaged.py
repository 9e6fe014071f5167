"""One finished packaging run, as the tests share it, and what lies in its package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgefleet.package.layout import Package
from edgefleet.package.manifest import Layer, Manifest, VariantSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.packaging import PackageResult, Request
from edgefleet_converters.progress import Event
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Profile, Runtime


@dataclass(frozen=True, slots=True)
class Packaged:
    """What was asked for, what came out, and the progress on the way."""

    request: Request
    result: PackageResult
    events: list[Event]

    def again(self, **changes: object) -> Request:
        """The same request with other fields."""
        return replace(self.request, **changes)  # type: ignore[arg-type] # the test knows the fields


def one_runtime(runtime: Runtime, *precisions: Precision) -> Profile:
    """A small computer with that runtime alone: few variants, and so a fast run."""
    board = catalogue.load("intel-nuc")
    (allowed,) = (allowed for allowed in board.runtimes if allowed.name is runtime)
    allowed = allowed.model_copy(update={"precisions": precisions})
    return board.model_copy(update={"id": "one-runtime", "runtimes": (allowed,)})


def variant(packaged: Packaged, name: str) -> tuple[Package, Manifest, VariantSpec]:
    """The package, and one of its variants."""
    found = Package(packaged.result.folder)
    manifests = [found.manifest(entry.digest) for entry in found.index.manifests]
    manifest = next(manifest for manifest in manifests if found.spec(manifest).name == name)
    return found, manifest, found.spec(manifest)


def unpack(packaged: Packaged, name: str, folder: Path) -> Artefact:
    """The variant's model files as a device would lay them out."""
    found, manifest, spec = variant(packaged, name)
    files = []
    for layer in manifest.layers:
        if layer.media_type == Layer.MODEL:
            path = folder / (layer.annotations or {})["org.cncf.model.filepath"]
            path.write_bytes(found.blobs.read(layer.digest, doing="test"))
            files.append(path)
    files.sort(key=lambda path: path.name != spec.model_file)
    return Artefact(files=tuple(files), inputs=spec.inputs, outputs=spec.outputs)
