"""The schema of a device profile: processor, memory, accelerators, runtimes in order of preference, limits and power.

A profile states what a kind of device is; what one machine really has is `detect`'s business, and how near to its peaks
a model comes is nobody's here: every figure is what the documents named in `sources` say, or is calculated from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
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
    COREML = "coreml"
    """CoreML packages (.mlpackage), on Apple's own systems."""
    EXECUTORCH = "executorch"
    """ExecuTorch programs (.pte)."""
    TENSORRT = "tensorrt"
    """ONNX files with explicit quantisation, built into an engine on the device by NVIDIA TensorRT."""


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
    INT8_WEIGHTS = "int8-weights"
    """Weights in 8 bits, widened when they are used; arithmetic in float."""
    INT4_WEIGHTS = "int4-weights"
    """Weights in 4 bits where the runtime can, else in 8; activations quantised while the model runs."""
    INT16X8 = "int16x8"
    """Weights in 8 bits, activations in 16, ranges from calibration."""


class IsaFeature(StrEnum):
    """An instruction set that decides how fast a kernel is."""

    NEON = "neon"
    """Arm Advanced SIMD: 128-bit vectors."""
    FP16 = "fp16"
    """Arm half-precision vector arithmetic (Armv8.2 FP16)."""
    DOTPROD = "dotprod"
    """Arm int8 dot product (SDOT, UDOT)."""
    I8MM = "i8mm"
    """Arm int8 matrix multiplication (SMMLA)."""
    BF16 = "bf16"
    """Arm bfloat16 dot product and matrix multiplication."""
    ARM_DSP = "arm-dsp"
    """Packed 16-bit multiply-accumulate of the Armv7E-M DSP extension."""
    XTENSA_SIMD = "xtensa-simd"
    """The 128-bit vector extension of the ESP32-S3."""
    SSE4_2 = "sse4.2"
    """x86-64-v2."""
    AVX2 = "avx2"
    """x86-64-v3: 256-bit vectors with FMA."""
    AVX_VNNI = "avx-vnni"
    """x86 int8 dot product on 256-bit vectors."""
    AVX512 = "avx512"
    """x86-64-v4: AVX-512 F, BW, CD, DQ and VL."""
    AVX512_VNNI = "avx512-vnni"
    """x86 int8 dot product on AVX-512."""
    AMX = "amx"
    """x86 int8 tile multiplication (AMX-INT8)."""


class Sensor(StrEnum):
    """A power meter that can be read without root, or with a udev rule."""

    RPI_PMIC = "rpi-pmic"
    """Rails of the Raspberry Pi 5's power management chip; no USB, HAT or NVMe."""
    INA2XX = "ina2xx"
    """An INA219 or INA226 on the supply line, added by the owner, through hwmon."""
    JETSON_INA3221 = "jetson-ina3221"
    """The Jetson module's own INA3221; its total is the board's input."""
    RAPL = "rapl"
    """Energy counters of x86 processor packages."""
    BATTERY = "battery"
    """The battery's gauge, while it discharges."""


def _is_specifier(value: str) -> str:
    try:
        SpecifierSet(value)
    except InvalidSpecifier as error:
        raise ValueError(f"{value!r} is not a version range such as '>=2.3'") from error
    return value


VersionRange = Annotated[str, AfterValidator(_is_specifier)]
"""A PEP 440 specifier, such as `>=2.3`."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above zero."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cpu(_Record):
    """The processor: architecture by its OCI name (a microcontroller has none there), all its cores and their ISA."""

    architecture: Literal["amd64", "arm64", "arm", "armv7e-m", "xtensa"]
    cores: int = Field(ge=1)
    clock_mhz: int = Field(ge=1)
    """Highest clock of the fastest cores."""
    isa: tuple[IsaFeature, ...] = ()
    """What the slowest core has too: a program may be scheduled there."""


class Memory(_Record):
    """Memory of the device as sold, in MiB (1/1024 is a KiB, exact as a float)."""

    total_mib: Positive
    usable_mib: float = Field(default_factory=lambda known: known.get("total_mib", 0.0) / 2)
    """What a model and its runtime may take beside the system; half of the total where the profile does not say."""

    @property
    def usable_bytes(self) -> int:
        """`usable_mib` in bytes, rounded down."""
        return int(self.usable_mib * 2**20)

    @model_validator(mode="after")
    def _fits(self) -> Memory:
        if not 0 < self.usable_mib <= self.total_mib:
            raise ValueError(f"usable_mib {self.usable_mib} must be above 0 and at most total_mib {self.total_mib}")
        return self


class Accelerator(_Record):
    """A processor beside the CPU."""

    name: str = Field(min_length=1)
    kind: Literal["gpu", "npu", "tpu", "dsp"]
    supported: bool
    """Whether variants made here use it, through `runtime`."""
    runtime: Runtime | None = None
    note: str = Field(min_length=1)
    """What is used of it, or why it is not."""

    @model_validator(mode="after")
    def _has_a_runtime(self) -> Accelerator:
        if self.supported and self.runtime is None:
            raise ValueError(f"{self.name} is supported, but names no runtime")
        return self


class Peak(_Record):
    """What all cores of the CPU can do together at the clock they hold: 10⁹ operations/s, one MAC being two.

    None: the CPU has no faster arithmetic for it than for the next wider type. No kernel reaches a peak (Williams,
    Waterman and Patterson, Roofline, CACM 52(4), 2009): an efficiency belongs to whoever measured it.
    """

    fp32_gops: Positive
    fp16_gops: Positive | None = None
    int8_gops: Positive | None = None
    bandwidth_gb_s: Positive
    """Main memory, 10⁹ bytes/s."""


FALLBACKS: Mapping[Runtime, Precision] = MappingProxyType(
    {
        Runtime.LITERT: Precision.FP16,
        Runtime.OPENVINO: Precision.FP16,
        Runtime.ONNXRUNTIME: Precision.FP32,
        Runtime.COREML: Precision.FP16,
        Runtime.EXECUTORCH: Precision.FP32,
        Runtime.TENSORRT: Precision.FP16,
    }
)
"""Runtime → the float precision that a device with it falls back to; ONNX Runtime has few fp16 kernels on CPUs."""


class AllowedRuntime(_Record):
    """A runtime that the device can run: versions (PEP 440), and precisions, best first."""

    name: Runtime
    version: VersionRange
    precisions: tuple[Precision, ...] = Field(min_length=1)
    reason: str
    """Why it stands where it stands in the order."""
    form: Literal["file", "micro"] = "file"
    """`micro`: a C array with int8 inputs and outputs, for LiteRT for Microcontrollers."""
    python: VersionRange | None = None
    """Interpreters that the runtime exists for; None where any does, or none is needed."""

    @property
    def choices(self) -> tuple[Precision, ...]:
        """Precisions that may run here, best first: those listed, and a float one behind them if none is."""
        if self.form == "micro" or {Precision.FP32, Precision.FP16} & set(self.precisions):
            return self.precisions
        return (*self.precisions, FALLBACKS[self.name])

    @model_validator(mode="after")
    def _micro_is_litert_int8(self) -> AllowedRuntime:
        if self.form == "micro" and (self.name is not Runtime.LITERT or self.precisions != (Precision.INT8,)):
            raise ValueError(f"the form micro is for litert with int8 alone, not {self.name}")
        return self


class BoardFit(_Record):
    """A published line from what a board's rails draw together to what its supply gives: an estimate."""

    slope: float = Field(ge=1, allow_inf_nan=False)
    offset_w: float = Field(ge=0, allow_inf_nan=False)

    def board_w(self, rails_w: float) -> float:
        """Watts at the supply of the bare board, from those of all rails; what hangs on it (USB, HAT) is in neither."""
        return self.slope * rails_w + self.offset_w


class PowerModel(_Record):
    """Linear model between idle and full load, in watts; the two ends are also the estimate's error bar."""

    idle_w: float = Field(gt=0)
    max_w: float = Field(gt=0)
    scope: Literal["board_input", "package"]
    sensors: tuple[Sensor, ...] = ()
    """Meters that such a device has or can be given, best first."""
    board_fit: BoardFit | None = None
    """Where a meter reads the rails alone."""

    @model_validator(mode="after")
    def _ordered(self) -> PowerModel:
        if self.idle_w >= self.max_w:
            raise ValueError(f"idle_w {self.idle_w} must be below max_w {self.max_w}")
        return self


class Thermal(_Record):
    """Where the processor begins to slow itself down."""

    throttle_c: float | None = Field(default=None, gt=0, lt=150)
    """Temperature in °C; None where the documents name none."""
    note: str = ""


class Storage(_Record):
    """The disk or flash that models lie on, in MiB."""

    total_mib: Positive | None = None
    """None where it is whatever card or disk the owner put in."""
    free_floor_mib: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What an install must leave free."""


class Defaults(_Record):
    """Settings of a runtime unless somebody says otherwise."""

    threads: int = Field(default=1, ge=1)


class Budget(_Record):
    """Limits that a variant must keep to be worth shipping; None: no limit."""

    latency_ms: Positive | None = None
    size_mib: Positive | None = None
    memory_mib: Positive | None = None
    energy_mj: Positive | None = None
    arena_kib: Positive | None = None
    """Tensor arena of LiteRT for Microcontrollers."""


class BoardMatch(_Record):
    """What a machine must show to be this device: one of the boards or processors, and what each other list says.

    An empty list asks nothing.
    """

    device_tree_models: tuple[str, ...] = ()
    """First words of /proc/device-tree/model."""
    dmi_products: tuple[str, ...] = ()
    """Prefixes of /sys/class/dmi/id/product_name."""
    cpu_models: tuple[str, ...] = ()
    """Parts of the processor's name in /proc/cpuinfo."""
    systems: tuple[str, ...] = ()
    """Prefixes of the operating system's name, any one of them."""
    accelerators: tuple[str, ...] = ()
    """Accelerators that must be seen, all of them, by the names of `detect.ACCELERATORS`."""


class Profile(_Record):
    """One kind of device."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    title: str
    sources: tuple[str, ...] = Field(min_length=1)
    """Where the figures come from: documents, not addresses."""
    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[AllowedRuntime, ...] = Field(min_length=1)
    peak: Peak | None = None
    """None: nobody worked it out, so no latency can be predicted."""
    power: PowerModel
    thermal: Thermal = Thermal()
    storage: Storage = Storage()
    defaults: Defaults = Defaults()
    budget: Budget = Budget()
    board: BoardMatch = BoardMatch()

    @field_validator("runtimes")
    @classmethod
    def _once_each(cls, value: tuple[AllowedRuntime, ...]) -> tuple[AllowedRuntime, ...]:
        if len({allowed.name for allowed in value}) < len(value):
            raise ValueError("a runtime is listed twice")
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Profile:
        listed = {allowed.name for allowed in self.runtimes}
        for accelerator in self.accelerators:
            if accelerator.supported and accelerator.runtime not in listed:
                raise ValueError(f"{accelerator.name} needs {accelerator.runtime}, which is not among the runtimes")
        if self.defaults.threads > self.cpu.cores:
            raise ValueError(f"defaults.threads {self.defaults.threads} is more than the {self.cpu.cores} cores")
        if any(allowed.form == "micro" for allowed in self.runtimes) and self.budget.arena_kib is None:
            raise ValueError("a microcontroller's profile needs budget.arena_kib")
        return self
