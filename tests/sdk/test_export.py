"""Export: the right variant for a phone or a microcontroller, as files that an app builds in."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from edgefleet.errors import EdgefleetError, InputError, IntegrityError, UnsupportedError
from edgefleet.export.choosing import Kit, choose, kit_of
from edgefleet.export.writing import export
from edgefleet.package.layout import Package
from edgefleet.package.manifest import Preprocessing, Quantization, TensorSpec, VariantFiles, VariantSpec
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime
from sdk.packages_made import content, spec, variant, write

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 6), permutation=(0, 2, 3, 1))
LABELS = ("cat", "dog\nhouse", "Ωmega")


def tflite(name: str = "litert-int8", *architectures: str, precision: Precision = Precision.INT8) -> VariantSpec:
    made = spec(name, Runtime.LITERT, *(architectures or ("arm64",)))
    picture = Preprocessing(input="image", layout="nchw", width=6, height=8, scale=255.0, mean=(0.5,), std=(0.25,))
    return made.model_copy(
        update={
            "precision": precision,
            "runtime_version": ">=2.1",
            "model_file": "model.tflite",
            "inputs": (IMAGE,),
            "labels": LABELS,
            "preprocessing": (picture,),
        }
    )


def packaged(folder: Path, *variants: VariantFiles) -> Package:
    write(folder / "package", list(variants))
    return Package(folder / "package")


def files(folder: Path, made: VariantSpec, *sizes: int) -> VariantFiles:
    return variant(folder / made.name, made, *(sizes or (5_000,)))


def micro(folder: Path) -> VariantFiles:
    made = tflite("litert-int8-micro", "xtensa").model_copy(
        update={
            "inputs": (IMAGE.model_copy(update={"quantization": Quantization(dtype="int8", scale=0.5, zero_point=-3)}),)
        }
    )
    base = files(folder, made)
    extra = (folder / "model_data.h", folder / "model_data.cc")
    for path in extra:
        path.write_text(f"// {path.name}\n")
    return VariantFiles(made, (*base.model_files, *extra), base.golden_file)


def coreml(folder: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> VariantFiles:
    made = spec("coreml-fp16", Runtime.COREML, "arm64").model_copy(
        update={
            "precision": Precision.FP16,
            "runtime_version": ">=7",
            "model_file": "model.mlpackage.zip",
            "labels": LABELS,
            "score": None,
        }
    )
    base = files(folder, made)
    with zipfile.ZipFile(base.model_files[0], "w", method) as archive:
        for name, body in members.items():
            archive.writestr(zipfile.ZipInfo(name), body, method)
    return base


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


# What is written --------------------------------------------------------------------------------------


def test_android_gets_assets_and_a_page(tmp_path: Path) -> None:
    package = packaged(tmp_path, files(tmp_path, tflite()))
    written = export(package, catalogue.load("android-phone"), tmp_path / "out")
    assert written.variant == "litert-int8"
    assert written.files == ("README.md", "assets/labels.txt", "assets/model.tflite")
    assert (tmp_path / "out" / "assets" / "model.tflite").read_bytes() == content(5_000, len("model.tflite"))
    assert lines(tmp_path / "out" / "assets" / "labels.txt") == ["cat", "dog house", "Ωmega"]
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Input `image`: float32, 1 × 8 × 6 × 3" in page, "the file's own shape, not the source's"
    assert "(pixel ÷ 255 − [0.5]) ÷ [0.25]" in page
    assert "FloatArray(144)" in page
    assert "needs litert >=2.1" in page
    assert len(page.splitlines()) <= 32
    assert "{" not in page.replace("{ ", "").replace("${", ""), "no placeholder was left"


def test_an_iphone_gets_a_package_that_xcode_opens(tmp_path: Path) -> None:
    members = {"model.mlpackage/Manifest.json": b"{}", "model.mlpackage/Data/weights.bin": b"w"}
    package = packaged(tmp_path, coreml(tmp_path, members), files(tmp_path, tflite()))
    written = export(package, catalogue.load("iphone"), tmp_path / "out")
    assert written.variant == "coreml-fp16"
    assert {name: (tmp_path / "out" / name).read_bytes() for name in members} == members
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'dictionary: ["x": input]' in page
    assert 'featureValue(for: "y")' in page
    assert 'forResource: "labels"' in page


def test_a_microcontroller_gets_the_source_that_was_made_for_it(tmp_path: Path) -> None:
    package = packaged(tmp_path, micro(tmp_path), files(tmp_path, tflite()))
    written = export(package, catalogue.load("esp32-s3"), tmp_path / "out")
    assert written.variant == "litert-int8-micro"
    assert written.files == ("README.md", "labels.txt", "model_data.cc", "model_data.h")
    assert lines(tmp_path / "out" / "model_data.h") == ["// model_data.h"]
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "int8, 1 × 8 × 6 × 3; real = (stored + 3) × 0.5" in page
    assert "MODEL_ARENA_SIZE" in page
    assert "nobody has checked" not in page


def test_another_microcontroller_gets_an_array_and_a_warning(tmp_path: Path) -> None:
    package = packaged(tmp_path, micro(tmp_path), files(tmp_path, tflite(), 5_000))
    written = export(package, catalogue.load("stm32h7"), tmp_path / "out")
    assert written.files == ("README.md", "labels.txt", "model_data.c", "model_data.h")
    array = (tmp_path / "out" / "model_data.c").read_text().split("{", 1)[1].split("}", 1)[0]
    assert bytes(int(number) for number in re.findall(r"\d+", array)) == content(5_000, len("model.tflite"))
    assert "#define MODEL_DATA_SIZE 5000" in lines(tmp_path / "out" / "model_data.h")
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "nobody has checked its operators and its arena for yours" in page
    assert "arena[393216]" in page, "384 KiB, the profile's"


def test_metadata_in_the_file_is_said(tmp_path: Path) -> None:
    base = files(tmp_path, tflite())
    phone = catalogue.load("android-phone")
    export(packaged(tmp_path / "a", base), phone, tmp_path / "without")
    base.model_files[0].write_bytes(b"TFL3 ... TFLITE_METADATA ...")
    export(packaged(tmp_path / "b", base), phone, tmp_path / "with")
    assert "TFLite metadata" not in (tmp_path / "without" / "README.md").read_text(encoding="utf-8")
    assert "TFLite metadata" in (tmp_path / "with" / "README.md").read_text(encoding="utf-8")


# What is chosen ---------------------------------------------------------------------------------------


def test_the_profiles_order_decides(tmp_path: Path) -> None:
    full = files(tmp_path, tflite("litert-fp32", precision=Precision.FP32), 10)
    half = files(tmp_path, tflite("litert-fp16", precision=Precision.FP16), 5_000)
    package = packaged(tmp_path, full, half)
    assert choose(catalogue.load("android-phone"), package.index).name == "litert-fp16"


@pytest.mark.parametrize("profile", ["raspberry-pi-5", "jetson-orin-nano", "generic-x86-64"])
def test_a_board_is_deployed_to_and_not_exported_to(profile: str) -> None:
    with pytest.raises(UnsupportedError, match="edgefleet deploy"):
        kit_of(catalogue.load(profile))


@pytest.mark.parametrize(
    ("profile", "kit"),
    [("android-phone-low", Kit.ANDROID), ("iphone", Kit.IOS), ("stm32h7", Kit.MICRO), ("esp32-s3", Kit.MICRO)],
)
def test_phones_and_microcontrollers_have_kits(profile: str, kit: Kit) -> None:
    assert kit_of(catalogue.load(profile)) is kit


def test_no_variant_for_the_profile_says_what_there_is(tmp_path: Path) -> None:
    package = packaged(tmp_path, files(tmp_path, tflite()), files(tmp_path, spec("ort")))
    with pytest.raises(InputError, match=r"nothing for coreml, only litert-int8, ort; package .* --profile iphone"):
        export(package, catalogue.load("iphone"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_for_another_processor_says_so(tmp_path: Path) -> None:
    package = packaged(tmp_path, files(tmp_path, tflite("litert-int8", "amd64")))
    with pytest.raises(InputError, match="litert-int8: it is for amd64, the device is arm64"):
        export(package, catalogue.load("android-phone"), tmp_path / "out")


@pytest.mark.parametrize("version", [">=2.1,<3", "==2.1.*", "~=2.1", ">=1.0"])
def test_any_range_that_some_version_meets_is_taken(tmp_path: Path, version: str) -> None:
    made = tflite().model_copy(update={"runtime_version": version})
    package = packaged(tmp_path, files(tmp_path, made))
    assert choose(catalogue.load("android-phone"), package.index).name == "litert-int8"


def test_a_range_that_no_allowed_version_meets_is_not(tmp_path: Path) -> None:
    made = tflite().model_copy(update={"runtime_version": "<2"})
    package = packaged(tmp_path, files(tmp_path, made))
    with pytest.raises(InputError, match="<2 is needed"):
        choose(catalogue.load("android-phone"), package.index)


# What is refused --------------------------------------------------------------------------------------


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    package = packaged(tmp_path, files(tmp_path, tflite()))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already there"):
        export(package, catalogue.load("android-phone"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_package_is_not_exported(tmp_path: Path) -> None:
    package = packaged(tmp_path, files(tmp_path, tflite()))
    package.blobs.path(package.manifest(package.index.manifests[0].digest).layers[0].digest).write_bytes(b"x")
    with pytest.raises(IntegrityError):
        export(package, catalogue.load("android-phone"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    package = packaged(tmp_path, coreml(tmp_path, {name: b"x"}))
    with pytest.raises(InputError, match="the archive holds"):
        export(package, catalogue.load("iphone"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    package = packaged(tmp_path, coreml(tmp_path, {"model.mlpackage/a": b"\0" * 10_000}, zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="the archive holds"):
        export(package, catalogue.load("iphone"), tmp_path / "out")


def test_what_is_no_archive_is_an_error_for_people(tmp_path: Path) -> None:
    base = coreml(tmp_path, {})
    base.model_files[0].write_bytes(b"no archive")
    with pytest.raises(InputError, match="no zip archive"):
        export(packaged(tmp_path, base), catalogue.load("iphone"), tmp_path / "out")


def test_a_model_file_cannot_take_the_place_of_the_labels(tmp_path: Path) -> None:
    base = files(tmp_path, tflite())
    other = tmp_path / "labels.txt"
    other.write_text("mine")
    package = packaged(tmp_path, VariantFiles(base.spec, (*base.model_files, other), base.golden_file))
    with pytest.raises(EdgefleetError, match=r"labels\.txt"):
        export(package, catalogue.load("android-phone"), tmp_path / "out")
