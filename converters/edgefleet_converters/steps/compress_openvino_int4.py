"""Step: ONNX or TFLite to OpenVINO IR with 4-bit weights in matrix products, in blocks with a scale and a zero point each.

All other weights, and products whose rows no block fits, get 8 bits. Does not look at the calibration samples.
"""

from __future__ import annotations

import nncf
import onnx
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

from edgefleet_converters.analysis import analyze
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.openvino_model import name_by_position, names, read_float, save
from edgefleet_converters.suitability import require_suitable
from edgefleet_device_profiles.profile import Precision, Runtime

BLOCK = 64
"""Weights that share a scale, along the axis that is summed over; 32 where 64 does not divide it."""
