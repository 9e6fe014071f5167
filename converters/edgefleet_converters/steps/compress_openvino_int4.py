"""Step: ONNX or TFLite to OpenVINO IR with 4-bit weights in matrix products, each block with a scale and zero point.

All other weights get 8 bits: embeddings, the last product, convolutions, and rows that no block divides. Does not look
at the calibration samples.
"""

from __future__ import annotations

import math

import nncf
import openvino
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.openvino_model import name_by_position, names, read_float, save
from edgefleet_converters.suitability import LEAST_SHARE

BLOCK = 32
"""Weights that share a scale, along the axis that is summed over."""
_NARROW, _WEIGHTS = ("i4", "u4"), ("f16", "f32", "i4", "i8", "u4", "u8")
# Scales, zero points and numbers of formulas are not what a model has learnt.
_FEWEST_ELEMENTS = 256


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float source in, IR with 4-bit weights out, with the same inputs and outputs; raises UnsupportedError."""
    model = read_float(artefact)
    known = names(model)
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=BLOCK,
        advanced_parameters=AdvancedCompressionParameters(group_size_fallback_mode=GroupSizeFallbackMode.ADJUST),
    )
    share = share_of_4_bits(compressed)
    if share < LEAST_SHARE:
        found = f"only {share:.0%} of this model's weights can have 4 bits: they are for inner matrix products"
        raise UnsupportedError(
            "converting to openvino int4-weights", found, "choose int8-weights or int8 for this model"
        )
    name_by_position(compressed, known)
    return save(compressed, artefact, context.folder)


def share_of_4_bits(model: openvino.Model) -> float:
    """Part of the weights that are stored in 4 bits, 0 to 1."""
    sizes = {True: 0, False: 0}
    for node in model.get_ops():
        kind = node.get_output_element_type(0).get_type_name() if node.get_type_name() == "Constant" else ""
        size = math.prod(node.get_output_shape(0)) if kind in _WEIGHTS else 0
        if size >= _FEWEST_ELEMENTS:
            sizes[kind in _NARROW] += size
    return sizes[True] / (sum(sizes.values()) or 1)
