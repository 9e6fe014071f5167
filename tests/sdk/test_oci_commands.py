"""`edgefleet inspect|verify|push|pull|export|bundle`, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgefleet.cli import app
from edgefleet.errors import EdgefleetError, InputError, IntegrityError, TransportError
from edgefleet.package.layout import Package
from edgefleet.package.manifest import Mark, Score
from edgefleet_device_profiles.profile import Runtime
from sdk.packages_made import spec, variant, write
from sdk.registry_fake import fake_registry
from sdk.test_bundle import Home

SCORE = Score(metric="top1", value=0.91, reference=0.925, samples=100, runtime_version="2.3", max_abs_difference=0.1)


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Package:
    scored = spec("litert-int8", Runtime.LITERT, "arm64", "amd64").model_copy(update={"score": SCORE})
    marked = spec("ort").model_copy(update={"marks": (Mark.UNSCORED,)})
    write(tmp_path / "package", [variant(tmp_path / "a", scored, 61_441), variant(tmp_path / "b", marked, 2_000_000)])
    return Package(tmp_path / "package")


@pytest.fixture(name="host")
def _host() -> Iterator[str]:
    with fake_registry() as (_, host):
        yield host


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(kind: type[EdgefleetError], *arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.output


def test_inspect_shows_every_variant(made: Package) -> None:
    shown = output("inspect", made.folder).splitlines()
    assert shown[:2] == ["made 1.2.0, release 7", f"index {made.digest}"]
    head, scored, marked = shown[3:]
    assert head.split() == ["variant", "runtime", "precision", "size", "score", "architectures", "layers"]
    assert "litert >=1.0" in scored
    assert "top1 0.91 of 0.925" in scored
    assert "amd64, arm64" in scored
    assert "litert-int8.bin 60.0 KiB, variant.json" in scored
    assert "none (unscored)" in marked
    assert "1.9 MiB" in marked


def test_inspect_gives_a_program_the_same(made: Package) -> None:
    found = json.loads(output("inspect", made.folder, "--json"))
    assert (found["name"], found["version"], found["release"]) == ("made", "1.2.0", 7)
    assert found["index_digest"] == made.digest
    first = found["variants"][0]
    assert first["architectures"] == ["amd64", "arm64"]
    assert first["score"]["value"] == 0.91
    assert sum(layer["size_bytes"] for layer in first["layers"]) == first["size_bytes"]
    assert {layer["digest"] for layer in first["layers"]} < set(made.digests())


def test_push_inspect_pull(made: Package, host: str, tmp_path: Path) -> None:
    name = f"oci://{host}/models/made:1.2.0"
    assert f"made 1.2.0 is {name}, 2.0 MiB sent" in output("push", made.folder, name)
    assert "nothing to send" in output("push", made.folder, name)
    assert output("inspect", name) == output("inspect", made.folder)
    assert made.digest in output("pull", name, "-o", tmp_path / "pulled")
    assert "all as their digests say" in output("verify", tmp_path / "pulled")
    assert "already there" in fails(InputError, "pull", name, "-o", tmp_path / "pulled")
    assert "no such package" in fails(InputError, "inspect", f"oci://{host}/models/made:2")


def test_a_registry_elsewhere_is_never_asked_without_tls(made: Package, host: str) -> None:
    # 127.0.0.2 is this machine too, but it is not on the list of names that need no TLS.
    elsewhere = host.replace("127.0.0.1", "127.0.0.2")
    fails(TransportError, "push", made.folder, f"oci://{elsewhere}/a:1")


def test_verify_finds_damage(made: Package) -> None:
    path = made.blobs.path(made.digests()[-1])
    path.write_bytes(path.read_bytes() + b"x")
    assert "is damaged" in fails(IntegrityError, "verify", made.folder)


def test_a_bundle_is_written_shown_and_verified(made: Package, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", made, now=None)
    (tmp_path / "letter.json").write_bytes(home.deployment(expires=2e10))
    file = tmp_path / "stick" / "made.bundle"
    output("bundle", made.folder, "--data", home.data, "--deployment", tmp_path / "letter.json", "-o", file)
    output("bundle", made.folder, "--trust", home.metadata, "-o", tmp_path / "bare.bundle")
    assert "5 files of signed metadata and a deployment" in output("inspect", file)
    assert "and no deployment" in output("inspect", tmp_path / "bare.bundle")
    assert "timestamp.json" in json.loads(output("inspect", file, "--json"))["bundle"]["trust"]
    said = output("verify", file, "--root", home.metadata / "1.root.json")
    assert "release 7 is signed by a release key" in said
    assert "deployment d1 is signed by an operator's key: fleet home, devices all" in said
    assert "give --root" not in said
    assert "give --root" in output("verify", file)
    assert "it is no root metadata; name the root.json" in fails(InputError, "verify", file, "--root", file)
    assert "only a bundle" in fails(InputError, "verify", made.folder, "--root", home.metadata / "1.root.json")
    assert run("bundle", made.folder, "-o", tmp_path / "x").exit_code == 2
    both = ("--data", home.data, "--trust", home.metadata)
    assert run("bundle", made.folder, *both, "-o", tmp_path / "x").exit_code == 2


def test_an_unpublished_package_makes_no_bundle(made: Package, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", made, now=None)
    write(tmp_path / "next", [variant(tmp_path / "c", spec(), 10)], version="1.3.0")
    said = fails(EdgefleetError, "bundle", tmp_path / "next", "--data", home.data, "-o", tmp_path / "x.bundle")
    assert "no release key signed this version" in said
    assert not (tmp_path / "x.bundle").exists()


def test_export_says_what_it_wrote(made: Package, tmp_path: Path) -> None:
    said = output("export", made.folder, "--profile", "android-phone", "-o", tmp_path / "app")
    assert "litert-int8 is in" in said
    assert (tmp_path / "app" / "assets" / "litert-int8.bin").is_file()
    assert "is not a device profile" in fails(InputError, "export", made.folder, "--profile", "x", "-o", tmp_path / "y")
