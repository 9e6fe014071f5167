"""Reads an ONNX file for conversion and refuses, in one line each, what cannot be read safely or completely.

Does not repair a model, and does not judge its operators: the lowering names those that it cannot express.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker, external_data_helper

from edgefleet.errors import EdgefleetError, InputError, UnsupportedError
from edgefleet_converters.conversion.parting import read_parted
from edgefleet_converters.tflite.importer import Source

LARGEST_BYTES = 2**31 - 1
"""What protobuf can parse, and what a .tflite file can address."""

# Initializers up to this many elements may say something about shapes, so a weightless copy keeps them.
_SMALL_ELEMENTS = 256


def read_model(path: Path) -> Source:
    """The checked model with its external data loaded; raises InputError or UnsupportedError."""
    doing = f"reading the model {path}"
    source = _parsed(path, doing)
    model = source.model
    _check_versions(model, doing)
    _load_external(model, path.parent, doing)
    try:
        checker.check_model(_typed(without_weights(model)))
    except checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        # An operator that onnx does not know is refused by the lowering, together with all the others.
        if "No Op registered" not in first:
            raise InputError(doing, f"not a valid ONNX file ({first})", "export the model again") from error
    return source


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large initializers as inputs of the same type: cheap to check and to infer on."""
    graph = onnx.GraphProto(name=model.graph.name or "graph", node=model.graph.node, output=model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.input.extend(model.graph.input)
    listed = {item.name for item in graph.input}
    for tensor in model.graph.initializer:
        if is_small(tensor) and model.ir_version > 3:
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light = onnx.ModelProto(ir_version=model.ir_version, graph=graph, functions=model.functions)
    light.opset_import.extend(model.opset_import)
    return light


def is_small(tensor: onnx.TensorProto | None) -> bool:
    """Whether there is a tensor and it may be one that says something about shapes."""
    # Not by ByteSize(), which writes the whole tensor to count its bytes.
    return tensor is not None and math.prod(tensor.dims) <= _SMALL_ELEMENTS


def _typed(light: onnx.ModelProto) -> onnx.ModelProto:
    """With some type for all that has none: the checker asks for it, but every runtime infers outputs, and the
    shapes of inputs can be given on the command line.
    """
    del light.graph.value_info[:]
    for item in (*light.graph.input, *light.graph.output):
        if not item.HasField("type"):
            item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if item.type.HasField("tensor_type"):
            item.type.tensor_type.shape.SetInParent()
    return light


def _parsed(path: Path, doing: str) -> Source:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise _too_large(doing, size)
        source = read_parted(path)
    except OSError as error:
        raise InputError(doing, f"{error.strerror or error}", "check the path") from error
    except DecodeError as error:
        raise InputError(doing, "not an ONNX model", "export the model as .onnx") from error
    # Protobuf takes nearly any bytes, an empty file too, for a message without known fields.
    if not source.model.graph.output or not source.model.ir_version:
        raise InputError(doing, "not an ONNX model (it has no graph)", "export the model as .onnx")
    return source


def _too_large(doing: str, size: int) -> UnsupportedError:
    found = f"{size / 1e9:.1f} GB, and neither protobuf nor a .tflite file can hold more than 2 GB"
    return UnsupportedError(doing, found, "split the model, or compress its weights first")


def _check_versions(model: onnx.ModelProto, doing: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            found = f"its opset is {entry.version}, and onnx {onnx.__version__} knows up to {newest}"
            raise UnsupportedError(doing, found, f"export it with opset {newest} or older, or install a newer onnx")
    if model.ir_version > onnx.IR_VERSION:
        found = f"its format is IR version {model.ir_version}, and onnx {onnx.__version__} knows {onnx.IR_VERSION}"
        raise UnsupportedError(doing, found, "install a newer onnx, or save the model with an older one")


def _load_external(model: onnx.ModelProto, folder: Path, doing: str) -> None:
    """Read weights that lie in files beside the model; a file outside the model's folder is refused."""
    tensors = [tensor for tensor in _tensors(model.graph) if external_data_helper.uses_external_data(tensor)]
    total = 0
    for tensor in tensors:
        total += _external_bytes(tensor, folder, doing)
    if total > LARGEST_BYTES:
        raise _too_large(doing, total)
    for tensor in tensors:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, checker.ValidationError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(doing, f"the external data of {tensor.name!r}: {first}", _TOGETHER) from error
        # What lies in memory from here on must not be looked for on disk again.
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


_TOGETHER = "keep the model and its data files in one folder"


def _external_bytes(tensor: onnx.TensorProto, folder: Path, doing: str) -> int:
    """Size of one tensor's part of a data file, after checking that it lies in the folder and is all there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refused: EdgefleetError | None = None
    path = folder / location
    if not location or not path.resolve().is_relative_to(folder.resolve()):
        found = f"the external data of {tensor.name!r} lies at {location!r}, outside the model's folder"
        refused = InputError(doing, found, _TOGETHER)
    elif not path.is_file():
        refused = InputError(doing, f"the external data file {location!r} of {tensor.name!r} is missing", _TOGETHER)
    if refused is not None:
        raise refused
    try:
        offset, size = int(entries.get("offset") or 0), path.stat().st_size
        length = int(entries["length"]) if entries.get("length") else size - offset
    except ValueError as error:
        raise InputError(doing, f"the external data of {tensor.name!r} is not described in numbers", _AGAIN) from error
    if offset < 0 or length < 0 or offset + length > size:
        found = f"{location!r} has {size} bytes, and {tensor.name!r} needs {length} from byte {offset}"
        raise InputError(doing, found, _AGAIN)
    return length


_AGAIN = "export the model again"


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, those in attributes and subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)
