"""Step: static int8 of an OpenVINO IR with NNCF, smallest-largest ranges.

Weights keep all 8 bits: halving them (NNCF's default on CPUs without VNNI) costs up to 11 dB.
"""

from __future__ import annotations

import re

import nncf
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context, in_file_layout


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float IR in, int8 IR out, with the same float32 inputs and outputs."""
    feeds = in_file_layout(artefact, context.samples)
    quantized = nncf.quantize(
        openvino.Core().read_model(artefact.files[0]),
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            overflow_fix=OverflowFix.DISABLE,
        ),
    )
    _name_by_position(quantized)
    path = context.folder / "model.xml"
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return artefact.model_copy(update={"files": (path, path.with_suffix(".bin"))})


def _name_by_position(model: openvino.Model) -> None:
    """Rename the nodes that OpenVINO named by a counter of the whole process, which threads race for.

    Otherwise the same inputs would give another file, and another digest, on every run.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}#{position}")
