"""ONNX intake: reads and checks a file, so that every later stage may rely on its names, shapes and dtypes.

Does not change what the model computes: opset and format are raised to what all toolchains understand, no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from edgefleet.errors import InputError, UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion.parting import joined
from edgefleet_converters.conversion.shapes import Shapes, fix_shapes
from edgefleet_converters.conversion.source import read_model
from edgefleet_converters.intake.source import Source, SourceKind

# quantize_static writes per-channel QuantizeLinear, which exists since opset 13; 17 has LayerNormalization.
OLDEST_OPSET, TARGET_OPSET = 13, 17
# ONNX Runtime's tools miss initializers that are no graph inputs in older files.
OLDEST_IR = 8
_DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_MAY_BE_NAN = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_LISTED = 3


def read_onnx(
    path: Path,
    work: Path,
    *,
    shapes: Shapes,
    dims: Mapping[str, int],
    kind: SourceKind = SourceKind.ONNX,
    origin: str = "",
) -> Source:
    """Read and check an ONNX file, and write its normal form to `work`; raises InputError or UnsupportedError.

    `kind` and `origin` are those of the model that the file was made from, where it is not the person's own.
    """
    doing = f"reading the model {origin or path}"
    source = read_model(path)
    notes = fix_shapes(source.model, shapes, dims)
    model = joined(source)
    _refuse_nan(model, doing)
    model = _raised(model, doing)
    typed = shape_inference.infer_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(info, "input", doing) for info in typed.graph.input if info.name not in constants)
    outputs = tuple(_spec(info, "output", doing) for info in typed.graph.output)
    if not inputs:
        raise UnsupportedError(doing, "it has no inputs", "export the model with the input that samples go to")
    file = work / "source.onnx"
    onnx.save(model, file)
    return Source(
        kind=kind,
        origin=origin or str(path),
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        forms={Form.ONNX: Artefact(files=(file,), inputs=inputs, outputs=outputs)},
        inputs=inputs,
        outputs=outputs,
        notes=tuple(notes),
    )


def _refuse_nan(model: onnx.ModelProto, doing: str) -> None:
    """Raise InputError where a weight is not a number; infinity may be meant (attention masks are made of it)."""
    spoilt = {}
    for name, tensor in _constants(model.graph):
        if tensor.data_type in _MAY_BE_NAN:
            array = numpy_helper.to_array(tensor)
            if np.isnan(array).any():
                spoilt[name] = f"{name!r} ({int(np.isnan(array).sum())} of {array.size})"
    if spoilt:
        more = f" and {len(spoilt) - _LISTED} more" if len(spoilt) > _LISTED else ""
        found = f"NaN values in the weights {', '.join(list(spoilt.values())[:_LISTED])}{more}"
        raise InputError(doing, found, "go back to a checkpoint from before the training diverged, and export that")


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Constants of a graph and its subgraphs by the names of their values."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and node.op_type == "Constant":
                yield node.output[0], attribute.t
            elif attribute.HasField("g"):
                yield from _constants(attribute.g)


def _raised(model: onnx.ModelProto, doing: str) -> onnx.ModelProto:
    """The model in an opset and format that every toolchain takes."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        # Below 4 the converter takes an initializer that is no graph input for undefined.
        model.ir_version = max(model.ir_version, OLDEST_IR)
        try:
            model = version_converter.convert_version(model, TARGET_OPSET)
        except (RuntimeError, version_converter.ConvertError) as error:
            first = str(error).strip().splitlines()[0]
            found = f"its opset is {opset} and onnx cannot raise it ({first})"
            raise UnsupportedError(doing, found, f"export it with opset {OLDEST_OPSET} or newer") from error
    model.ir_version = max(model.ir_version, OLDEST_IR)
    return model


def _spec(info: onnx.ValueInfoProto, role: str, doing: str) -> TensorSpec:
    """Name, dtype and static shape of one input or output."""
    tensor = info.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    if not all(isinstance(axis, int) for axis in shape):
        found = f"{role} {info.name!r} has the shape [{', '.join(map(str, shape))}]"
        raise UnsupportedError(doing, found, "export it with static shapes, or give --shape or --dim")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "?"
    if dtype not in (*_DTYPES, "bool"):
        raise UnsupportedError(doing, f"{role} {info.name!r} is {dtype}", "export it with numbers of a usual type")
    return TensorSpec.model_validate({"name": info.name, "dtype": dtype, "shape": shape})
