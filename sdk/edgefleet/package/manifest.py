"""The package's data models: OCI descriptors and manifests, and what a variant says about itself.

Field names in camelCase are the OCI image-spec's and ModelPack's own; ours live under `dev.edgefleet.*`.
Sources: opencontainers/image-spec 1.1 (manifest, index, descriptor); CNCF ModelPack (config.md, spec.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgefleet.package.digest import Digest
from edgefleet_device_profiles.profile import Precision, Runtime, VersionRange

INDEX_MEDIA_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
MODEL_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.cncf.model.config.v1+json"
FILEPATH_ANNOTATION = "org.cncf.model.filepath"
VERSION_ANNOTATION = "org.opencontainers.image.version"
TITLE_ANNOTATION = "org.opencontainers.image.title"
REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
RELEASE_ANNOTATION = "dev.edgefleet.release"
VARIANT_ANNOTATION = "dev.edgefleet.variant"
RUNTIME_ANNOTATION = "dev.edgefleet.runtime"
RUNTIME_VERSION_ANNOTATION = "dev.edgefleet.runtime-version"
PRECISION_ANNOTATION = "dev.edgefleet.precision"
BYTES_ANNOTATION = "dev.edgefleet.bytes"
MAX_COUNT_DIGITS = 15
"""Of a number in an annotation: what every JSON reader and SQLite can hold."""


class Layer(StrEnum):
    """Media type of each kind of layer in a variant's manifest."""

    MODEL = "application/vnd.cncf.model.weight.v1.raw"
    """A file that the runtime opens."""
    SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
    """Preprocessing and labels, as JSON."""
    GOLDEN = "application/vnd.edgefleet.golden.v1+npz"
    """Golden inputs and outputs for the self-test."""
    BLOCKS = "application/vnd.edgefleet.blocks.v1"
    """Raw sha256 digests of the 60 KiB blocks of every other layer, in manifest order."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


DType = Literal[
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"
]
"""Element type of a tensor, by numpy's name."""


class Quantization(_Record):
    """How a float tensor stands in a file that takes or gives integers: `real = (stored - zero_point) * scale`."""

    dtype: Literal["int8", "uint8", "int16"]
    """Type of the file's own tensor."""
    scale: float = Field(gt=0)
    zero_point: int


class TensorSpec(_Record):
    """One input or output of a variant, described in the *source* model's layout and type.

    `permutation` maps source axes to the file's (`file = source.transpose(permutation)`); None means the same.
    Whoever runs the file converts by `quantization` on the way in and out; None means that the file has `dtype` too.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None
    quantization: Quantization | None = None


class Preprocessing(_Record):
    """How the pixels of an image (0 to 255) become one input: `(pixel / scale - mean) / std`, channel by channel.

    `mean` and `std` have one number for each channel, or one for all of them.
    """

    input: str
    layout: Literal["nchw", "nhwc"]
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    method: Literal["nearest", "bilinear", "bicubic", "area"] = "bilinear"
    """How an image of another size than `width` x `height` is brought to it."""
    scale: float = Field(default=1.0, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Golden(_Record):
    """What the self-test compares: arrays `input:<name>` and `output:<name>` of the golden layer.

    They hold N samples in the source layout; a device passes when max |Δ| ≤ the output's tolerance on each of them.
    """

    samples: int = Field(ge=1)
    tolerances: dict[str, float] = Field(min_length=1)
    """Output name → largest absolute difference; 0 asks for equal numbers."""


class Mark(StrEnum):
    """What a person should know before this variant runs somewhere."""

    UNPROVEN = "unproven"
    """The measured loss is allowed, but the upper end of its 95 % interval is not."""
    UNSCORED = "unscored"
    """Its runtime does not run on the packaging host, so nobody has measured this file."""
    OFF_XNNPACK = "off-XNNPACK"
    """Made because it was asked for, although LiteRT's fast kernels do not take it."""


class Score(_Record):
    """Accuracy of the file as shipped, in its own runtime, on held-out data; `reference` is the fp32 source's.

    Without labels the metric is `agreement` (classifiers) or `sqnr` (anything else), and the reference is perfect.
    Nothing here may differ from one run to the next: the same inputs give the same package digest.
    """

    metric: str = Field(min_length=1)
    higher_is_better: bool = True
    value: float
    reference: float
    drop_upper: float | None = None
    """Upper end of the 95 % interval of the loss against the source, paired over the samples."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of samples whose largest output is the source's; None where the outputs are not classes."""
    sqnr_db: float | None = None
    """Signal to quantisation noise of the worst slice of any output; None where it is exact."""
    samples: int = Field(ge=1)
    runtime_version: str
    max_abs_difference: float = Field(ge=0)


class VariantSpec(_Record):
    """Everything a device must know to decide on, load and check a variant. Stored as the settings layer."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    runtime: Runtime
    precision: Precision
    runtime_version: VersionRange
    """Versions of the runtime that may open this file, as a PEP 440 specifier (`>=2.3`)."""
    model_file: str
    """Name of the file that the runtime is asked to open; other model files lie beside it."""
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    labels: tuple[str, ...] = ()
    preprocessing: tuple[Preprocessing, ...] = ()
    """For inputs that are images, where the packager described them."""
    golden: Golden
    score: Score | None = None
    marks: tuple[Mark, ...] = ()
    architectures: tuple[str, ...] = Field(min_length=1)
    """OCI (Go) names of the processors it is offered to: `amd64`, `arm64`, `arm`."""


@dataclass(frozen=True, slots=True)
class VariantFiles:
    """A variant ready to be packaged: its spec, the model files on disk, and the golden .npz on disk."""

    spec: VariantSpec
    model_files: tuple[Path, ...]
    golden_file: Path


class Platform(_Record):
    """OCI platform of a manifest in an index."""

    architecture: str
    os: str = "linux"


class Descriptor(_Record):
    """OCI content descriptor."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0)
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Manifest(_Record):
    """OCI image manifest of one variant."""

    schema_version: Literal[2] = Field(default=2, alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(
        default=MANIFEST_MEDIA_TYPE, alias="mediaType"
    )
    artifact_type: str = Field(default=MODEL_ARTIFACT_TYPE, alias="artifactType")
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None


class Index(_Record):
    """OCI image index: of a layout (index.json), or of one package version (one entry per variant and platform)."""

    schema_version: Literal[2] = Field(default=2, alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = Field(default=INDEX_MEDIA_TYPE, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None
