"""Push and pull: against a real docker-registry, and against one that misbehaves."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oras.client import OrasClient
from oras.layout import NewLayout, NewLayoutFromRegistry

from edgefleet.errors import BusyError, EdgefleetError, InputError, IntegrityError, StorageError, TransportError
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import Package
from edgefleet.package.manifest import Layer
from edgefleet.package.oci import fetch_description, pull, push
from edgefleet.package.reference import Reference, parse
from sdk.packages_made import content, spec, two_variants, variant, write
from sdk.registry_fake import Fake, fake_registry
from sdk.registry_service import PASSWORD, PROGRAM, USER, registry

Need = Callable[[bool, str], None]
SKOPEO = shutil.which("skopeo")


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Package:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return Package(tmp_path / "package")


@pytest.fixture(name="fake")
def _fake() -> Iterator[tuple[Fake, str]]:
    with fake_registry() as found:
        yield found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest_layer(package: Package) -> str:
    manifests = [package.manifest(entry.digest) for entry in package.index.manifests]
    return max((layer for found in manifests for layer in found.layers), key=lambda layer: layer.size).digest


# A real registry --------------------------------------------------------------------------------------


@pytest.mark.service
def test_a_package_goes_through_a_registry_unchanged(made: Package, tmp_path: Path, need: Need) -> None:
    need(PROGRAM is not None, "docker-registry")
    with registry(tmp_path / "registry") as host:
        reference = parse(f"oci://{host}/models/made:1.2.0")
        sent = push(made, reference)
        assert sent > sum(path.stat().st_size for path in made.blobs.folder.iterdir()) - 10_000
        assert push(made, reference) == 0
        pulled = pull(reference, tmp_path / "pulled")
        again = pull(parse(f"oci://{host}/models/made@{made.digest}"), tmp_path / "by digest")
    assert pulled.digest == again.digest == made.digest
    assert tree(tmp_path / "pulled") == tree(tmp_path / "by digest") == tree(made.folder)


@pytest.mark.service
def test_a_tag_moves_to_the_version_that_was_pushed_last(made: Package, tmp_path: Path, need: Need) -> None:
    need(PROGRAM is not None, "docker-registry")
    write(tmp_path / "next", [variant(tmp_path / "more", spec("small"), 61441, 10)], version="1.3.0")
    with registry(tmp_path / "registry") as host:
        reference = parse(f"oci://{host}/models/made:latest")
        push(made, reference)
        sent = push(Package(tmp_path / "next"), reference)
        assert sent < 10_000, "the model files were there"
        assert pull(reference, tmp_path / "pulled").version == "1.3.0"


@pytest.mark.service
def test_skopeo_takes_what_was_pushed_and_what_it_copies_can_be_pulled(
    made: Package, tmp_path: Path, need: Need
) -> None:
    need(PROGRAM is not None, "docker-registry")
    need(SKOPEO is not None, "skopeo")
    with registry(tmp_path / "registry") as host:
        push(made, parse(f"oci://{host}/a/made:1.2.0"))
        places = [f"docker://{host}/a/made:1.2.0", f"docker://{host}/b/made:1.2.0"]
        tls = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        subprocess.run(
            ["skopeo", "copy", "--all", "--preserve-digests", *tls, *places], check=True, capture_output=True
        )
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", places[1]], check=True, capture_output=True
        ).stdout
        pulled = pull(parse(f"oci://{host}/b/made:1.2.0"), tmp_path / "pulled")
    assert raw == made.blobs.path(made.digest).read_bytes()
    assert tree(pulled.folder) == tree(made.folder)


@pytest.mark.service
def test_oras_itself_pushes_and_pulls_the_same_layout(made: Package, tmp_path: Path, need: Need) -> None:
    need(PROGRAM is not None, "docker-registry")
    with registry(tmp_path / "registry") as host:
        client = OrasClient(hostname=host, insecure=True)
        answer = NewLayout(str(made.folder)).push_to_registry(client, f"{host}/by/oras:1.2.0", tag="1.2.0")
        assert answer.headers["Docker-Content-Digest"] == made.digest
        assert tree(pull(parse(f"oci://{host}/by/oras:1.2.0"), tmp_path / "ours").folder) == tree(made.folder)
        push(made, parse(f"oci://{host}/by/us:1.2.0"))
        NewLayoutFromRegistry(str(tmp_path / "theirs"), client, f"{host}/by/us:1.2.0", tag="1.2.0")
    theirs = Package(tmp_path / "theirs")
    theirs.verify()
    assert theirs.digest == made.digest


@pytest.mark.service
def test_a_password_comes_from_dockers_own_file(
    made: Package, tmp_path: Path, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(PROGRAM is not None, "docker-registry")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()

    def log_in(password: str) -> None:
        held = base64.b64encode(f"{USER}:{password}".encode()).decode()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": held}}}))

    with registry(tmp_path / "registry", password=True) as host:
        reference = parse(f"oci://{host}/models/made:1.2.0")
        with pytest.raises(TransportError, match=f"asks for a password; run: docker login {host}"):
            push(made, reference)
        log_in("wrong")
        with pytest.raises(TransportError, match="denies access"):
            push(made, reference)
        log_in(PASSWORD)
        push(made, reference)
        assert pull(reference, tmp_path / "pulled").digest == made.digest


@pytest.mark.service
@pytest.mark.parametrize("name", ["models/made:2.0.0", "models/other:1.2.0"])
def test_what_is_not_there_is_said_and_leaves_nothing_behind(
    made: Package, tmp_path: Path, need: Need, name: str
) -> None:
    need(PROGRAM is not None, "docker-registry")
    with registry(tmp_path / "registry") as host:
        push(made, parse(f"oci://{host}/models/made:1.2.0"))
        with pytest.raises(InputError, match="no such package"):
            pull(parse(f"oci://{host}/{name}"), tmp_path / "out" / "pulled")
    assert not (tmp_path / "out").exists()


# One that misbehaves ----------------------------------------------------------------------------------


def test_a_token_for_reading_is_exchanged_for_one_for_writing(
    made: Package, tmp_path: Path, fake: tuple[Fake, str]
) -> None:
    held, host = fake
    held.tokens = True
    reference = parse(f"oci://{host}/r:1")
    push(made, reference)
    assert pull(reference, tmp_path / "pulled").digest == made.digest


def test_the_tag_is_set_last(made: Package, fake: tuple[Fake, str]) -> None:
    held, host = fake
    held.refuse = "digest=" + largest_layer(made)
    with pytest.raises(TransportError, match=r"answers 500 \(told to\)"):
        push(made, parse(f"oci://{host}/r:1"))
    assert held.manifests == {}
    held.refuse = made.index.manifests[0].digest
    with pytest.raises(TransportError):
        push(made, parse(f"oci://{host}/r:1"))
    assert "1" not in held.manifests
    held.refuse = None
    assert push(made, parse(f"oci://{host}/r:1")) < 5_000, "what was sent is not sent again"
    assert [method for method, *_ in held.asked[-1:]] == ["PUT"]
    assert held.asked[-1][1].endswith("/manifests/1")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_pull_that_broke_off_goes_on_where_it_was(
    made: Package, tmp_path: Path, fake: tuple[Fake, str], *, ranges: bool
) -> None:
    held, host = fake
    held.ranges = ranges
    reference, digest = parse(f"oci://{host}/r:1"), largest_layer(made)
    push(made, reference)
    held.cut_after = 150_000
    with pytest.raises(TransportError):
        pull(reference, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    held.asked.clear()
    assert tree(pull(reference, tmp_path / "pulled").folder) == tree(made.folder)
    assert held.bodies_of(digest) == ["bytes=131072-"]
    fetched = [path for method, path, _ in held.asked if method == "GET" and "/blobs/" in path]
    assert len(fetched) < len(made.digests()) - 3, "what was whole is not pulled again"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_an_earlier_pull_of_another_package_left_is_not_in_the_folder(
    made: Package, tmp_path: Path, fake: tuple[Fake, str]
) -> None:
    held, host = fake
    write(tmp_path / "other", [variant(tmp_path / "more", spec("small"), 90_000)])
    push(made, parse(f"oci://{host}/r:1"))
    push(Package(tmp_path / "other"), parse(f"oci://{host}/r:2"))
    held.cut_after = 150_000
    with pytest.raises(TransportError):
        pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled")
    assert tree(pull(parse(f"oci://{host}/r:2"), tmp_path / "pulled").folder) == tree(tmp_path / "other")


@pytest.mark.parametrize(
    ("part", "alter"),
    [
        ("/blobs/", lambda body: bytes([body[0] ^ 1]) + body[1:]),
        ("/blobs/", lambda body: body + b"x"),
        ("/blobs/", lambda body: body[:-1]),
        ("/manifests/sha256", lambda body: body.replace(b"small", b"smell")),
    ],
    ids=["flipped", "longer", "shorter", "manifest"],
)
def test_bytes_that_do_not_match_are_never_a_package(
    made: Package, tmp_path: Path, fake: tuple[Fake, str], part: str, alter: Callable[[bytes], bytes]
) -> None:
    held, host = fake
    push(made, parse(f"oci://{host}/r:1"))
    held.alter = lambda path, body: alter(body) if part in path else body
    with pytest.raises(IntegrityError):
        pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    held.alter = lambda _path, body: body
    assert tree(pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled").folder) == tree(made.folder)


def test_a_digest_that_was_asked_for_is_what_comes(made: Package, tmp_path: Path, fake: tuple[Fake, str]) -> None:
    held, host = fake
    push(made, parse(f"oci://{host}/r:1"))
    held.manifests["sha256:" + "0" * 64] = held.manifests["1"]
    with pytest.raises(IntegrityError, match="the registry sends"):
        pull(parse(f"oci://{host}/r@sha256:{'0' * 64}"), tmp_path / "pulled")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"schemaVersion": 2, "manifests": []}', b"[" * 10_000])
def test_what_is_no_package_is_an_error_for_people(tmp_path: Path, fake: tuple[Fake, str], body: bytes) -> None:
    held, host = fake
    held.manifests["1"] = ("application/vnd.oci.image.index.v1+json", body)
    with pytest.raises(InputError):
        pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_an_endless_manifest_is_cut_off(tmp_path: Path, fake: tuple[Fake, str]) -> None:
    held, host = fake
    held.manifests["1"] = ("application/vnd.oci.image.index.v1+json", b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(IntegrityError, match="more than 4194304 bytes"):
        pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled")


def test_a_description_needs_no_model_file(made: Package, tmp_path: Path, fake: tuple[Fake, str]) -> None:
    held, host = fake
    push(made, parse(f"oci://{host}/r:1"))
    held.asked.clear()
    described = fetch_description(parse(f"oci://{host}/r:1"), tmp_path / "description")
    names = {described.spec(described.manifest(entry.digest)).name for entry in described.index.manifests}
    assert names == {"small", "wide"}
    models = {
        layer.digest
        for entry in made.index.manifests
        for layer in made.manifest(entry.digest).layers
        if layer.media_type == Layer.MODEL
    }
    assert not [path for _, path, _ in held.asked if path.rpartition("/")[2] in models]


def test_to_look_at_a_package_fills_no_disk(made: Package, tmp_path: Path, fake: tuple[Fake, str]) -> None:
    held, host = fake
    push(made, parse(f"oci://{host}/r:1"))
    entry = made.index.manifests[0]
    manifest = json.loads(made.blobs.path(entry.digest).read_bytes())
    for layer in manifest["layers"]:
        layer["size"] = 2**40
    content = json.dumps(manifest).encode()
    index = json.dumps(
        {"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": digest_of(content), "size": len(content)}]}
    ).encode()
    held.manifests |= {"1": ("x", index), digest_of(content): ("x", content)}
    with pytest.raises(InputError, match="a description of 1099511627776 bytes"):
        fetch_description(parse(f"oci://{host}/r:1"), tmp_path / "description")


def test_credentials_do_not_go_where_an_upload_is_sent(made: Package, fake: tuple[Fake, str]) -> None:
    held, host = fake
    held.tokens = True
    with fake_registry() as (other, elsewhere):
        held.uploads = f"http://{elsewhere}/upload?session=1"
        push(made, parse(f"oci://{host}/r:1"))
        assert set(other.blobs) < set(made.digests())
        held.blobs.clear()
        other.tokens = True
        with pytest.raises(TransportError, match="denies access"):
            push(made, parse(f"oci://{host}/r:1"))
    assert set(other.authorized) == {False}
    assert True in held.authorized


def test_a_damaged_package_is_not_pushed(made: Package, fake: tuple[Fake, str]) -> None:
    held, host = fake
    made.blobs.path(largest_layer(made)).write_bytes(content(200_000, 99))
    with pytest.raises(IntegrityError):
        push(made, parse(f"oci://{host}/r:1"))
    assert held.asked == []


def test_two_pulls_to_one_folder_do_not_meet(made: Package, tmp_path: Path, fake: tuple[Fake, str]) -> None:
    _, host = fake
    push(made, parse(f"oci://{host}/r:1"))
    staging = tmp_path / ".pulled.pulling"
    staging.mkdir()
    other = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled")
    finally:
        os.close(other)
    assert pull(parse(f"oci://{host}/r:1"), tmp_path / "pulled").digest == made.digest


def test_a_taken_folder_and_a_folder_that_cannot_be_made(made: Package, tmp_path: Path, fake: tuple[Fake, str]) -> None:
    held, host = fake
    with pytest.raises(InputError, match="already there"):
        pull(parse(f"oci://{host}/r:1"), made.folder)
    assert held.asked == []
    push(made, parse(f"oci://{host}/r:1"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        pull(parse(f"oci://{host}/r:1"), tmp_path / "file" / "pulled")


def test_a_registry_that_nobody_runs_is_named() -> None:
    with fake_registry() as (_, host):
        pass
    with pytest.raises(TransportError, match=f"{host}: Connection refused"):
        fetch_description(parse(f"oci://{host}/r:1"), Path("unused"))


# Names ------------------------------------------------------------------------------------------------


def test_names_are_read_as_the_specification_writes_them() -> None:
    zeros = "sha256:" + "0" * 64
    assert parse("oci://ghcr.io/a/b-c/d__e:1.2.0") == Reference("ghcr.io", "a/b-c/d__e", "1.2.0", None)
    assert parse(f"oci://localhost:5000/x@{zeros}") == Reference("localhost:5000", "x", None, zeros)
    for text in ("oci://ghcr.io/a/b:1", f"oci://localhost:5000/x@{zeros}"):
        assert str(parse(text)) == text


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:1"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert parse(f"oci://{host}/a:1").loopback


@pytest.mark.parametrize("host", ["ghcr.io", "10.0.0.1:5000", "localhost.example", "127.0.0.1.example:80"])
def test_every_other_registry_does(host: str) -> None:
    assert not parse(f"oci://{host}/a:1").loopback


@pytest.mark.parametrize(
    "text",
    [
        "ghcr.io/a:1",
        "docker://ghcr.io/a:1",
        "oci://ghcr.io/a",
        "oci://ghcr.io/A:1",
        "oci://ghcr.io/a/../b:1",
        "oci://ghcr.io//a:1",
        "oci://user@ghcr.io/a:1",
        "oci://ghcr.io/a:1@sha256:" + "0" * 64,
        "oci://ghcr.io/a@sha256:00",
        "oci://ghcr.io/a:1?x=1",
        "oci://ghcr.io/a:1\n",
        "oci:///a:1",
        "oci://",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not the name of a package"):
        parse(text)


def test_a_push_needs_a_tag(made: Package) -> None:
    with pytest.raises(EdgefleetError, match="name a tag"):
        push(made, parse("oci://localhost:1/a@sha256:" + "0" * 64))
