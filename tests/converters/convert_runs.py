"""Runs of `edgefleet convert` for the tests: the command, what it says, and what the file computes.

A model is given as a protobuf and written beside its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet.errors import EdgefleetError
from edgefleet_converters.convert_cli import app
from edgefleet_demo import digits

Array = NDArray[np.generic]


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, list[int | str]],
    constants: Mapping[str, Array] | None = None,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of opset 17 whose output is `y`; inputs are float32 where `types` does not say otherwise."""
    kinds = types or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), axes)
            for name, axes in inputs.items()
        ],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def two_inputs() -> onnx.ModelProto:
    """Token numbers and a mask, both with a symbolic batch and length: y = (table[ids] * mask) @ w."""
    generator = np.random.default_rng(3)
    constants: dict[str, Array] = {
        "table": generator.normal(size=(11, 8)).astype(np.float32),
        "w": generator.normal(size=(8, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "mask"], ["kept"]),
        helper.make_node("MatMul", ["kept", "w"], ["y"]),
    ]
    inputs: dict[str, list[int | str]] = {"ids": ["batch", "seq"], "mask": ["batch", "seq", 8]}
    return model(nodes, inputs, constants, {"ids": TensorProto.INT64})


def convert(folder: Path, source: onnx.ModelProto | Path, *extra: str) -> Result:
    """Run the command on a model; the file is `out.tflite` in the folder."""
    path = source if isinstance(source, Path) else folder / "model.onnx"
    if not isinstance(source, Path):
        path.write_bytes(source.SerializeToString())
    return CliRunner().invoke(app, [str(path), "--to", "litert", "-o", str(folder / "out.tflite"), *extra])


def converted(folder: Path, source: onnx.ModelProto | Path, *extra: str) -> tuple[Result, Interpreter]:
    """A run that must succeed, and its file in LiteRT."""
    result = convert(folder, source, *extra)
    assert result.exit_code == 0, result.exception or result.output
    return result, Interpreter(model_path=str(folder / "out.tflite"), num_threads=1)


def refusal(folder: Path, source: onnx.ModelProto | Path, *extra: str, kind: type[EdgefleetError]) -> str:
    """A run that must be refused with one line and leave nothing; returns the line."""
    result = convert(folder, source, *extra)
    assert isinstance(result.exception, kind), result.exception or result.output
    left = [path.name for path in folder.iterdir() if path.name.endswith((".part", ".tflite"))]
    assert left == []
    text = str(result.exception)
    assert "\n" not in text
    return text


def accuracy(interpreter: Interpreter, images: NDArray[np.float32], data: digits.Digits) -> float:
    """Share of the held-out digits that a file gets right; `images` are [n, 1, 8, 8] as its input type reads them."""
    runner = interpreter.get_signature_runner()
    entry = runner.get_input_details()["image"]
    found = [runner(image=image.reshape(entry["shape"]).astype(entry["dtype"]))["logits"].argmax() for image in images]
    return float(np.mean(np.array(found) == data.heldout_y))
