"""CoreML packages made on Linux: the right borders, types and contents; nothing here can run them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from coremltools.proto import Model_pb2

from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.intake.source import Source
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.step import Samples
from edgefleet_device_profiles.profile import Precision, Runtime
from full_torch.conftest import converted

# An export for ExecuTorch or CoreML takes 10 s on an idle processor, and several times that on a busy one.
pytestmark = pytest.mark.timeout(900)

PRECISIONS = [Precision.FP16, Precision.INT8_WEIGHTS]


def unpacked(artefact: Artefact, folder: Path) -> Path:
    assert [path.name for path in artefact.files] == ["model.mlpackage.zip"]
    with zipfile.ZipFile(artefact.files[0]) as archive:
        archive.extractall(folder)
    return folder / "model.mlpackage"


def read_spec(package: Path) -> Model_pb2.Model:
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    weights = next(entry for entry in manifest["itemInfoEntries"].values() if entry["name"] == "weights")
    assert (package / "Data" / weights["path"] / "weight.bin").is_file()
    return Model_pb2.Model.FromString((package / "Data" / root["path"]).read_bytes())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_package_has_the_source_s_borders(
    transformer: Source, sentences: Samples, tmp_path: Path, precision: Precision
) -> None:
    artefact = converted(transformer, Runtime.COREML, precision, sentences, tmp_path)
    spec = read_spec(unpacked(artefact, tmp_path / "unpacked"))
    assert spec.WhichOneof("Type") == "mlProgram"
    shapes = {item.name: tuple(item.type.multiArrayType.shape) for item in spec.description.input}
    assert shapes == {item.name: item.shape for item in transformer.inputs}
    assert {item.name for item in spec.description.output} == {"classes", "states"}
    assert [(item.name, item.dtype, item.shape) for item in artefact.inputs] == [
        ("tokens", "int32", (1, 16)),
        ("mask", "float32", (1, 16)),
    ]
    assert [(item.name, item.dtype) for item in artefact.outputs] == [("classes", "float32"), ("states", "float32")]


def test_int8_weights_are_half_of_fp16_and_two_runs_give_the_same_bytes(
    resnet: Source, images: Samples, tmp_path: Path
) -> None:
    sizes = {}
    for precision in PRECISIONS:
        first, second = (converted(resnet, Runtime.COREML, precision, images, tmp_path) for _ in range(2))
        assert first.files[0].read_bytes() == second.files[0].read_bytes()
        package = unpacked(first, tmp_path / f"unpacked-{precision}")
        sizes[precision] = (package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
        names = {operation.type for operation in operations(read_spec(package))}
        assert ("constexpr_affine_dequantize" in names) == (precision is Precision.INT8_WEIGHTS)
    assert sizes[Precision.INT8_WEIGHTS] < 0.6 * sizes[Precision.FP16]


def operations(spec: Model_pb2.Model) -> list[Model_pb2.Model]:
    function = spec.mlProgram.functions["main"]
    return list(function.block_specializations[function.opset].operations)


def test_nothing_for_coreml_is_scored_and_all_starts_from_pytorch() -> None:
    rows = {precision: recipe for (runtime, precision), recipe in RECIPES.items() if runtime is Runtime.COREML}
    assert list(rows) == PRECISIONS
    assert not any(recipe.scored for recipe in rows.values())
    assert {form for recipe in rows.values() for form in recipe.steps} == {Form.TORCH}
