"""Step: an ONNX file with float16 weights, widened to float32 when ONNX Runtime loads it.

Does not compute in float16: few kernels of ONNX Runtime's CPU provider do, and around all others it puts a Cast, which
made MobileNetV2 1.6 times slower than float32 on x86. A Cast of a constant is folded at load.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.onnx_layers import save_clean
from edgefleet_converters.steps.prepare_onnx import prepare

# A smaller constant weighs less than the Cast that widens it.
FEWEST_ELEMENTS = 64
# Rounding to float16 takes 1/2048 of a value; what is more is too large for it, or too small.
MOST_LOST = 1e-3


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, a file of half the size out, with the same float32 inputs and outputs."""
    prepared, path = context.folder / "prepared.onnx", context.folder / "model.onnx"
    prepare(artefact.files[0], prepared)
    model = onnx.load(prepared)
    narrow_weights(model)
    save_clean(model, path)
    return artefact.model_copy(update={"files": (path,)})


def narrow_weights(model: onnx.ModelProto) -> None:
    """Store float32 constants as float16, in place; one that float16 cannot hold stays."""
    widening = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float16)
        limit = MOST_LOST * np.abs(array).max(initial=0)
        if array.size < FEWEST_ELEMENTS or not (np.abs(array - narrow) <= limit).all():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{name}/fp16"))
        widening.append(helper.make_node("Cast", [f"{name}/fp16"], [name], f"{name}/widened", to=TensorProto.FLOAT))
    nodes = [*widening, *model.graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
