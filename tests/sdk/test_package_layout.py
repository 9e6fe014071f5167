"""The package on disk: an OCI image layout that is either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgefleet.errors import EdgefleetError, InputError, IntegrityError, StorageError
from edgefleet.package import digest as digests
from edgefleet.package.layout import BlobStore, Package
from edgefleet.package.manifest import Layer, VariantSpec
from sdk.packages_made import content, spec, two_variants, variant, write


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Path:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return tmp_path / "package"


def read(folder: Path, digest: str) -> bytes:
    return (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def read_json(folder: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read(folder, digest))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_read_again(made: Path) -> None:
    package = Package(made)
    package.verify()
    assert (package.name, package.version, package.release) == ("made", "1.2.0", 7)
    found = {package.spec(package.manifest(entry.digest)).name for entry in package.index.manifests}
    assert found == {"small", "wide"}
    wide = next(e for e in package.index.manifests if (e.annotations or {})["dev.edgefleet.variant"] == "wide")
    model = next(layer for layer in package.manifest(wide.digest).layers if layer.media_type == Layer.MODEL)
    assert package.blobs.path(model.digest).read_bytes() == content(200_000, len("wide.bin"))


def test_digests_names_every_blob_once_and_no_blob_lies_unnamed(made: Path) -> None:
    named = Package(made).digests()
    assert len(set(named)) == len(named)
    assert {name.removeprefix("sha256:") for name in named} == {path.name for path in made.glob("blobs/sha256/*")}


def test_the_same_inputs_give_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "package", two_variants(tmp_path / "a" / "inputs"))
    second = write(tmp_path / "elsewhere" / "p", two_variants(tmp_path / "other inputs"))
    assert first == second
    assert tree(tmp_path / "a" / "package") == tree(tmp_path / "elsewhere" / "p")


def test_another_model_or_version_gives_another_digest(tmp_path: Path) -> None:
    variants = two_variants(tmp_path / "inputs")
    first = write(tmp_path / "a", variants)
    assert write(tmp_path / "b", variants, version="1.2.1") != first
    variants[0].model_files[0].write_bytes(content(61441, 99))
    assert write(tmp_path / "c", variants) != first


# OCI image-spec 1.1 -----------------------------------------------------------------------------------


def test_the_layout_is_one_of_the_image_spec(made: Path) -> None:
    assert json.loads((made / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    top = json.loads((made / "index.json").read_bytes())
    assert top["schemaVersion"] == 2
    (entry,) = top["manifests"]
    assert entry["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "1.2.0"}
    assert entry["size"] == len(read(made, entry["digest"]))

    index = read_json(made, entry["digest"])
    assert (index["schemaVersion"], index["mediaType"]) == (2, entry["mediaType"])
    assert index["artifactType"] == "application/vnd.edgefleet.package.v1"
    assert index["annotations"] == {
        "dev.edgefleet.release": "7",
        "org.opencontainers.image.title": "made",
        "org.opencontainers.image.version": "1.2.0",
    }
    offers = [(e["annotations"]["dev.edgefleet.variant"], e["platform"]) for e in index["manifests"]]
    assert offers == [
        ("small", {"architecture": "amd64", "os": "linux"}),
        ("wide", {"architecture": "amd64", "os": "linux"}),
        ("wide", {"architecture": "arm64", "os": "linux"}),
    ]


def test_every_descriptor_matches_its_blob(made: Path) -> None:
    index = read_json(made, Package(made).digest)
    for entry in index["manifests"]:
        manifest = read_json(made, entry["digest"])
        assert entry["mediaType"] == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        assert manifest["schemaVersion"] == 2
        assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
        for found in (entry, manifest["config"], *manifest["layers"]):
            blob = read(made, found["digest"])
            assert found["size"] == len(blob)
            assert found["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest()
        names = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
        assert len(set(names)) == len(names)
        assert int(entry["annotations"]["dev.edgefleet.bytes"]) == sum(layer["size"] for layer in manifest["layers"])


def test_the_blocks_layer_holds_the_digests_of_every_other_layer_in_order(made: Path) -> None:
    for entry in read_json(made, Package(made).digest)["manifests"]:
        *others, blocks = read_json(made, entry["digest"])["layers"]
        assert blocks["mediaType"] == "application/vnd.edgefleet.blocks.v1"
        wanted = b""
        for layer in others:
            blob = read(made, layer["digest"])
            for start in range(0, len(blob), 60 * 1024):
                wanted += hashlib.sha256(blob[start : start + 60 * 1024]).digest()
        assert read(made, blocks["digest"]) == wanted


@pytest.mark.parametrize(("size", "lengths"), [(0, []), (1, [1]), (61440, [61440]), (61441, [61440, 1])])
def test_blocks_of_a_file(tmp_path: Path, size: int, lengths: list[int]) -> None:
    path = tmp_path / "blob"
    path.write_bytes(content(size))
    found = list(digests.block_digests(path))
    assert digests.block_count(size) == len(lengths)
    start, wanted = 0, []
    for length in lengths:
        wanted.append(hashlib.sha256(content(size)[start : start + length]).digest())
        start += length
    assert found == wanted


def test_an_empty_model_file_has_no_blocks_and_can_be_packaged(tmp_path: Path) -> None:
    write(tmp_path / "package", [variant(tmp_path / "inputs", spec(), 0, 5)])
    Package(tmp_path / "package").verify()


# Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_taken_place_is_refused_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    variants = two_variants(tmp_path / "inputs")
    place = tmp_path / "out" / "package"
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "mine.txt").write_text("keep")
    else:
        place.write_text("keep")
    before = tree(place.parent)
    with pytest.raises(InputError, match="already there"):
        write(place, variants)
    assert tree(place.parent) == before
    assert list(place.parent.iterdir()) == [place]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    Package(tmp_path / "package").verify()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = two_variants(tmp_path / "inputs")
    copied: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copied.append(target)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path / "out" / "package", variants)
    assert len(copied) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tampered_layer_is_found(made: Path) -> None:
    package = Package(made)
    layer = package.manifest(package.index.manifests[1].digest).layers[0]
    path = package.blobs.path(layer.digest)
    damaged = bytearray(path.read_bytes())
    damaged[70_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=layer.digest[:19]):
        Package(made).verify()


@pytest.mark.parametrize("level", ["index", "manifest"])
def test_tampered_metadata_is_never_used(made: Path, level: str) -> None:
    package = Package(made)
    digest = package.digest if level == "index" else package.index.manifests[0].digest
    path = package.blobs.path(digest)
    path.write_bytes(path.read_bytes().replace(b"small", b"smell"))
    with pytest.raises(IntegrityError):
        Package(made).verify()


def test_a_missing_layer_is_an_error_for_people(made: Path) -> None:
    package = Package(made)
    package.blobs.path(package.manifest(package.index.manifests[0].digest).layers[0].digest).unlink()
    with pytest.raises(EdgefleetError):
        package.verify()


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../etc/passwd",
        "../" * 8 + "etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 64 + "/..",
        "sha512:" + "a" * 64,
        "a" * 64,
        "",
    ],
)
def test_only_a_digest_reaches_the_file_system(tmp_path: Path, digest: str) -> None:
    with pytest.raises(IntegrityError):
        BlobStore(tmp_path).path(digest)
    assert not digests.is_digest(digest)


def test_an_index_that_names_a_path_is_refused(made: Path) -> None:
    index = json.loads((made / "index.json").read_bytes())
    index["manifests"][0]["digest"] = "sha256:../../index.json"
    (made / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError):
        Package(made)


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", '{"manifests": []}', '{"schemaVersion": 1, "manifests": []}'])
def test_a_folder_with_another_index_is_refused(made: Path, text: str) -> None:
    (made / "index.json").write_text(text)
    with pytest.raises(InputError):
        Package(made)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Package(tmp_path)


def test_a_folder_that_is_there_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no index\.json"):
        Package(tmp_path)
    with pytest.raises(InputError, match=": No such file or directory"):
        Package(tmp_path / "none")


def test_a_layout_with_two_versions_is_refused(made: Path) -> None:
    index = json.loads((made / "index.json").read_bytes())
    index["manifests"] *= 2
    (made / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="2 package versions"):
        Package(made)


def replace_index(made: Path, blob: bytes) -> None:
    """Make index.json point at another blob, with its right digest."""
    digest = BlobStore(made).add(blob)
    top = json.loads((made / "index.json").read_bytes())
    top["manifests"][0] |= {"digest": digest, "size": len(blob)}
    (made / "index.json").write_text(json.dumps(top))


def test_a_layout_of_another_tool_is_refused_when_it_holds_no_image_index(made: Path) -> None:
    # skopeo and buildah write index.json → image manifest, without an index in between.
    manifest = Package(made).index.manifests[0].digest
    replace_index(made, read(made, manifest))
    with pytest.raises(InputError):
        Package(made)


def test_an_index_without_our_annotations_is_an_error_for_people(made: Path) -> None:
    index = read_json(made, Package(made).digest)
    replace_index(made, json.dumps(index | {"annotations": None}).encode())
    with pytest.raises(InputError):
        _ = Package(made).name


def test_a_blob_store_keeps_what_it_has(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.folder.mkdir(parents=True)
    digest = store.add(b"one")
    inode = store.path(digest).stat().st_ino
    source = tmp_path / "source"
    source.write_bytes(b"one")
    assert store.add_file(source) == digest
    assert store.path(digest).stat().st_ino == inode
    assert store.read(digest, doing="reading") == b"one"
    shutil.rmtree(store.folder)
    with pytest.raises(InputError, match="cannot be read"):
        store.read(digest, doing="reading")


@pytest.mark.parametrize("name", ["variant.json", "golden.npz", "blocks.sha256"])
def test_a_model_file_with_the_name_of_our_own_layers_is_refused(tmp_path: Path, name: str) -> None:
    """In a slot both would be one file."""
    files = variant(tmp_path / "inputs", spec(), 10)
    other = tmp_path / "inputs" / "more" / name
    other.parent.mkdir()
    other.write_bytes(b"x")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        write(tmp_path / "package", [type(files)(files.spec, (*files.model_files, other), files.golden_file)])
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("model_file", ["other.bin", "", "../small.bin"])
def test_a_variant_whose_model_file_is_not_there_is_refused(tmp_path: Path, model_file: str) -> None:
    files = variant(tmp_path / "inputs", spec(), 10)
    wrong = files.spec.model_copy(update={"model_file": model_file})
    with pytest.raises(InputError, match="packaging the variant small"):
        write(tmp_path / "package", [type(files)(wrong, files.model_files, files.golden_file)])


@pytest.mark.parametrize("field", ["inputs", "outputs", "architectures"])
def test_a_variant_without_inputs_outputs_or_processors_is_none(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        VariantSpec.model_validate(spec().model_dump() | {field: ()})


def test_a_missing_blob_is_an_input_error_with_its_name(made: Path) -> None:
    package = Package(made)
    victim = package.manifest(package.index.manifests[0].digest).layers[0].digest
    package.blobs.path(victim).unlink()
    with pytest.raises(InputError, match=f"{victim[:19]}… cannot be read"):
        package.verify()


@pytest.mark.parametrize(
    "key", ["org.opencontainers.image.title", "org.opencontainers.image.version", "dev.edgefleet.release"]
)
def test_each_annotation_of_ours_is_needed(made: Path, key: str) -> None:
    index = read_json(made, Package(made).digest)
    del index["annotations"][key]
    replace_index(made, json.dumps(index).encode())
    with pytest.raises(InputError, match=key):
        Package(made)


@pytest.mark.parametrize("release", ["seven", "", "1e3", "1" * 5000])
def test_a_release_that_is_no_number_is_an_error_for_people(made: Path, release: str) -> None:
    index = read_json(made, Package(made).digest)
    index["annotations"]["dev.edgefleet.release"] = release
    replace_index(made, json.dumps(index).encode())
    with pytest.raises(InputError):
        _ = Package(made).release
