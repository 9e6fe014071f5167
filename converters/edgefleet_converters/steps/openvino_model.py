"""OpenVINO models as the steps need them: read from a source, quantised by NNCF or not, and saved as the same bytes.

Not a step itself. NNCF only ever sees OpenVINO models: its ONNX backend writes files that ONNX Runtime refuses.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import openvino
from openvino import opset13 as opset

from edgefleet.errors import InputError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.steps.onnx_layers import surviving

ATTENTION = "ScaledDotProductAttention"


def read_float(artefact: Artefact) -> openvino.Model:
    """The source, ONNX or TFLite, as a float model that knows its inputs and outputs by the source's names."""
    model = openvino.convert_model(artefact.files[0])
    _name_borders(model.inputs, [spec.name for spec in artefact.inputs])
    _name_borders(model.outputs, [spec.name for spec in artefact.outputs])
    name_by_position(model)
    return model


def save(model: openvino.Model, artefact: Artefact, folder: Path, *, compress_to_fp16: bool = False) -> Artefact:
    """Write .xml and .bin, the same bytes for the same model."""
    path = folder / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=compress_to_fp16)
    return artefact.model_copy(update={"files": (path, path.with_suffix(".bin"))})


def name_by_position(model: openvino.Model, kept: Collection[str] = ()) -> None:
    """Rename all nodes but the kept ones and those called like the source's tensor that they compute.

    OpenVINO names nodes by a counter of the whole process that threads race for: the same inputs would give another
    file, and another digest, on every run.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name not in kept and not any(name in output.get_names() for output in node.outputs()):
            node.set_friendly_name(f"{node.get_type_name()}#{position}")


def names(model: openvino.Model) -> set[str]:
    """Names of all nodes."""
    return {node.get_friendly_name() for node in model.get_ops()}


def float_nodes(model: openvino.Model, source: Path, tensors: Collection[str]) -> list[str]:
    """Names of the nodes that compute the source's tensors; raises InputError for a tensor that is no layer's output.

    A layer of the source may be several nodes here, of which only the last carries its tensor's name.
    """
    made = {name: node for node in model.get_ordered_ops() for output in node.outputs() for name in output.get_names()}
    known = surviving(onnx.load(source), tensors, made) if _is_onnx(source) else _present(tensors, made)
    open_, found = [made[name] for name in known], dict[str, None]()
    while open_:
        node = open_.pop()
        if node.get_friendly_name() in found or node.get_type_name() in ("Constant", "Parameter"):
            continue
        found[node.get_friendly_name()] = None
        sources = [value.get_source_output() for value in node.inputs()]
        open_ += [output.get_node() for output in sources if not output.get_names()]
    return sorted(found)


def fold_scales(model: openvino.Model) -> None:
    """Multiply the weights of a product by what its result is multiplied by, for each channel, in place.

    OpenVINO does so for convolutions only. Left apart in int8, a dense layer before a BatchNormalization is wrong on
    processors with AVX512-VNNI, and differently on every run (2026.4: an autoencoder had -8 to -2 dB instead of 37).
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        product, scale = (node.input_value(place).get_node() for place in (0, 1))
        weights = product.input_value(1).get_node() if product.get_type_name() == "MatMul" else None
        if weights is None or not _is_constant(weights) or not _is_constant(scale):
            continue
        readers = product.output(0).get_target_inputs() | weights.output(0).get_target_inputs()
        shape = weights.get_output_shape(0)
        transposed = bool(product.get_attributes()["transpose_b"])
        channels = shape[0 if transposed else 1] if len(shape) == 2 else 0
        factors = scale.get_data().ravel()
        if len(readers) != 2 or factors.size not in (1, channels) or scale.get_output_shape(0)[-1:] != [factors.size]:
            continue
        scaled = weights.get_data() * (factors[:, np.newaxis] if transposed else factors)
        made = opset.constant(scaled, name=weights.get_friendly_name())
        product.input(1).replace_source_output(made.output(0))
        product.output(0).add_names(node.output(0).get_names())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))


def _is_constant(node: openvino.Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def has_attention(model: openvino.Model) -> bool:
    """Whether something is weighted by a softmax of products, whole or in parts."""
    softmaxes = [node for node in model.get_ops() if node.get_type_name() == "Softmax"]
    readers = (port.get_node() for node in softmaxes for port in node.output(0).get_target_inputs())
    whole = any(node.get_type_name() == ATTENTION for node in model.get_ops())
    return whole or any(node.get_type_name() == "MatMul" for node in readers)


def _name_borders(ports: list[openvino.Output], wanted: list[str]) -> None:
    """By name where the file has the names, else by position: a .tflite signature's names are not its tensors'."""
    known = {name for port in ports for name in port.get_names()}
    if known.issuperset(wanted):
        return
    for port, name in zip(ports, wanted, strict=True):
        port.get_tensor().set_names({name})


def _present(tensors: Collection[str], made: Collection[str]) -> list[str]:
    missing = [name for name in tensors if name not in made]
    if missing:
        found = "the converted model has no such layer"
        raise InputError(f"keeping {missing[0]!r} in float", found, "name the output of a layer of the source model")
    return list(tensors)


def _is_onnx(path: Path) -> bool:
    return path.suffix == ".onnx"
