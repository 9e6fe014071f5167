"""The catalogue: every profile loads, and a bad one says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.catalogue import UnknownProfileError
from edgefleet_device_profiles.profile import PowerModel

GOOD = (catalogue.DATA_FOLDER / "generic-x86-64.toml").read_text(encoding="utf-8")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "DATA_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", catalogue.names())
def test_every_profile_loads_and_says_where_its_figures_come_from(name: str) -> None:
    profile = catalogue.load(name)
    assert profile.id == name
    assert all(len(source) > 20 for source in profile.sources)
    assert all(allowed.reason for allowed in profile.runtimes)
    assert 0 < profile.power.idle_w < profile.power.max_w
    runtimes = [allowed.name for allowed in profile.runtimes]
    assert len(set(runtimes)) == len(runtimes)


def test_the_boards_that_the_readme_names_are_there() -> None:
    assert {"raspberry-pi-5", "intel-nuc", "generic-x86-64"} <= set(catalogue.names())
    assert list(catalogue.names()) == sorted(catalogue.names())


@pytest.mark.parametrize("name", ["raspberry-pi-6", "", "../catalogue", "intel-nuc.toml", "Intel-NUC", "/etc/passwd"])
def test_an_unknown_name_lists_those_there_are(name: str) -> None:
    with pytest.raises(UnknownProfileError, match=r"there are: generic-x86-64, .*raspberry-pi-5"):
        catalogue.load(name)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id = "generic-x86-64"', 'id = "other"', "the file's name must be its id"),
        ('"amd64"', '"x86_64"', "architecture"),
        ("cores = 2", "cores = 0", "cores"),
        ("total_mib = 2048", "total_mib = -1", "total_mib"),
        ('name = "litert"', 'name = "tensorflow"', "runtimes.1.name"),
        ('version = ">=1.20"', 'version = "newest"', "version range"),
        ('name = "litert"', 'name = "openvino"', "a runtime is listed twice"),
        ('precisions = ["int8"]', "precisions = []", "precisions"),
        ('precisions = ["int8"]', 'precisions = ["int7"]', "precisions"),
        ("idle_w = 5.0", "idle_w = 65.0", "must be below"),
        ("idle_w = 5.0", "idle_w = 0.0", "idle_w"),
        ('scope = "package"', 'scope = "room"', "scope"),
        ("[power]", "[powers]", "powers"),
        ("[cpu]", "[cpu", "generic-x86-64.toml"),
        ("[cpu]", "[cpu]\ncolour = 1", "colour"),
    ],
)
def test_a_bad_value_is_named(folder: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    (folder / "generic-x86-64.toml").write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="generic-x86-64") as caught:
        catalogue.load("generic-x86-64")
    assert said in str(caught.value)


def test_a_file_that_is_no_text_is_a_value_error(folder: Path) -> None:
    (folder / "odd.toml").write_bytes(b"\xff\xfe")
    assert catalogue.names() == ("odd",)
    with pytest.raises(ValueError, match=r"decode|valid"):
        catalogue.load("odd")


def test_not_a_number_is_no_power() -> None:
    with pytest.raises(ValueError, match="idle_w"):
        PowerModel(idle_w=float("nan"), max_w=5.0, scope="package")
