"""Results of a float file that its own operators read too: kept away from the quantiser, and returned again after it.

Quantises nothing and decides on no scale. ai-edge-quantizer 0.10 sees a file's results as one more reader of each:
where that one wants float32 and an operator wants int8, it turns the operator, or the result, to the wrong tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.wiring import Wiring, wirings
from edgefleet_converters.tflite.writer import pack, unpack

_SUFFIX = b"_returned"


@dataclass(frozen=True, slots=True)
class Aside:
    """Float32 results that were taken out: name of the tensor → names in the signatures; order of all results.

    `order` has a tensor's name for what was taken out, and nothing for what has stayed. Names are as in the file.
    """

    order: Sequence[bytes] = ()
    signatures: Sequence[Sequence[tuple[bytes, bytes]]] = ()


def set_aside(content: bytes) -> tuple[bytes, Aside]:
    """The file without those float32 results of its main graph that operators read; itself where there is none."""
    if not _has_read_results(content):
        return content, Aside()
    model = unpack(content)
    graph = model.subgraphs[0]
    read = {int(index) for operator in graph.operators for index in operator.inputs}
    taken = {index for index in map(int, graph.outputs) if index in read and _is_float(graph, index)}
    order = [graph.tensors[index].name if index in taken else b"" for index in map(int, graph.outputs)]
    graph.outputs = [index for index in map(int, graph.outputs) if index not in taken]
    signatures = []
    for signature in model.signatureDefs or ():
        signatures.append(
            [
                (entry.name, graph.tensors[entry.tensorIndex].name if entry.tensorIndex in taken else b"")
                for entry in signature.outputs
            ]
        )
        signature.outputs = [entry for entry in signature.outputs if entry.tensorIndex not in taken]
    return pack(model), Aside(order, signatures)


def put_back(model: Any, aside: Aside) -> None:
    """Let a quantised ModelT return what was set aside, in place and in the old order, as float32."""
    if not aside.order:
        return
    wiring = next(wirings(model))
    graph = wiring.table
    positions = {tensor.name: index for index, tensor in enumerate(graph.tensors)}
    made = {name: _as_float(wiring, positions[name]) for name in dict.fromkeys(aside.order) if name}
    stayed = iter(list(graph.outputs))
    graph.outputs = [made[name] if name else next(stayed) for name in aside.order]
    for signature, entries in zip(model.signatureDefs or (), aside.signatures, strict=True):
        left = iter(list(signature.outputs))
        signature.outputs = [_entry(name, made[tensor]) if tensor else next(left) for name, tensor in entries]


def _has_read_results(content: bytes) -> bool:
    """Whether it is worth taking the file apart."""
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    results = {graph.Outputs(at) for at in range(graph.OutputsLength())}
    results = {at for at in results if graph.Tensors(at).Type() == schema.TensorType.FLOAT32}
    operators = (graph.Operators(at) for at in range(graph.OperatorsLength()))
    return any(operator.Inputs(at) in results for operator in operators for at in range(operator.InputsLength()))


def _is_float(graph: Any, tensor: int) -> bool:
    return bool(graph.tensors[tensor].type == schema.TensorType.FLOAT32)


def _as_float(wiring: Wiring, tensor: int) -> int:
    """The float32 form of a tensor: itself, what an operator reads already, or a new DEQUANTIZE."""
    if _is_float(wiring.table, tensor):
        return tensor
    for reader in wiring.readers.get(tensor, ()):
        if wiring.name(reader) == "DEQUANTIZE":
            return int(reader.outputs[0])
    stored = wiring.table.tensors[tensor]
    wiring.table.tensors.append(_like(stored))
    operator = schema.OperatorT()
    operator.opcodeIndex = wiring.code("DEQUANTIZE")
    operator.inputs, operator.outputs = [tensor], [len(wiring.table.tensors) - 1]
    wiring.table.operators.append(operator)
    return len(wiring.table.tensors) - 1


def _like(stored: Any) -> Any:
    found = schema.TensorT()
    found.name = stored.name + _SUFFIX
    found.shape, found.shapeSignature, found.hasRank = stored.shape, stored.shapeSignature, stored.hasRank
    found.type = schema.TensorType.FLOAT32
    return found


def _entry(name: bytes, tensor: int) -> Any:
    found = schema.TensorMapT()
    found.name, found.tensorIndex = name, tensor
    return found
