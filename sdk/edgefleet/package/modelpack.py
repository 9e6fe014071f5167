"""The ModelPack config of a variant: what model tools of other makers show of it (CNCF ModelPack, config.md).

Ours is derived from the variant's own spec and is never read back: devices go by the settings layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from edgefleet.package.manifest import VariantSpec
from edgefleet_device_profiles.profile import Precision, Runtime

FORMATS: Mapping[Runtime, str] = MappingProxyType(
    {
        Runtime.LITERT: "tflite",
        Runtime.OPENVINO: "openvino",
        Runtime.ONNXRUNTIME: "onnx",
        Runtime.COREML: "coreml",
        Runtime.EXECUTORCH: "executorch",
        Runtime.TENSORRT: "onnx",
    }
)
"""Runtime → the format of the files that it opens."""

PRECISIONS: Mapping[Precision, tuple[str, str | None]] = MappingProxyType(
    {
        Precision.FP32: ("fp32", None),
        Precision.FP16: ("fp16", None),
        Precision.INT8: ("int8", "static"),
        Precision.INT8_DYNAMIC: ("int8", "dynamic"),
        Precision.INT8_WEIGHTS: ("int8", "weight-only"),
        Precision.INT4_WEIGHTS: ("int4", "weight-only"),
        Precision.INT16X8: ("mixed", "static"),
    }
)
"""Our precision → ModelPack's `precision` and `quantization`."""


def config(spec: VariantSpec, layer_digests: Sequence[str], name: str, version: str) -> dict[str, Any]:
    """The config document of a variant of the package `name` at `version`; no layer is compressed."""
    precision, quantization = PRECISIONS[spec.precision]
    technical: dict[str, Any] = {"format": FORMATS[spec.runtime], "precision": precision}
    if quantization is not None:
        technical["quantization"] = quantization
    if spec.preprocessing:
        technical["capabilities"] = {"inputTypes": ["image"]}
    return {
        "descriptor": {"name": name, "version": version, "title": f"{name} {spec.name}"},
        "config": technical,
        # A layer that is not compressed has its own digest as its diff id.
        "modelfs": {"type": "layers", "diffIds": list(layer_digests)},
    }
