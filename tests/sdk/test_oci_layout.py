"""The layout in the hands of others: skopeo copies it with the same digests, ModelPack tools read its config."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet.errors import InputError, IntegrityError
from edgefleet.package import modelpack
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import Package, write_top
from edgefleet.package.manifest import Layer, Preprocessing
from edgefleet_device_profiles.profile import Precision, Runtime
from sdk.packages_made import spec, two_variants, write

Need = Callable[[bool, str], None]
SKOPEO = shutil.which("skopeo")


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Package:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return Package(tmp_path / "package")


def skopeo(*arguments: str) -> bytes:
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout


# skopeo -----------------------------------------------------------------------------------------------


@pytest.mark.service
def test_skopeo_reads_the_index(made: Package, need: Need) -> None:
    need(SKOPEO is not None, "skopeo")
    raw = skopeo("inspect", "--raw", f"oci:{made.folder}:1.2.0")
    assert digest_of(raw) == made.digest
    assert json.loads(raw)["artifactType"] == "application/vnd.edgefleet.package.v1"


@pytest.mark.service
def test_skopeo_copies_every_variant_with_the_same_digests(made: Package, tmp_path: Path, need: Need) -> None:
    need(SKOPEO is not None, "skopeo")
    skopeo("copy", "--all", "--preserve-digests", f"oci:{made.folder}:1.2.0", f"oci:{tmp_path / 'copy'}:1.2.0")
    copy = Package(tmp_path / "copy")
    copy.verify()
    assert copy.digest == made.digest
    assert {path.name for path in copy.blobs.folder.iterdir()} == {path.name for path in made.blobs.folder.iterdir()}


@pytest.mark.service
def test_skopeo_copies_to_a_plain_folder(made: Package, tmp_path: Path, need: Need) -> None:
    need(SKOPEO is not None, "skopeo")
    skopeo("copy", "--all", f"oci:{made.folder}:1.2.0", f"dir:{tmp_path / 'plain'}")
    assert digest_of((tmp_path / "plain" / "manifest.json").read_bytes()) == made.digest


# ModelPack --------------------------------------------------------------------------------------------


def config_of(package: Package, variant: str) -> dict[str, Any]:
    for entry in package.index.manifests:
        manifest = package.manifest(entry.digest)
        if package.spec(manifest).name == variant:
            assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
            config: dict[str, Any] = json.loads(package.blobs.path(manifest.config.digest).read_bytes())
            assert config["modelfs"]["diffIds"] == [layer.digest for layer in manifest.layers]
            return config
    raise AssertionError(variant)


def test_the_config_is_modelpacks(made: Package) -> None:
    config = config_of(made, "wide")
    assert config["descriptor"] == {"name": "made", "version": "1.2.0", "title": "made wide"}
    assert config["config"] == {"format": "tflite", "precision": "int8", "quantization": "static"}
    assert config["modelfs"]["type"] == "layers"
    assert set(config) == {"descriptor", "config", "modelfs"}


@pytest.mark.parametrize("runtime", list(Runtime))
@pytest.mark.parametrize("precision", list(Precision))
def test_every_runtime_and_precision_has_its_words(runtime: Runtime, precision: Precision) -> None:
    made = spec().model_copy(update={"runtime": runtime, "precision": precision})
    words = modelpack.config(made, ["sha256:" + "0" * 64], "made", "1")["config"]
    # config-schema.json lets nothing else in.
    assert set(words) <= {"format", "precision", "quantization", "capabilities"}
    assert words["format"]
    assert ("quantization" in words) == (precision not in (Precision.FP32, Precision.FP16))


def test_a_variant_for_images_says_so() -> None:
    image = Preprocessing(input="x", layout="nhwc", width=4, height=1)
    made = spec().model_copy(update={"preprocessing": (image,)})
    assert modelpack.config(made, [], "made", "1")["config"]["capabilities"] == {"inputTypes": ["image"]}


# What verify finds beyond damaged blobs ---------------------------------------------------------------


def change_manifest(package: Package, change: Callable[[dict[str, Any]], None]) -> Package:
    """The same package with another first manifest, all digests right."""
    entry = package.index.manifests[0]
    manifest = json.loads(package.blobs.path(entry.digest).read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    index = json.loads(package.blobs.path(package.digest).read_bytes())
    index["manifests"][0] |= {"digest": package.blobs.add(content), "size": len(content)}
    content = json.dumps(index).encode()
    write_top(package.folder, package.blobs.add(content), len(content), package.version)
    return Package(package.folder)


def test_a_wrong_size_is_found(made: Package) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["size"] += 1

    with pytest.raises(IntegrityError, match="has 61441 bytes, its descriptor says 61442"):
        change_manifest(made, change).verify()


def test_a_wrong_size_of_a_manifest_is_found(made: Package) -> None:
    index = json.loads(made.blobs.path(made.digest).read_bytes())
    index["manifests"][0]["size"] -= 1
    content = json.dumps(index).encode()
    write_top(made.folder, made.blobs.add(content), len(content), made.version)
    with pytest.raises(IntegrityError, match="its descriptor says"):
        Package(made.folder).verify()


def test_a_name_that_a_terminal_would_obey_is_refused(made: Package) -> None:
    content = made.blobs.path(made.digest).read_bytes().replace(b'"made"', rb'"ma\u001bde"')
    write_top(made.folder, made.blobs.add(content), len(content), made.version)
    with pytest.raises(InputError, match="cannot be printed"):
        Package(made.folder)


def test_wrong_block_digests_are_found(made: Package) -> None:
    def change(manifest: dict[str, Any]) -> None:
        blocks = manifest["layers"][-1]
        assert blocks["mediaType"] == Layer.BLOCKS
        blocks["digest"] = made.blobs.add(b"\0" * blocks["size"])

    with pytest.raises(IntegrityError, match="block digests"):
        change_manifest(made, change).verify()


def test_a_variant_without_block_digests_is_found(made: Package) -> None:
    with pytest.raises(IntegrityError, match="block digests"):
        change_manifest(made, lambda manifest: manifest["layers"].pop()).verify()


def test_a_huge_manifest_is_not_read(made: Package) -> None:
    with made.blobs.path(made.index.manifests[0].digest).open("r+b") as stream:
        stream.truncate(2**32)
    with pytest.raises(InputError, match="too large"):
        made.verify()
