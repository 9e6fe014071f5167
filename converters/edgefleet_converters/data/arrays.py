"""Data from .npz and .npy files, or a folder of them: one array for each input; `y` in an .npz holds the labels.

Does not convert anything: layout and dtype must be the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.conversion.samples import load_samples
from edgefleet_converters.data.loaded import Loaded
from edgefleet_converters.intake.input_spec import InputSpec

LABELS = "y"


def load(place: str, inputs: Sequence[TensorSpec], spec: InputSpec, doing: str) -> Loaded:  # noqa: ARG001 - a loader
    """Samples, and an .npz file's `y`; raises InputError."""
    path = Path(place)
    samples = load_samples(path, inputs, doing)
    if path.suffix.lower() != ".npz" or any(item.name == LABELS for item in inputs):
        return Loaded(samples, None)
    with np.load(path, allow_pickle=False) as stored:
        return Loaded(samples, stored[LABELS] if LABELS in stored.files else None)
