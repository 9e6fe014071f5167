"""The recipes: which steps turn a source into a variant for a runtime and precision, and which forms they accept.

Steps are named, not imported: each loads a toolchain of its own, and only in the child process that runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from edgefleet.package.manifest import Mark
from edgefleet_converters.artefact import Form
from edgefleet_device_profiles.profile import Precision, Runtime


@dataclass(frozen=True, slots=True)
class Recipe:
    """Modules of `steps` to run in order, by the form of the source; the first form that a source has is taken.

    `calibrated` recipes need samples; `scored` ones give files that a runtime on the packaging host can run.
    """

    extra: str
    steps: Mapping[Form, tuple[str, ...]]
    calibrated: bool = False
    scored: bool = True
    marks: tuple[Mark, ...] = ()
    """What every variant made this way is marked with."""


def _onnx(*steps: str) -> Mapping[Form, tuple[str, ...]]:
    return MappingProxyType({Form.ONNX: steps})


def _onnx_or_tflite(*steps: str) -> Mapping[Form, tuple[str, ...]]:
    return MappingProxyType({Form.ONNX: steps, Form.TFLITE: steps})


def _lowered(lowering: str, *steps: str) -> Mapping[Form, tuple[str, ...]]:
    """A .tflite file of the person's own takes the place of the one that the lowering makes."""
    return MappingProxyType({Form.ONNX: (lowering, *steps), Form.TFLITE: steps or ("keep_tflite",)})


def _torch(*steps: str) -> Mapping[Form, tuple[str, ...]]:
    return MappingProxyType({Form.TORCH: steps})


_LITERT, _OPENVINO, _ORT = "convert-litert", "convert-openvino", "convert-onnx"
_EXECUTORCH, _COREML = "convert-executorch", "convert-coreml"

RECIPES: Mapping[tuple[Runtime, Precision], Recipe] = MappingProxyType(
    {
        (Runtime.LITERT, Precision.FP32): Recipe(_LITERT, _lowered("lower_tflite")),
        (Runtime.LITERT, Precision.FP16): Recipe(_LITERT, _lowered("lower_tflite", "quantize_tflite_fp16")),
        (Runtime.LITERT, Precision.INT8): Recipe(
            _LITERT, _lowered("lower_tflite_int8", "quantize_tflite"), calibrated=True
        ),
        (Runtime.LITERT, Precision.INT16X8): Recipe(
            _LITERT,
            _lowered("lower_tflite_int8", "quantize_tflite_int16x8"),
            calibrated=True,
            marks=(Mark.OFF_XNNPACK,),
        ),
        (Runtime.LITERT, Precision.INT8_DYNAMIC): Recipe(_LITERT, _lowered("lower_tflite", "quantize_tflite_dynamic")),
        (Runtime.LITERT, Precision.INT4_WEIGHTS): Recipe(_LITERT, _lowered("lower_tflite", "quantize_tflite_int4")),
        (Runtime.OPENVINO, Precision.FP32): Recipe(_OPENVINO, _onnx_or_tflite("convert_openvino")),
        (Runtime.OPENVINO, Precision.FP16): Recipe(_OPENVINO, _onnx_or_tflite("convert_openvino_fp16")),
        (Runtime.OPENVINO, Precision.INT8): Recipe(_OPENVINO, _onnx_or_tflite("quantize_openvino"), calibrated=True),
        (Runtime.OPENVINO, Precision.INT8_WEIGHTS): Recipe(_OPENVINO, _onnx_or_tflite("compress_openvino_int8")),
        (Runtime.OPENVINO, Precision.INT4_WEIGHTS): Recipe(_OPENVINO, _onnx_or_tflite("compress_openvino_int4")),
        (Runtime.ONNXRUNTIME, Precision.FP32): Recipe(_ORT, _onnx("clean_onnx")),
        (Runtime.ONNXRUNTIME, Precision.FP16): Recipe(_ORT, _onnx("quantize_onnx_fp16")),
        (Runtime.ONNXRUNTIME, Precision.INT8): Recipe(_ORT, _onnx("quantize_onnx"), calibrated=True),
        (Runtime.ONNXRUNTIME, Precision.INT8_DYNAMIC): Recipe(_ORT, _onnx("quantize_onnx_dynamic")),
        (Runtime.ONNXRUNTIME, Precision.INT4_WEIGHTS): Recipe(_ORT, _onnx("quantize_onnx_int4")),
        (Runtime.EXECUTORCH, Precision.FP32): Recipe(_EXECUTORCH, _torch("convert_executorch")),
        (Runtime.EXECUTORCH, Precision.INT8): Recipe(
            _EXECUTORCH, _torch("quantize_executorch", "convert_executorch"), calibrated=True
        ),
        (Runtime.COREML, Precision.FP16): Recipe(_COREML, _torch("convert_coreml", "bundle_coreml"), scored=False),
        (Runtime.COREML, Precision.INT8_WEIGHTS): Recipe(
            _COREML, _torch("convert_coreml", "quantize_coreml_int8", "bundle_coreml"), scored=False
        ),
        (Runtime.TENSORRT, Precision.FP32): Recipe(_ORT, _onnx("clean_onnx"), scored=False),
        (Runtime.TENSORRT, Precision.FP16): Recipe(_ORT, _onnx("narrow_tensorrt"), scored=False),
        (Runtime.TENSORRT, Precision.INT8): Recipe(_ORT, _onnx("quantize_tensorrt"), calibrated=True, scored=False),
    }
)

MICRO_RECIPE = Recipe(
    _LITERT, _lowered("lower_tflite_int8", "quantize_tflite_micro", "write_micro_source"), calibrated=True
)
"""LiteRT int8 for a microcontroller (`Settings.micro`), in the place of the row above."""


def recipe_of(runtime: Runtime, precision: Precision, *, micro: bool) -> Recipe:
    """The recipe of a planned variant; raises KeyError where there is none."""
    return MICRO_RECIPE if micro else RECIPES[runtime, precision]


MICRO_KERNELS: Mapping[str, Literal["reference", "cmsis-nn", "esp-nn"]] = MappingProxyType(
    {"armv7e-m": "cmsis-nn", "xtensa": "esp-nn"}
)
"""Architecture → the kernels that LiteRT for Microcontrollers has for it; its own reference kernels elsewhere."""

ORT_ACTIVATIONS: Mapping[str, Literal["uint8", "int8"]] = MappingProxyType(
    {"amd64": "uint8", "arm64": "int8", "arm": "int8"}
)
"""Architecture → type of ONNX Runtime's int8 activations with signed weights.

Signed is its documentation's first choice (Quantize ONNX models, data type selection). Not so on x86, where only
unsigned times signed is one instruction: signed activations ran slower than float32 (ResNet8: 2.1 times uint8's).
"""
