"""The catalogue: every profile loads, and a bad one says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.catalogue import InvalidProfileError, UnknownProfileError
from edgefleet_device_profiles.profile import IsaFeature, PowerModel, Precision, Runtime

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
    assert not any("://" in source or "www." in source for source in profile.sources)
    assert (profile.peak is None) == (name == "iphone")


@pytest.mark.parametrize("name", catalogue.names())
def test_peaks_follow_from_the_instruction_sets(name: str) -> None:
    profile = catalogue.load(name)
    peak, isa = profile.peak, set(profile.cpu.isa)
    if peak is None or profile.cpu.architecture not in {"amd64", "arm64", "arm"}:
        return
    assert peak.int8_gops is not None
    # Four times the lanes of fp32 with a dot product, twice without, rounded to a tenth.
    factor = 4 if isa & {IsaFeature.DOTPROD, IsaFeature.AVX_VNNI, IsaFeature.AVX512_VNNI} else 2
    assert peak.int8_gops == pytest.approx(factor * peak.fp32_gops, rel=0.002)
    assert (peak.fp16_gops is None) == (IsaFeature.FP16 not in isa)
    assert peak.fp16_gops is None or peak.fp16_gops == pytest.approx(2 * peak.fp32_gops)


def test_the_boards_that_the_readme_names_are_there() -> None:
    assert {"raspberry-pi-5", "intel-nuc", "generic-x86-64"} <= set(catalogue.names())
    assert list(catalogue.names()) == sorted(catalogue.names())
    assert len(catalogue.names()) >= 24


def test_32_bit_systems_take_tflite_runtime_alone() -> None:
    (allowed,) = catalogue.load("raspberry-pi-os-32").runtimes
    versions = SpecifierSet(allowed.version)
    # As detection reports tflite-runtime 2.14 and 2.13, and LiteRT.
    assert [version in versions for version in ("0.2.14.0", "0.2.13.0", "1.0.1", "2.3.0")] == [
        True,
        False,
        False,
        False,
    ]
    assert allowed.python is not None
    assert "3.11.9" in SpecifierSet(allowed.python)
    assert "3.12.0" not in SpecifierSet(allowed.python)


@pytest.mark.parametrize("name", ["esp32-s3", "stm32h7"])
def test_microcontrollers_take_int8_in_the_micro_form_within_an_arena(name: str) -> None:
    profile = catalogue.load(name)
    (allowed,) = profile.runtimes
    assert (allowed.name, allowed.form, allowed.precisions) == (Runtime.LITERT, "micro", (Precision.INT8,))
    assert profile.budget.arena_kib is not None
    assert profile.budget.arena_kib * 1024 <= profile.memory.usable_bytes
    assert profile.budget.size_mib is not None
    assert profile.storage.total_mib is not None
    assert profile.budget.size_mib <= profile.storage.total_mib - profile.storage.free_floor_mib


def test_android_classes_share_a_base() -> None:
    classes = [catalogue.load(f"android-phone{suffix}") for suffix in ("", "-low", "-mid", "-flagship")]
    assert len({profile.runtimes for profile in classes}) == 1
    peaks = [profile.peak.fp32_gops for profile in classes if profile.peak]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("name", ["raspberry-pi-6", "", "../catalogue", "intel-nuc.toml", "Intel-NUC", "/etc/passwd"])
def test_an_unknown_name_lists_those_there_are(name: str) -> None:
    with pytest.raises(UnknownProfileError, match=r"there are: amd-ryzen-embedded, .*raspberry-pi-5"):
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
        ("[cpu]", "[cpu]\ncolour = 1", "cpu.colour: Extra inputs"),
        ('isa = ["sse4.2"]', 'isa = ["sse5"]', "cpu.isa.0"),
        ("total_mib = 2048", "total_mib = 2048\nusable_mib = 2049", "at most total_mib 2048"),
        ("threads = 2", "threads = 3", "defaults.threads 3 is more than the 2 cores"),
        ('sensors = ["rapl"]', 'sensors = ["eye"]', "power.sensors.0"),
        ("fp32_gops = 32.0", "fp32_gops = inf", "peak.fp32_gops"),
        ('id = "generic-x86-64"', 'id = "generic-x86-64"\nextends = 3', "extends: it must be the name"),
        ('id = "generic-x86-64"', 'id = "generic-x86-64"\nextends = "pc"', "extends: there is no profile 'pc'"),
        ('id = "generic-x86-64"', 'id = "generic-x86-64"\nextends = "../pc"', "extends: there is no profile '../pc'"),
    ],
)
def test_a_bad_value_is_named(folder: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    (folder / "generic-x86-64.toml").write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="generic-x86-64") as caught:
        catalogue.load("generic-x86-64")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_text_is_a_value_error(folder: Path) -> None:
    (folder / "odd.toml").write_bytes(b"\xff\xfe")
    assert catalogue.names() == ("odd",)
    with pytest.raises(ValueError, match=r"decode|valid"):
        catalogue.load("odd")


def test_not_a_number_is_no_power() -> None:
    with pytest.raises(ValueError, match="idle_w"):
        PowerModel(idle_w=float("nan"), max_w=5.0, scope="package")


# What a file inherits ---------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'id = "{name}"\n{text}', encoding="utf-8")
    return path


def test_tables_are_merged_and_lists_replaced(folder: Path) -> None:
    (folder / "generic-x86-64.toml").write_text(GOOD, encoding="utf-8")
    write(
        folder, "middle", 'extends = "generic-x86-64"\n[cpu]\nisa = ["avx2"]\ncores = 8\n[thermal]\nthrottle_c = 90\n'
    )
    write(folder, "leaf", 'extends = "middle"\ntitle = "Leaf"\n[cpu]\ncores = 6\n[power]\nmax_w = 15.0\n')
    base, leaf = catalogue.load("generic-x86-64"), catalogue.load("leaf")
    assert (leaf.id, leaf.title, leaf.sources) == ("leaf", "Leaf", base.sources)
    assert (leaf.cpu.cores, leaf.cpu.isa, leaf.cpu.clock_mhz) == (6, (IsaFeature.AVX2,), base.cpu.clock_mhz)
    assert (leaf.power.idle_w, leaf.power.max_w) == (base.power.idle_w, 15.0)
    assert leaf.thermal.throttle_c == 90
    assert leaf.runtimes == base.runtimes


def test_an_inherited_id_is_not_enough(folder: Path) -> None:
    (folder / "generic-x86-64.toml").write_text(GOOD, encoding="utf-8")
    (folder / "leaf.toml").write_text('extends = "generic-x86-64"\n', encoding="utf-8")
    with pytest.raises(InvalidProfileError, match="holds the profile 'generic-x86-64'"):
        catalogue.load("leaf")


@pytest.mark.parametrize(
    ("parents", "circle"),
    [
        ({"a": "a"}, "a → a"),
        ({"a": "b", "b": "a"}, "a → b → a"),
        ({"a": "b", "b": "c", "c": "b"}, "a → b → c → b"),
    ],
)
def test_a_circle_is_named(folder: Path, parents: dict[str, str], circle: str) -> None:
    for name, parent in parents.items():
        write(folder, name, f'extends = "{parent}"\n')
    with pytest.raises(InvalidProfileError, match=f"extends: a circle, {circle}$"):
        catalogue.load("a")


# A folder of the user's -------------------------------------------------------------------------------


def test_a_users_profile_wins_and_may_extend_the_one_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = catalogue.load("raspberry-pi-5")
    write(tmp_path, "raspberry-pi-5", 'extends = "raspberry-pi-5"\ntitle = "Mine"\n[memory]\ntotal_mib = 4096\n')
    write(tmp_path, "camera", 'extends = "raspberry-pi-5"\n[memory]\nusable_mib = 1024\n')
    assert catalogue.load("raspberry-pi-5") == built_in
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    mine, camera = catalogue.load("raspberry-pi-5"), catalogue.load("camera")
    assert (mine.title, mine.memory.total_mib, mine.runtimes) == ("Mine", 4096, built_in.runtimes)
    assert (camera.title, camera.memory.total_mib, camera.memory.usable_bytes) == ("Mine", 4096, 2**30)
    assert set(catalogue.names()) > {"camera", "raspberry-pi-5", "generic-x86-64"}
    # What the built-in profiles extend stays what it was.
    assert catalogue.load("raspberry-pi-5-ai-hat").memory == built_in.memory


def test_a_folder_that_is_given_counts_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path / "none"))
    write(tmp_path, "mine", 'extends = "generic-aarch64"\n')
    assert catalogue.load("mine", tmp_path).cpu == catalogue.load("generic-aarch64", tmp_path).cpu
    with pytest.raises(InvalidProfileError, match="none is not a folder of device profiles"):
        catalogue.load("generic-aarch64")


def test_a_file_is_read_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "base", 'extends = "generic-aarch64"\n[cpu]\ncores = 2\n[defaults]\nthreads = 1\n')
    assert catalogue.read(write(tmp_path, "leaf", 'extends = "base"\n')).cpu.cores == 2
    with pytest.raises(InvalidProfileError, match=r"gone.toml cannot be read: No such file"):
        catalogue.read(tmp_path / "gone.toml")
