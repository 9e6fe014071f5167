"""Operator versions after the rules of TFLite's own converter, and runtimes that are too old."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from packaging.specifiers import SpecifierSet

from conformance.delegation_probe import CASES, file_of, outside, quantised
from edgefleet_converters.tflite.file import Draft, Quantization, options_of
from edgefleet_converters.tflite.runtime_versions import litert_range, min_runtime_version, newest
from edgefleet_converters.tflite.writer import reversioned, write
from patience import PATIENCE_S

CODES: Mapping[str, int] = {name: code for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
OLD_RUNTIME = Path(__file__).parents[2] / "build" / "venvs" / "tflite-2.14"
Old = Callable[[bytes, "np.ndarray[Any, Any]"], "np.ndarray[Any, Any] | str"]
"""Runs a file in tflite-runtime 2.14: what it computes, or what it complains of."""
RUN = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.load(sys.argv[2]))
interpreter.invoke()
np.save(sys.argv[3], interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
"""


def versions(content: bytes) -> dict[str, set[int]]:
    """Operator name → its versions in a file."""
    names = {code: name for name, code in CODES.items()}
    found: dict[str, set[int]] = {}
    for code in schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes:
        found.setdefault(names[max(code.builtinCode, code.deprecatedBuiltinCode)], set()).add(code.version)
    return found


def one(operator: str, shapes: list[tuple[int, ...]], dtype: str, options: object | None = None) -> dict[str, set[int]]:
    """Versions in a file of one operator with these inputs and an output like the first."""
    draft = Draft()
    names = [draft.temporary(f"x{position}", shape, dtype) for position, shape in enumerate(shapes)]
    draft.temporary("y", shapes[0], dtype)
    draft.emit(operator, tuple(names), ("y",), options)
    return versions(write(draft, {name: name for name in names}, {"y": "y"}))


@pytest.mark.parametrize(
    ("operator", "shapes", "dtype", "version"),
    [
        ("ADD", [(2, 2), (2, 2)], "float32", 1),
        ("ADD", [(2, 2), (2, 2)], "int64", 4),
        ("ADD", [(2, 2), (2, 2)], "int16", 5),
        ("SUB", [(1, 2, 1, 1, 2), (2,)], "float32", 3),
        ("SUB", [(1, 2, 1, 1, 2)] * 2, "float32", 1),
        ("MAXIMUM", [(1, 2, 1, 1, 2), (2,)], "float32", 3),
        ("MUL", [(2,), (2,)], "uint32", 7),
        ("MUL", [(2,), (2,)], "int64", 5),
        ("ABS", [(2,)], "int32", 5),
        ("FLOOR_DIV", [(2,), (2,)], "float32", 2),
        ("BROADCAST_TO", [(2,), (1,)], "int32", 2),
        ("TRANSPOSE", [(1,) * 6, (6,)], "float32", 6),
        ("TRANSPOSE", [(1,) * 5, (5,)], "float32", 4),
        ("PAD", [(1,) * 5, (5, 2)], "float32", 4),
        ("PAD", [(1, 2), (2, 2)], "bool", 5),
        ("SLICE", [(1,) * 5, (5,), (5,)], "int32", 5),
        ("SIGN", [(3,)], "int32", 2),
        ("RESHAPE", [(3,)], "int8", 1),
    ],
)
def test_types_and_ranks_decide(operator: str, shapes: list[tuple[int, ...]], dtype: str, version: int) -> None:
    assert one(operator, shapes, dtype) == {operator: {version}}


@pytest.mark.parametrize(
    ("operator", "options", "version"),
    [
        ("RESIZE_BILINEAR", options_of("ResizeBilinear", halfPixelCenters=True), 3),
        ("RESIZE_BILINEAR", options_of("ResizeBilinear"), 1),
        ("RESIZE_NEAREST_NEIGHBOR", options_of("ResizeNearestNeighbor", alignCorners=True), 3),
        ("STRIDED_SLICE", options_of("StridedSlice", newAxisMask=1), 6),
        ("STRIDED_SLICE", options_of("StridedSlice", offset=True), 8),
        ("GATHER", options_of("Gather", batchDims=1), 5),
    ],
)
def test_options_decide(operator: str, options: object, version: int) -> None:
    assert one(operator, [(1, 2, 2, 1), (2,)], "float32", options) == {operator: {version}}


def test_one_builtin_gets_a_code_for_each_version_it_needs() -> None:
    draft = Draft()
    for name, dtype in (("a", "float32"), ("b", "int64")):
        draft.temporary(name, (2,), dtype)
        draft.temporary(f"{name}/sum", (2,), dtype)
        draft.emit("ADD", (name, name), (f"{name}/sum",), options_of("Add"))
    content = write(draft, {"a": "a", "b": "b"}, {"a": "a/sum", "b": "b/sum"})
    assert versions(content) == {"ADD": {1, 4}}
    assert min_runtime_version(content) == "2.6.0"


@pytest.mark.parametrize(
    ("operator", "version"),
    [("CONV_2D", 3), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 4), ("ADD", 2), ("MAX_POOL_2D", 2), ("LOGISTIC", 2)],
)
def test_a_static_int8_file_asks_for_int8_kernels(operator: str, version: int) -> None:
    raw = quantised(file_of(operator))
    assert raw is not None
    assert versions(raw)[operator] == {1}
    assert versions(reversioned(raw))[operator] == {version}


def dynamic(content: bytes, weight_bits: int = 8) -> bytes:
    """Int8 or int4 weights with float data of a float file, as the library leaves it."""
    how = {8: recipe.dynamic_wi8_afp32, 4: recipe.dynamic_wi4_afp32}[weight_bits]
    made = quantizer.Quantizer(bytearray(content), how()).quantize(enable_progress_report=False)
    assert made.quantized_model is not None
    return bytes(made.quantized_model)


def test_a_dynamic_int8_file_asks_for_hybrid_kernels() -> None:
    assert versions(reversioned(dynamic(file_of("FULLY_CONNECTED")))) == {"FULLY_CONNECTED": {12}}
    assert versions(reversioned(dynamic(file_of("CONV_2D")))) == {"CONV_2D": {5}}
    assert versions(reversioned(dynamic(file_of("FULLY_CONNECTED"), 4))) == {"FULLY_CONNECTED": {12}}
    assert versions(reversioned(dynamic(file_of("CONV_2D"), 4))) == {"CONV_2D": {8}}
    assert min_runtime_version(reversioned(dynamic(file_of("FULLY_CONNECTED")))) == "2.17.0"


def test_a_rescaling_multiplication_needs_version_3() -> None:
    found = []
    for scale in (0.5, 2.0):
        draft = Draft()
        for name in ("a", "b", "y"):
            draft.temporary(name, (2,), "int8", Quantization((scale,), (0,)))
        draft.emit("MUL", ("a", "b"), ("y",), options_of("Mul"))
        found.append(versions(write(draft, {"a": "a", "b": "b"}, {"y": "y"})))
    assert found == [{"MUL": {2}}, {"MUL": {3}}]


def test_what_no_table_names_is_newer_than_the_table() -> None:
    oldest, newer = newest([(CODES["CONV_2D"], 1)]), newest([(CODES["CONV_2D"], 1), (CODES["CONV_2D"], 99)])
    assert (oldest, newest([])) == ("1.5.0", "1.5.0")
    assert newer == "2.21.0"
    assert newest([(CODES["ADD"], 2), (CODES["TRANSPOSE"], 7)]) == "2.14.4"


def coded(*operators: tuple[str, int]) -> bytes:
    """A file with these (builtin, version) pairs, and no operator that uses them."""
    model = schema.ModelT()
    model.operatorCodes = [schema.OperatorCodeT() for _ in operators]
    for code, (name, version) in zip(model.operatorCodes, operators, strict=True):
        code.builtinCode, code.deprecatedBuiltinCode, code.version = CODES[name], min(CODES[name], 127), version
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("operators", "wanted"),
    [
        ([], ">=0.1.5"),
        ([("CUSTOM", 1)], ">=0.1.5"),
        ([("CONV_2D", 1), ("ADD", 4), ("HARD_SWISH", 1)], ">=0.2.6"),
        ([("FULLY_CONNECTED", 9), ("CONV_2D", 7)], ">=0.2.11"),
        ([("DEQUANTIZE", 6), ("CAST", 1)], ">=0.2.18"),
        ([("CAST", 7), ("FULLY_CONNECTED", 13)], ">=1.1"),
        ([("TRANSPOSE", 7), ("CAST", 7)], ">=1.2"),
        ([("DYNAMIC_UPDATE_SLICE", 4), ("TRANSPOSE", 7)], ">=1.3"),
        ([("CONV_2D", 99), ("DYNAMIC_UPDATE_SLICE", 4)], ">=2.10"),
        ([("STABLEHLO_ADD", 1)], ">=2.10"),
    ],
)
def test_the_range_of_runtimes_follows_the_operator_versions(operators: list[tuple[str, int]], wanted: str) -> None:
    assert litert_range(coded(*operators), "2.10") == wanted


def test_a_dynamic_int8_file_asks_for_more_than_the_last_tflite_runtime() -> None:
    asked = SpecifierSet(litert_range(reversioned(dynamic(file_of("FULLY_CONNECTED"))), "2.3"))
    plain = SpecifierSet(litert_range(reversioned(file_of("FULLY_CONNECTED")), "2.3"))
    installed = ("0.2.14.0", "0.2.17.0", "1.0.1", "2.3.0")
    assert list(asked.filter(installed)) == ["0.2.17.0", "1.0.1", "2.3.0"]
    assert list(plain.filter(installed)) == list(installed)


@pytest.fixture(name="old_runtime", scope="session")
def _old_runtime() -> str | None:
    """Python of an environment with tflite-runtime 2.14, made on first use; None where it cannot be had."""
    python = OLD_RUNTIME / "bin" / "python"
    for interpreter in (sys.executable, "python3.11"):
        if python.exists() and not subprocess.run([python, "-c", "import tflite_runtime"], check=False).returncode:
            return str(python)
        made = (
            [interpreter, "-m", "venv", "--clear", str(OLD_RUNTIME)],
            [
                *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("tflite-runtime==2.14.0", "numpy<2"),
            ],
        )
        try:
            for command in made:
                subprocess.run(command, check=True, timeout=150)
        except (OSError, subprocess.SubprocessError):
            continue
        return str(python)
    return None


@pytest.fixture(name="old")
def _old(old_runtime: str | None, need: Callable[[bool, str], None], tmp_path: Path) -> Old:
    need(old_runtime is not None, "tflite-runtime 2.14 (Python 3.11 and a package index)")

    def run(content: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | str:
        (tmp_path / "model.tflite").write_bytes(content)
        np.save(tmp_path / "x.npy", x)
        files = [str(tmp_path / name) for name in ("model.tflite", "x.npy", "y.npy")]
        command = [str(old_runtime), "-c", RUN, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if done.returncode:
            return done.stderr
        found: np.ndarray[Any, Any] = np.load(tmp_path / "y.npy")
        return found

    return run


@pytest.mark.parametrize(
    ("operator", "weight_bits", "version"), [("FULLY_CONNECTED", 8, 12), ("FULLY_CONNECTED", 4, 12), ("CONV_2D", 4, 8)]
)
def test_an_old_runtime_refuses_what_it_would_get_wrong(
    operator: str, weight_bits: int, version: int, old: Old
) -> None:
    content = file_of(operator)
    x = np.random.default_rng(3).normal(size=CASES[operator].data[0]).astype(np.float32)
    right = old(content, x)
    careless = old(dynamic(content, weight_bits), x)
    assert not isinstance(right, str)
    assert not isinstance(careless, str)
    assert not np.abs(careless - right).max() < 0.5 * np.abs(right).max()
    refused = old(reversioned(dynamic(content, weight_bits)), x)
    assert outside(reversioned(dynamic(content, weight_bits))) in ([], [operator])
    assert isinstance(refused, str)
    assert f"'{operator}' version '{version}'" in refused
