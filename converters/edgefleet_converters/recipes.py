"""The recipes: which steps turn an ONNX source into a variant for a runtime and precision.

Steps are named, not imported: each loads a toolchain of its own, and only in the child process that runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgefleet_device_profiles.profile import Precision, Runtime


@dataclass(frozen=True, slots=True)
class Recipe:
    """Modules of `steps` to run in order, and the extra that installs what they need."""

    steps: tuple[str, ...]
    extra: str


RECIPES: Mapping[tuple[Runtime, Precision], Recipe] = MappingProxyType(
    {
        (Runtime.LITERT, Precision.FP16): Recipe(("lower_tflite", "quantize_tflite_fp16"), "convert-litert"),
        (Runtime.LITERT, Precision.INT8): Recipe(("lower_tflite_int8", "quantize_tflite"), "convert-litert"),
        (Runtime.LITERT, Precision.INT8_DYNAMIC): Recipe(("lower_tflite", "quantize_tflite_dynamic"), "convert-litert"),
        (Runtime.LITERT, Precision.INT4_WEIGHTS): Recipe(("lower_tflite", "quantize_tflite_int4"), "convert-litert"),
        (Runtime.OPENVINO, Precision.INT8): Recipe(("convert_openvino", "quantize_openvino"), "convert-openvino"),
        (Runtime.ONNXRUNTIME, Precision.INT8): Recipe(("prepare_onnx", "quantize_onnx"), "convert-onnx"),
    }
)
