"""Calibration and evaluation sets: samples in the source's layout, names and dtypes, and labels where there are any.

Does not shuffle, sample or normalise arrays: what they hold is what is used. Images follow the input spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.data import arrays, batches, images
from edgefleet_converters.data.labels import numbered, read_labels
from edgefleet_converters.data.loaded import Loaded
from edgefleet_converters.intake import refuse_streams
from edgefleet_converters.intake.input_spec import InputSpec
from edgefleet_converters.step import Samples

FEWEST_CALIBRATION_SAMPLES = 32
"""Below this the ranges that int8 is built on are guesses; a warning, not an error."""
NO_SPEC = InputSpec()


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Held-out samples, and their labels [N, …]; None where there are none."""

    samples: Samples
    labels: NDArray[np.generic] | None


def count(samples: Samples) -> int:
    """How many samples there are."""
    return len(next(iter(samples.values()), ()))


def load_calibration(place: str | Path, inputs: Sequence[TensorSpec], spec: InputSpec = NO_SPEC) -> Samples:
    """Samples by input name, [N, *input shape]; raises InputError or MissingExtraError."""
    return _load(place, inputs, spec, f"reading the calibration data {place}").samples


def load_evaluation(
    place: str | Path, inputs: Sequence[TensorSpec], spec: InputSpec = NO_SPEC, labels: Path | None = None
) -> Evaluation:
    """Samples with their labels, which a file of its own may give; raises InputError or MissingExtraError."""
    doing = f"reading the evaluation data {place}"
    loaded = _load(place, inputs, spec, doing)
    found = loaded.labels
    if labels is not None:
        if found is not None:
            raise InputError(doing, f"labels in the data, and in {labels}", "give them once")
        refuse_streams(labels, f"reading the labels {labels}")
        found = read_labels(labels, spec.labels)
    if found is not None and found.dtype.kind in "US" and found.ndim == 1:
        found = numbered([str(label) for label in found.astype(str)], spec.labels, doing)
    if found is not None and (found.ndim == 0 or len(found) != count(loaded.samples) or found.dtype.kind not in "iufb"):
        what = f"y is {found.dtype} {list(found.shape)}, expected integers [{count(loaded.samples)}]"
        raise InputError(doing, what, "give one label for each sample")
    return Evaluation(loaded.samples, found)


def check_classes(labels: NDArray[np.generic], output: TensorSpec, doing: str) -> NDArray[np.int64]:
    """Labels as class numbers of an output [1, classes]; raises InputError. Truth values number two classes."""
    classes = output.shape[-1]
    kinds = "iub" if classes == 2 else "iu"
    if labels.dtype.kind not in kinds or labels.ndim != 1:
        found = f"y is {labels.dtype} {list(labels.shape)}, expected integers [{len(labels)}]"
        if is_one_hot(labels, classes):
            raise InputError(doing, f"{found}: it is one-hot", "store class numbers: y.argmax(axis=1)")
        raise InputError(doing, found, "store one class number for each sample, as an integer")
    if labels.min() < 0 or labels.max() >= classes:
        found = f"y has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        raise InputError(doing, found, "number the classes as the model's output does")
    return labels.astype(np.int64)


def is_one_hot(labels: NDArray[np.generic], classes: int) -> bool:
    """Whether labels are rows [N, classes] with a single 1 among zeros."""
    if labels.ndim != 2 or labels.shape[1] != classes or labels.dtype.kind not in "iufb":
        return False
    ones = labels == 1
    return bool(((labels == 0) | ones).all() and (ones.sum(axis=1) == 1).all())


_Loader = Callable[[str, Sequence[TensorSpec], InputSpec, str], Loaded]
LOADERS: Mapping[str, _Loader] = MappingProxyType(
    {
        "arrays": arrays.load,
        "images": images.load,
        "batches": batches.load,
    }
)
_ARRAYS = (".npz", ".npy")


def kind_of(place: str | Path) -> str:
    """Which loader reads a place: by its suffix, by what a folder holds, or `module:function`."""
    path = Path(place)
    if path.is_dir():
        held = {item.suffix.lower() for item in path.iterdir()}
        return "arrays" if held & set(_ARRAYS) and not held & set(images.SUFFIXES) else "images"
    if path.suffix.lower() == ".csv":
        return "images"
    return "batches" if ":" in str(place) and not path.exists() else "arrays"


def _load(place: str | Path, inputs: Sequence[TensorSpec], spec: InputSpec, doing: str) -> Loaded:
    refuse_streams(Path(place), doing)
    return LOADERS[kind_of(place)](str(place), inputs, spec, doing)
