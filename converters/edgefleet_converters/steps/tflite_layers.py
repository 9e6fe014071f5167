"""Where the layers of an ONNX source are in the .tflite file that was lowered from it.

Not a step itself, and loads no toolchain but the file's schema.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from ai_edge_litert import schema_py_generated as schema

from edgefleet.errors import InputError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.steps.onnx_layers import surviving
from edgefleet_converters.tflite.delegation import operator_name


def float_results(content: bytes, source: Artefact | None, tensors: Collection[str]) -> list[str]:
    """Results of all operators that compute these tensors of the source, by their names in the file.

    The lowering names a tensor as the source does; a layer that it fused away is part of the next that is left. What
    it adds has names of its own, and belongs to the layer behind it. Raises InputError for a tensor of no layer.
    """
    if not tensors:
        return []
    made = _operators(content)
    own = _source_names(source)
    returned = _returned(content)
    present = {*returned, *(name for _, names, _ in made for name in names)}
    wanted = {returned.get(name, name) for name in _present(source, tensors, present)}
    found: dict[str, None] = {}
    for _, names, inputs in reversed(made):
        if not wanted.isdisjoint(names):
            found.update(dict.fromkeys(names))
            wanted |= {name for name in inputs if name not in own}
    return sorted(found)


def padded_by_value(content: bytes) -> list[str]:
    """Results of what the quantiser fails on, PADV2, and of the MAX_POOL_2D behind it.

    The value is often the lowest number that there is, whose range would leave no int8 step to anything else.
    """
    made = _operators(content)
    padded = [names[0] for operator, names, _ in made if operator == "PADV2"]
    pools = [names[0] for operator, names, inputs in made if operator == "MAX_POOL_2D" and inputs[0] in padded]
    return [*padded, *pools]


def _present(source: Artefact | None, tensors: Collection[str], present: Collection[str]) -> list[str]:
    """The tensors that stand for these in the file."""
    if source is not None and source.files[0].suffix == ".onnx":
        return surviving(onnx.load(source.files[0], load_external_data=False), tensors, present)
    missing = [name for name in tensors if name not in present]
    if missing:
        found = "the converted model has no such layer"
        raise InputError(f"keeping {missing[0]!r} in float", found, "name the output of a layer of the source model")
    return list(tensors)


def _returned(content: bytes) -> dict[str, str]:
    """Names of the outputs → names of the tensors, which may be another layout of what they were made from."""
    model = schema.Model.GetRootAs(content)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    outputs = [signature.Outputs(at) for at in range(signature.OutputsLength())]
    return {item.Name().decode(): graph.Tensors(item.TensorIndex()).Name().decode() for item in outputs}


def _source_names(source: Artefact | None) -> set[str]:
    if source is None or source.files[0].suffix != ".onnx":
        return set()
    graph = onnx.load(source.files[0], load_external_data=False).graph
    return {name for node in graph.node for name in node.output} | {item.name for item in graph.input}


def _operators(content: bytes) -> list[tuple[str, list[str], list[str]]]:
    """Name of each operator of the main graph, and names of what it returns and reads, in order."""
    model = schema.Model.GetRootAs(content)
    graph = model.Subgraphs(0)
    names = [graph.Tensors(at).Name().decode() for at in range(graph.TensorsLength())]
    found = []
    for operator in (graph.Operators(at) for at in range(graph.OperatorsLength())):
        outputs = [names[operator.Outputs(at)] for at in range(operator.OutputsLength())]
        inputs = [operator.Inputs(at) for at in range(operator.InputsLength())]
        code = operator_name(model.OperatorCodes(operator.OpcodeIndex()))
        found.append((code, outputs, [names[index] for index in inputs if index >= 0]))
    return found
