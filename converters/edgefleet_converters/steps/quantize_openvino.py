"""Step: ONNX or TFLite to static int8 OpenVINO IR with NNCF, ranges as the settings say.

Weights keep all 8 bits: halving them (NNCF's default on CPUs without VNNI) costs up to 11 dB. Activations are not
smoothed: NNCF 3.4 spoils products over rank-2 data with that (6 dB instead of 36 in a pooled transformer).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import nncf
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
)
from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context, Ranges, in_file_layout
from edgefleet_converters.steps.openvino_model import (
    float_nodes,
    fold_scales,
    has_attention,
    name_by_position,
    names,
    read_float,
    save,
)

ESTIMATORS: Mapping[Ranges, RangeEstimatorParameters] = MappingProxyType(
    {
        Ranges.MINMAX: RangeEstimatorParametersSet.MINMAX,
        Ranges.MEAN: RangeEstimatorParametersSet.MEAN_MINMAX,
        Ranges.PERCENTILE: RangeEstimatorParametersSet.MEAN_QUANTILE,
        Ranges.MSE: RangeEstimatorParametersSet.HISTOGRAM,
    }
)


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float source in, int8 IR out, with the same inputs and outputs; raises InputError for an unknown float tensor."""
    model = read_float(artefact)
    fold_scales(model)
    known = names(model)
    ignored = float_nodes(model, artefact.files[0], context.settings.float_tensors)
    feeds = in_file_layout(artefact, context.samples)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if has_attention(model) else None,
        ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=ESTIMATORS[context.settings.ranges],
            overflow_fix=OverflowFix.DISABLE,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
        ),
    )
    name_by_position(quantized, known)
    return save(quantized, artefact, context.folder)
