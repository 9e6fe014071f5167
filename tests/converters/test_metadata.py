"""What files say of themselves: TFLite metadata, ONNX metadata_props and OpenVINO rt_info, written and read back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import openvino
import pytest
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner

from data import colour_digits
from edgefleet import __version__
from edgefleet.package.manifest import Preprocessing
from edgefleet_converters import convert_cli
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.metadata import write_metadata
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.tflite.metadata_tables import FIELDS, FILE_IDENTIFIER
from edgefleet_converters.tflite.runtime_versions import min_runtime_version
from edgefleet_converters.tflite.writer import unpack
from edgefleet_device_profiles.profile import Precision, Runtime

FACTS = Facts(
    name='colour "digits" & more',
    source_digest="ab" * 32,
    preprocessing=(
        Preprocessing(input="image", layout="nchw", width=32, height=32, scale=255.0, mean=(0.5,), std=(0.25, 0.5, 1)),
    ),
    labels=colour_digits.LABELS,
)


class Reader:
    """A table of the metadata, field by field; the generated code of the format's own project is not used here."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name

    @classmethod
    def root(cls, content: bytes) -> Reader:
        assert content[4:8] == FILE_IDENTIFIER
        offset = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
        return cls(flatbuffers.table.Table(content, offset), "ModelMetadata")

    def _at(self, field: str) -> int:
        return int(self._table.Offset(4 + 2 * FIELDS[self._name].index(field)))

    def has(self, field: str) -> bool:
        return self._at(field) != 0

    def text(self, field: str) -> str:
        return str(self._table.String(self._at(field) + self._table.Pos).decode()) if self.has(field) else ""

    def number(self, field: str, flags: Any = flatbuffers.number_types.Int8Flags) -> int:
        return int(self._table.Get(flags, self._at(field) + self._table.Pos)) if self.has(field) else 0

    def floats(self, field: str) -> list[float]:
        flags = flatbuffers.number_types.Float32Flags
        return [round(float(value), 5) for value in self._table.GetVectorAsNumpy(flags, self._at(field))]

    def table(self, field: str, name: str) -> Reader:
        place = self._table.Indirect(self._at(field) + self._table.Pos)
        return Reader(flatbuffers.table.Table(self._table.Bytes, place), name)

    def tables(self, field: str, name: str) -> list[Reader]:
        if not self.has(field):
            return []
        start, count = self._table.Vector(self._at(field)), self._table.VectorLen(self._at(field))
        places = [self._table.Indirect(start + 4 * at) for at in range(count)]
        return [Reader(flatbuffers.table.Table(self._table.Bytes, place), name) for place in places]


def metadata_of(content: bytes) -> Reader:
    model = unpack(content)
    (buffer,) = (entry.buffer for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    return Reader.root(bytes(model.buffers[buffer].data))


def artefact(*files: Path, permutation: tuple[int, ...] | None = None) -> Artefact:
    image = {"name": "image", "dtype": "float32", "shape": (1, 3, 32, 32), "permutation": permutation}
    scores = {"name": "scores", "dtype": "float32", "shape": (1, 10)}
    return Artefact.model_validate({"files": files, "inputs": (image,), "outputs": (scores,)})


def converted(folder: Path, runtime: Runtime, facts: Facts | None = FACTS) -> Artefact:
    job = ConvertJob(
        runtime=runtime,
        precision=Precision.FP32,
        form=Form.ONNX,
        source=artefact(colour_digits.MODEL),
        calibration=None,
        folder=folder,
        facts=facts,
    )
    return convert(job)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Runtime, Artefact]:
    runtimes = (Runtime.LITERT, Runtime.ONNXRUNTIME, Runtime.OPENVINO)
    return {runtime: converted(tmp_path_factory.mktemp(runtime), runtime) for runtime in runtimes}


@pytest.fixture(scope="module")
def tflite(made: Mapping[Runtime, Artefact]) -> Artefact:
    return made[Runtime.LITERT]


def test_a_tflite_file_says_how_its_image_is_normalised(tflite: Artefact) -> None:
    root = metadata_of(tflite.files[0].read_bytes())
    assert root.text("name") == FACTS.name
    assert root.text("author") == f"edgefleet {__version__}"
    assert root.text("description") == f"made from sha256:{'ab' * 32}"
    assert root.text("min_parser_version") == "1.0.0"
    (graph,) = root.tables("subgraph_metadata", "SubGraphMetadata")
    (image,) = graph.tables("input_tensor_metadata", "TensorMetadata")
    content = image.table("content", "Content")
    assert (image.text("name"), content.number("content_properties_type")) == ("image", 2)
    properties = content.table("content_properties", "ImageProperties")
    size = properties.table("default_size", "ImageSize")
    uint32 = flatbuffers.number_types.Uint32Flags
    assert properties.number("color_space") == 1
    assert (size.number("width", uint32), size.number("height", uint32)) == (32, 32)
    (unit,) = image.tables("process_units", "ProcessUnit")
    options = unit.table("options", "NormalizationOptions")
    assert unit.number("options_type") == 1
    # (level / 255 - 0.5) / 0.25 is (level - 127.5) / 63.75.
    assert (options.floats("mean"), options.floats("std")) == ([127.5], [63.75, 127.5, 255.0])
    stats = image.table("stats", "Stats")
    assert (stats.floats("max"), stats.floats("min")) == ([2.0, 1.0, 0.5], [-2.0, -1.0, -0.5])


def test_its_labels_are_a_file_in_a_zip_archive_behind_it(tflite: Artefact) -> None:
    content = tflite.files[0].read_bytes()
    (graph,) = metadata_of(content).tables("subgraph_metadata", "SubGraphMetadata")
    (scores,) = graph.tables("output_tensor_metadata", "TensorMetadata")
    (labels,) = scores.tables("associated_files", "AssociatedFile")
    assert (labels.text("name"), labels.number("type")) == ("labels.txt", 2)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(FACTS.labels)
        (entry,) = archive.infolist()
    assert entry.compress_type == zipfile.ZIP_STORED


def test_a_tflite_file_computes_what_it_did_and_keeps_its_other_metadata(tflite: Artefact, tmp_path: Path) -> None:
    plain = converted(tmp_path / "plain", Runtime.LITERT, None).files[0].read_bytes()
    content = tflite.files[0].read_bytes()
    assert len(content) < len(plain) + 2048
    image = np.random.default_rng(3).standard_normal((1, 32, 32, 3)).astype(np.float32)
    found = [Interpreter(model_content=one).get_signature_runner()(image=image)["scores"] for one in (plain, content)]
    np.testing.assert_array_equal(*found)
    assert min_runtime_version(content) == min_runtime_version(plain)
    assert {entry.name for entry in unpack(content).metadata} == {b"min_runtime_version", b"TFLITE_METADATA"}


@pytest.mark.parametrize("runtime", [Runtime.LITERT, Runtime.ONNXRUNTIME, Runtime.OPENVINO])
def test_the_same_facts_give_the_same_bytes_and_new_ones_replace_them(
    runtime: Runtime, made: Mapping[Runtime, Artefact], tmp_path: Path
) -> None:
    first = made[runtime]
    other, back = tmp_path / "other", tmp_path / "back"
    other.mkdir()
    back.mkdir()
    changed = write_metadata(runtime, first, FACTS.model_copy(update={"name": "another", "labels": ()}), other)
    assert changed.files[0].read_bytes() != first.files[0].read_bytes()
    again = write_metadata(runtime, changed, FACTS, back)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in first.files]


def test_an_image_with_its_channels_first_in_the_file_is_not_described(tflite: Artefact, tmp_path: Path) -> None:
    """The format's readers take the second and third axis for height and width."""
    kept = tflite.model_copy(update={"inputs": artefact(tmp_path).inputs})
    content = write_metadata(Runtime.LITERT, kept, FACTS, tmp_path).files[0].read_bytes()
    (graph,) = metadata_of(content).tables("subgraph_metadata", "SubGraphMetadata")
    (image,) = graph.tables("input_tensor_metadata", "TensorMetadata")
    assert image.table("content", "Content").number("content_properties_type") == 1
    assert not image.has("process_units")


def test_labels_that_no_output_has_room_for_are_left_out(tflite: Artefact, tmp_path: Path) -> None:
    short = FACTS.model_copy(update={"labels": ("one", "two")})
    content = write_metadata(Runtime.LITERT, tflite, short, tmp_path).files[0].read_bytes()
    (graph,) = metadata_of(content).tables("subgraph_metadata", "SubGraphMetadata")
    (scores,) = graph.tables("output_tensor_metadata", "TensorMetadata")
    assert not scores.has("associated_files")
    # The archive of the file before is gone too: it is no part of the model.
    assert not zipfile.is_zipfile(io.BytesIO(content))


def test_an_onnx_file_has_them_as_metadata_props(made: Mapping[Runtime, Artefact]) -> None:
    model = onnx.load(made[Runtime.ONNXRUNTIME].files[0])
    found = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("edgefleet.")}
    assert found["edgefleet.source_sha256"] == "ab" * 32
    assert found["edgefleet.version"] == __version__
    assert tuple(json.loads(found["edgefleet.labels"])) == FACTS.labels
    (prepared,) = json.loads(found["edgefleet.preprocessing"])
    assert Preprocessing.model_validate(prepared) == FACTS.preprocessing[0]
    onnx.checker.check_model(model, full_check=True)


def test_an_openvino_model_has_them_as_rt_info(made: Mapping[Runtime, Artefact]) -> None:
    files = made[Runtime.OPENVINO].files
    assert [path.suffix for path in files] == [".xml", ".bin"]
    model = openvino.Core().read_model(files[0])
    assert model.get_rt_info(["edgefleet", "name"]).astype(str) == FACTS.name
    assert tuple(json.loads(model.get_rt_info(["edgefleet", "labels"]).astype(str))) == FACTS.labels
    assert model.has_rt_info(["conversion_parameters"]) or model.has_rt_info(["Runtime_version"])
    compiled = openvino.compile_model(model, "CPU")
    assert compiled(np.zeros((1, 3, 32, 32), np.float32))[0].shape == (1, 10)


def test_a_uint8_file_of_the_convert_command_carries_its_normalisation(tmp_path: Path) -> None:
    images, _ = colour_digits.training()
    np.savez(tmp_path / "cal.npz", image=colour_digits.normalised(images[:40]))
    output = tmp_path / "uint8.tflite"
    options = ["--precision", "int8", "--io", "uint8", "--mean", "127", "--std", "127.5", "--no-check"]
    arguments = [str(colour_digits.MODEL), "--to", "litert", *options, "--calibration", str(tmp_path / "cal.npz")]
    result = CliRunner().invoke(convert_cli.app, [*arguments, "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    (graph,) = metadata_of(output.read_bytes()).tables("subgraph_metadata", "SubGraphMetadata")
    (image,) = graph.tables("input_tensor_metadata", "TensorMetadata")
    (unit,) = image.tables("process_units", "ProcessUnit")
    options_table = unit.table("options", "NormalizationOptions")
    assert (options_table.floats("mean"), options_table.floats("std")) == ([127.0], [127.5])
    # The file takes levels.
    assert image.table("stats", "Stats").floats("max") == [255.0]
