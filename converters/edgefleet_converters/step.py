"""What a conversion step is given beside the artefact: samples, a folder, and how its recipe is varied.

A step is a module of `steps` with `run(artefact, context) -> Artefact`; `recipes` says which run in which order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgefleet_converters.artefact import Artefact

Samples = Mapping[str, NDArray[np.generic]]
"""Input name → [N, *input shape] in the source's layout and dtype, the same N for all inputs."""


class Ranges(StrEnum):
    """How the range of an int8 activation is found from the calibration samples."""

    MINMAX = "minmax"
    """Smallest and largest value seen."""
    MEAN = "mean"
    """The mean over the samples of each one's smallest and largest value."""
    PERCENTILE = "percentile"
    """The rarest values at both ends are cut off."""
    MSE = "mse"
    """The range with the smallest squared error."""


class Micro(BaseModel):
    """A microcontroller that a variant is made for, by its kernels (a key of `micro_arena.SCRATCH`) and its arena."""

    model_config = ConfigDict(frozen=True)

    kernels: Literal["reference", "cmsis-nn", "esp-nn"]
    arena_bytes: int


class Settings(BaseModel):
    """How a recipe is varied; the gate's ladder changes it, a profile chooses `activations` and `micro`."""

    model_config = ConfigDict(frozen=True)

    ranges: Ranges = Ranges.MINMAX
    activations: Literal["uint8", "int8"] = "uint8"
    """Type of ONNX Runtime's int8 activations: unsigned is faster on x86, signed is what ARM kernels want."""
    float_tensors: tuple[str, ...] = ()
    """Outputs of the source's layers, by their ONNX names, whose layers stay in float (mixed precision)."""
    micro: Micro | None = None
    """The microcontroller that takes the variant as C source; None for files that a system opens."""


PLAIN = Settings()


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Calibration samples (none for a recipe that needs none), an empty folder to write to, and the settings.

    `source` is what the recipe's first step was given: the settings name layers as they are there.
    """

    samples: Samples
    folder: Path
    settings: Settings = PLAIN
    source: Artefact | None = None


class Step(Protocol):
    """One module of `steps`."""

    def run(self, artefact: Artefact, context: Context) -> Artefact:
        """Make new files in the context's folder; raises an EdgefleetError, or whatever its toolchain raises."""
        ...


def in_file_layout(artefact: Artefact, samples: Samples) -> list[dict[str, NDArray[np.generic]]]:
    """One feed for each sample: input name → array in the layout of the artefact's own file."""
    count = len(next(iter(samples.values()), ()))
    return [
        {
            spec.name: np.ascontiguousarray(
                samples[spec.name][place].transpose(spec.permutation) if spec.permutation else samples[spec.name][place]
            )
            for spec in artefact.inputs
        }
        for place in range(count)
    ]
