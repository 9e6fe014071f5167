"""Sensitivity: which layers of a model cost its accuracy in int8, and which of them must stay in float together.

Runs nothing itself: a child process quantises one layer after the other and looks at the model's outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet.errors import UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact


class SensitivityJob(BaseModel):
    """An ONNX source, samples (.npz, by input name, [N, *input shape]), and how much may be tried."""

    source: Artefact
    samples: Path
    most_samples: int = 8
    most_layers: int = 64
    """With more layers than that, those at the end are tried, then those whose own output suffers most."""
    budget_s: float = 120.0
    """No further layer is tried after that."""


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class LayerNoise(_Found):
    """One layer, by its output's name in the source, and what is lost when it alone is int8."""

    tensor: str
    operator: str
    macs_share: float = Field(ge=0, le=1)
    sqnr_db: float | None
    """Of the worst slice of any output of the model; None for a layer that was not tried."""
    max_abs: float
    """Largest |value| of its output over the samples."""
    float_tensors: tuple[str, ...]
    """`Settings.float_tensors` that keep its output out of int8: its own, and those of the layers that read it."""


class Branch(_Found):
    """What a Concat joins: a tensor and its range over the samples."""

    tensor: str
    low: float
    high: float

    @property
    def peak(self) -> float:
        """Largest |value|."""
        return max(-self.low, self.high)


class Conflict(_Found):
    """A Concat at the model's end whose branches have too different ranges for one int8 scale."""

    tensor: str
    widest: Branch
    narrowest: Branch
    float_tensors: tuple[str, ...]
    """The Concat and what moves its values to the model's outputs: in float, every branch has a scale of its own."""

    @property
    def text(self) -> str:
        """One line on it."""
        ratio = self.widest.peak / self.narrowest.peak
        return (
            f"the branches of the Concat {self.tensor!r} differ {ratio:.0f} x in range"
            f" ({self.widest.tensor!r} to {self.widest.peak:.3g}, {self.narrowest.tensor!r} to"
            f" {self.narrowest.peak:.3g})"
        )


class Sensitivity(_Found):
    """All layers of a model, those that cost most first, then those that were not tried."""

    layers: tuple[LayerNoise, ...]
    conflicts: tuple[Conflict, ...] = ()
    samples: int

    @property
    def tried(self) -> int:
        """How many layers were quantised alone."""
        return sum(layer.sqnr_db is not None for layer in self.layers)

    def macs_share(self, tensors: Collection[str]) -> float:
        """Share of the model's multiply-accumulates in the layers with these outputs."""
        return min(sum(layer.macs_share for layer in self.layers if layer.tensor in tensors), 1.0)


# The budget ends before a layer, never within one; loading and the float run come on top.
_SPARE_S = 300.0


def find_sensitivity(job: SensitivityJob) -> Sensitivity:
    """Run a job in a child process; raises UnsupportedError where ONNX Runtime cannot run the source."""
    timeout_s = job.budget_s + _SPARE_S
    try:
        return child.call("edgefleet_converters.score.layer_noise:run_job", job, Sensitivity, timeout_s=timeout_s)
    except child.ChildFailedError as error:
        remedy = "keep the layers that you suspect in float yourself, or ship a float variant"
        raise UnsupportedError("finding the layers that cost the accuracy", str(error), remedy) from error
