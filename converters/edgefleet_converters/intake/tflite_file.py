"""TFLite intake: a float .tflite file with one signature and static shapes, whatever tool made it.

Does not turn it into ONNX: recipes that start from ONNX refuse such a source.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet.errors import EdgefleetError, InputError, UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion.shapes import Shapes
from edgefleet_converters.intake.source import Source, SourceKind, digest_of
from edgefleet_converters.tflite.writer import SIGNATURE, pack, unpack

_MAGIC = b"TFL3"
_TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
_QUANTISED = ("int8", "uint8", "int16", "int4", "int2")
_SPECS = ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def read_tflite(model: str, work: Path, *, shapes: Shapes, dims: Mapping[str, int]) -> Source:
    """Read and check a file, and write it to `work` with the signature that our steps use.

    Raises InputError or UnsupportedError.
    """
    doing, path = f"reading the model {model}", Path(model)
    if shapes or dims:
        found = "--shape and --dim: a .tflite file has its sizes in every tensor"
        raise InputError(doing, found, "leave them out, or convert the model with the shape you need")
    try:
        return _checked(model, path, work, doing)
    except _BROKEN as error:
        found = f"not a readable TFLite file ({type(error).__name__}: {error})"
        raise InputError(doing, found, _AGAIN) from error


# What reading a damaged file comes to: offsets and numbers that lead nowhere.
_BROKEN = (struct.error, ValueError, TypeError, LookupError, AttributeError, OverflowError)
_AGAIN = "convert the model to .tflite again"


def _checked(model: str, path: Path, work: Path, doing: str) -> Source:
    parsed = _parsed(path, doing)
    graph = parsed.subgraphs[0]
    tensors = [tensor for part in parsed.subgraphs for tensor in part.tensors]
    _refuse_quantised(tensors, parsed, doing)
    _refuse_nan(tensors, parsed, doing)
    inputs, outputs = _borders(parsed, doing)
    specs = tuple(
        tuple(_spec(graph.tensors[position], name, doing) for name, position in border.items())
        for border in (inputs, outputs)
    )
    parsed.signatureDefs = [_signature(inputs, outputs)]
    for tensor in tensors:
        # Only the batch was open, and XNNPACK does not take tensors that may still change.
        tensor.shapeSignature = None
    file = work / "source.tflite"
    file.write_bytes(pack(parsed))
    return Source(
        kind=SourceKind.TFLITE,
        origin=model,
        digest=digest_of(path),
        forms={Form.TFLITE: Artefact(files=(file,), inputs=specs[0], outputs=specs[1])},
        inputs=specs[0],
        outputs=specs[1],
    )


def _parsed(path: Path, doing: str) -> Any:
    """The ModelT of a file; raises InputError for what is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(doing, error.strerror or str(error), "check the path") from error
    if content[4:8] != _MAGIC:
        raise InputError(doing, "not a TFLite file", _AGAIN)
    model = unpack(content)
    if not model.subgraphs or not model.subgraphs[0].tensors or not model.buffers:
        raise InputError(doing, "a TFLite file without a graph", _AGAIN)
    return model


def _refuse_quantised(tensors: list[Any], model: Any, doing: str) -> None:
    """Quantising twice loses twice, and what the first time lost is not seen by comparing with its result."""
    remedy = "give the float model that it was made from"
    for tensor in tensors:
        kind = _TYPES.get(tensor.type, "?")
        scales = tensor.quantization.scale if tensor.quantization is not None else None
        if kind in _QUANTISED and scales is not None and len(scales):
            raise InputError(doing, f"it is quantised already: {_text(tensor.name)!r} is {kind}", remedy)
        if kind == "float16" and _data(tensor, model) is not None:
            raise InputError(doing, f"its weights are float16 ({_text(tensor.name)!r})", remedy)


def _refuse_nan(tensors: list[Any], model: Any, doing: str) -> None:
    for tensor in tensors:
        data = _data(tensor, model) if _TYPES.get(tensor.type) == "float32" else None
        if data is not None and np.isnan(data[: len(data) // 4 * 4].view("<f4")).any():
            remedy = "go back to a checkpoint from before the training diverged, and convert that"
            raise InputError(doing, f"NaN values in the weights {_text(tensor.name)!r}", remedy)


def _data(tensor: Any, model: Any) -> Any:
    """The bytes of a constant; None for what is computed."""
    data = model.buffers[tensor.buffer].data if 0 < tensor.buffer < len(model.buffers) else None
    return None if data is None or not len(data) else np.asarray(data, np.uint8)


def _borders(model: Any, doing: str) -> tuple[dict[str, int], dict[str, int]]:
    """Input and output names → tensors, in the graph's order: a signature's, else the tensors' own."""
    graph = model.subgraphs[0]
    signature = _chosen(model.signatureDefs or [], doing)
    if signature is None:
        return _by_tensor(graph, graph.inputs, doing), _by_tensor(graph, graph.outputs, doing)
    borders = []
    for entries, order in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
        places = {position: place for place, position in enumerate(order)}
        mapped = sorted(entries, key=lambda entry: places.get(entry.tensorIndex, len(places)))
        borders.append({_text(entry.name): entry.tensorIndex for entry in mapped})
    return borders[0], borders[1]


def _chosen(signatures: list[Any], doing: str) -> Any:
    """The one signature of the main graph, or the one with the usual name; None where there is none."""
    names = [_text(entry.signatureKey) for entry in signatures]
    if not names:
        return None
    place = names.index(SIGNATURE) if SIGNATURE in names else 0
    refused: EdgefleetError | None = None
    if len(names) > 1 and SIGNATURE not in names:
        remedy = f"convert it with one signature, called {SIGNATURE}"
        refused = UnsupportedError(doing, f"it has the signatures {', '.join(names)}", remedy)
    elif signatures[place].subgraphIndex:
        found = f"its signature {names[place]!r} is not of the first graph"
        refused = UnsupportedError(doing, found, "convert it with one signature")
    if refused is not None:
        raise refused
    return signatures[place]


def _by_tensor(graph: Any, positions: Any, doing: str) -> dict[str, int]:
    found = {_text(graph.tensors[position].name): int(position) for position in positions}
    if len(found) != len(positions) or "" in found:
        names = [_text(graph.tensors[position].name) for position in positions]
        raise UnsupportedError(doing, f"its inputs and outputs are called {names}", "convert it with a signature")
    return found


def _spec(tensor: Any, name: str, doing: str) -> TensorSpec:
    """Name, dtype and shape; only the first axis may be open, and has the length that the file gives it (1)."""
    shape = tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))
    declared = [int(size) for size in (tensor.shapeSignature if tensor.shapeSignature is not None else ())]
    kind = _TYPES.get(tensor.type, "?")
    if -1 in declared[1:]:
        raise UnsupportedError(doing, f"{name!r} has the shape {declared}", "convert it with static shapes")
    if kind not in (*_SPECS, "bool"):
        raise UnsupportedError(doing, f"{name!r} is {kind}", "convert it with numbers of a usual type")
    return TensorSpec.model_validate({"name": name, "dtype": kind, "shape": shape})


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs = [_mapping(*entry) for entry in inputs.items()]
    signature.outputs = [_mapping(*entry) for entry in outputs.items()]
    return signature


def _mapping(name: str, position: int) -> Any:
    mapping = schema.TensorMapT()
    mapping.name, mapping.tensorIndex = name, position
    return mapping


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
