"""ONNX intake: reads and checks a file, so that every later stage may rely on its names, shapes and dtypes.

Does not repair: a model with dynamic shapes or several inputs is refused with what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker, shape_inference

from edgefleet.errors import InputError, UnsupportedError
from edgefleet.package.manifest import TensorSpec

# quantize_static writes per-channel QuantizeLinear, which exists since this opset.
OLDEST_OPSET = 13


@dataclass(frozen=True, slots=True)
class Source:
    """A float32 classifier: one input [1, …], one output [1, classes], all shapes static."""

    model: onnx.ModelProto
    input: TensorSpec
    output: TensorSpec

    @property
    def classes(self) -> int:
        """How many classes the output tells apart."""
        return self.output.shape[1]


def read_onnx(path: Path) -> Source:
    """Read and check an ONNX file; raises InputError or UnsupportedError, each in one line."""
    doing = f"reading the model {path}"
    model = _load(path, doing)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise UnsupportedError(doing, f"its opset is {opset}", f"export it with opset {OLDEST_OPSET} or newer")
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in initializers]
    source = Source(model, _only(inputs, "input", doing), _only(list(model.graph.output), "output", doing))
    if len(source.output.shape) != 2:
        raise UnsupportedError(
            doing,
            f"output {source.output.name!r} has the shape {list(source.output.shape)}",
            "give a classifier whose output is [1, classes]; other tasks have no metric yet",
        )
    return source


def _load(path: Path, doing: str) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        checker.check_model(model)
        return shape_inference.infer_shapes(model)
    except OSError as error:
        raise InputError(doing, f"{error.strerror or error}", "check the path") from error
    except (DecodeError, checker.ValidationError, shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(doing, f"not a valid ONNX file ({first})", "export the model again as .onnx") from error


def _only(found: list[onnx.ValueInfoProto], role: str, doing: str) -> TensorSpec:
    """Spec of the one input or output that the model must have."""
    if len(found) != 1:
        names = ", ".join(info.name for info in found)
        raise UnsupportedError(doing, f"{len(found)} {role}s ({names})", f"give a model with exactly one {role}")
    info = found[0]
    tensor = info.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnsupportedError(doing, f"{role} {info.name!r} is {dtype}", f"export it with a float32 {role}")
    axes = [axis.dim_value or axis.dim_param or "?" for axis in tensor.shape.dim]
    if not axes or not all(isinstance(axis, int) for axis in axes) or axes[0] != 1:
        shown = ", ".join(map(str, axes))
        raise UnsupportedError(
            doing,
            f"{role} {info.name!r} has the shape [{shown}]",
            "export it with static shapes and a batch of 1",
        )
    return TensorSpec(name=info.name, dtype="float32", shape=tuple(int(axis) for axis in axes))
