"""The schema of a device profile: processor, memory, runtimes in order of preference, and power model.

A profile states what a kind of board is; what one machine really has is `detect`'s business.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


class Runtime(StrEnum):
    """An inference runtime that a device may have."""

    LITERT = "litert"
    """TFLite files, through LiteRT (ai-edge-litert) or tflite-runtime."""
    OPENVINO = "openvino"
    """OpenVINO IR: one .xml and one .bin."""
    ONNXRUNTIME = "onnxruntime"
    """ONNX files."""


class Precision(StrEnum):
    """How a variant's weights and activations are stored and computed."""

    FP32 = "fp32"
    """Everything in float32."""
    INT8 = "int8"
    """Weights and activations in 8 bits, ranges from calibration; inputs and outputs stay float32."""
    FP16 = "fp16"
    """Weights in float16, arithmetic in float32."""
    INT8_DYNAMIC = "int8-dynamic"
    """Weights in 8 bits, activations quantised while the model runs; no calibration."""
    INT4_WEIGHTS = "int4-weights"
    """Weights in 4 bits where the runtime can, else in 8; activations quantised while the model runs."""


def _is_specifier(value: str) -> str:
    try:
        SpecifierSet(value)
    except InvalidSpecifier as error:
        raise ValueError(f"{value!r} is not a version range such as '>=2.3'") from error
    return value


VersionRange = Annotated[str, AfterValidator(_is_specifier)]
"""A PEP 440 specifier, such as `>=2.3`."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cpu(_Record):
    """The processor: OCI architecture name, cores, and the instruction sets that matter to int8."""

    architecture: Literal["amd64", "arm64", "arm"]
    cores: int = Field(ge=1)
    clock_mhz: int = Field(ge=1)
    isa: tuple[str, ...] = ()


class Memory(_Record):
    """Memory of the board as sold."""

    total_mib: int = Field(ge=1)


class AllowedRuntime(_Record):
    """A runtime that the board can run: version range (PEP 440) and precisions, best first."""

    name: Runtime
    version: VersionRange
    precisions: tuple[Precision, ...] = Field(min_length=1)
    reason: str
    """Why it stands where it stands in the order."""


class PowerModel(_Record):
    """Linear model between idle and full load, in watts; the two ends are also the estimate's error bar."""

    idle_w: float = Field(gt=0)
    max_w: float = Field(gt=0)
    scope: Literal["board_input", "package"]

    @model_validator(mode="after")
    def _ordered(self) -> PowerModel:
        if self.idle_w >= self.max_w:
            raise ValueError(f"idle_w {self.idle_w} must be below max_w {self.max_w}")
        return self


class BoardMatch(_Record):
    """What a machine must show to be this board; an empty list asks nothing."""

    device_tree_models: tuple[str, ...] = ()
    """Prefixes of /proc/device-tree/model."""
    dmi_products: tuple[str, ...] = ()
    """Prefixes of /sys/class/dmi/id/product_name."""


class Profile(_Record):
    """One kind of device."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    title: str
    sources: tuple[str, ...] = Field(min_length=1)
    """Where the figures come from: documents, not addresses."""
    cpu: Cpu
    memory: Memory
    runtimes: tuple[AllowedRuntime, ...] = Field(min_length=1)
    power: PowerModel
    board: BoardMatch = BoardMatch()

    @field_validator("runtimes")
    @classmethod
    def _once_each(cls, value: tuple[AllowedRuntime, ...]) -> tuple[AllowedRuntime, ...]:
        if len({allowed.name for allowed in value}) < len(value):
            raise ValueError("a runtime is listed twice")
        return value
