"""The report as data: what report.json holds, and what every other form of it is drawn from.

Figures that differ from run to run (latency, memory) live here and not in the package.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgefleet.package.manifest import Mark
from edgefleet_converters.choose import Fate, Objective
from edgefleet_device_profiles.profile import Precision, Runtime

FiniteFloat = float | None
"""JSON knows no infinity: None where a figure is missing or not finite."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class PackageFacts(_Record):
    """The package that was written; `digest` is that of its index."""

    name: str
    version: str
    release: int
    folder: str
    digest: str


class SourceFacts(_Record):
    """The model that was given."""

    origin: str
    kind: str
    digest: str
    size_bytes: int
    inputs: tuple[str, ...]
    """Name, type and shape of each, in words."""
    outputs: tuple[str, ...]
    parameters: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one inference."""


class DataFacts(_Record):
    """One set of samples."""

    role: Literal["calibration", "evaluation"]
    origin: str
    samples: int
    digest: str


class ScoreFacts(_Record):
    """What was measured on the shipped file, in its own runtime."""

    metric: str
    higher_is_better: bool = True
    value: FiniteFloat
    reference: FiniteFloat
    """The fp32 source's."""
    drop_upper: FiniteFloat = None
    """Upper end of the 95 % interval of the loss."""
    samples: int
    runtime_version: str
    agreement: float | None = None
    sqnr_db: FiniteFloat = None
    worst_slice: str | None = None
    """Where `sqnr_db` was found, in words; None for exact outputs."""
    peak_rss_bytes: int | None = None

    @property
    def loss(self) -> float | None:
        """How far the metric is below the source's, in its own unit; negative where it is better."""
        if self.value is None or self.reference is None:
            return None
        return self.reference - self.value if self.higher_is_better else self.value - self.reference


class LatencyFacts(_Record):
    """Latency on one host; it says nothing about other devices."""

    p50_ms: float
    p90_ms: float | None = None
    note: str = ""
    """Why there is no p90, or what disturbed the measurement."""
    runs: int
    threads: int
    measured_on: str
    """The host, in words."""
    profile: str | None = None
    """The profile that the host was detected as; None where it is none."""


class AttemptFacts(_Record):
    """One rung of the ladder."""

    label: str
    why: str
    status: str
    """The gate's word."""
    reason: str
    size_bytes: int | None = None


class VariantFacts(_Record):
    """One variant; `number` is what plots and tables call it by."""

    number: int
    name: str
    runtime: Runtime
    precision: Precision
    reasons: tuple[str, ...]
    """Why the profiles want it."""
    size_bytes: int | None
    score: ScoreFacts | None
    latency: LatencyFacts | None = None
    status: str
    """The gate's word."""
    accepted: bool
    reason: str
    shipped: bool
    marks: tuple[Mark, ...] = ()
    attempts: tuple[AttemptFacts, ...] = ()
    float_layers: tuple[str, ...] = ()
    """Layers that stay in float because they cost the accuracy."""


class DecisionFacts(_Record):
    """One variant for one profile."""

    runtime: Runtime
    variant: str
    fate: Fate
    reason: str
    rank: int | None = None


class RefusedFacts(_Record):
    """A recipe that a profile asked for and that was not tried."""

    runtime: Runtime
    precision: Precision
    reason: str


class ProfileFacts(_Record):
    """What one kind of device gets."""

    id: str
    title: str
    architecture: str
    decisions: tuple[DecisionFacts, ...]
    refused: tuple[RefusedFacts, ...] = ()


class LayerFacts(_Record):
    """What quantising one layer alone does to the model's outputs."""

    tensor: str
    operator: str
    sqnr_db: FiniteFloat
    macs_share: float
    in_float: bool = False
    """Whether some variant keeps it in float."""


class SensitivityFacts(_Record):
    """Layers ranked by the damage that they do alone, the worst first."""

    layers: tuple[LayerFacts, ...]
    notes: tuple[str, ...] = ()


class LimitFacts(_Record):
    """What the gate allowed."""

    max_drop: float
    min_sqnr_db: float
    min_agreement: float


class Report(_Record):
    """A whole packaging run."""

    schema_version: Literal[1] = 1
    package: PackageFacts
    source: SourceFacts
    data: tuple[DataFacts, ...]
    objective: Objective
    limits: LimitFacts
    profiles: tuple[ProfileFacts, ...] = Field(min_length=1)
    variants: tuple[VariantFacts, ...]
    sensitivity: SensitivityFacts | None = None
    notes: tuple[str, ...] = ()
    """Warnings of the run."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Distribution → version of everything that had a part in it."""
