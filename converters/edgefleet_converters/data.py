"""Calibration and evaluation sets: .npz files with `x` in the source model's layout, and `y` for labels.

Does not shuffle, sample or normalise: what is in the file is what is used.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec

FEWEST_CALIBRATION_SAMPLES = 32
"""Below this the ranges that int8 is built on are guesses; a warning, not an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Held-out samples float32 [N, 1, *sample shape], and their labels [N] as class numbers."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def load_calibration(path: Path, spec: TensorSpec) -> NDArray[np.float32]:
    """Samples float32 [N, 1, *sample shape] from a file's `x` [N, *sample shape]; raises InputError."""
    doing = f"reading the calibration data {path}"
    return _samples(_arrays(path, ("x",), doing)["x"], spec, doing)


def load_evaluation(path: Path, spec: TensorSpec, classes: int) -> Evaluation:
    """Samples and labels from a file's `x` and `y`; raises InputError."""
    doing = f"reading the evaluation data {path}"
    arrays = _arrays(path, ("x", "y"), doing)
    x, y = _samples(arrays["x"], spec, doing), arrays["y"]
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        found = f"y is {y.dtype} {list(y.shape)}, expected integers [{len(x)}]"
        raise InputError(doing, found, "store one class number for each sample")
    if y.min() < 0 or y.max() >= classes:
        found = f"y has labels from {y.min()} to {y.max()}, expected 0 to {classes - 1}"
        raise InputError(doing, found, "number the classes as the model's output does")
    return Evaluation(x, y.astype(np.int64))


def _arrays(path: Path, names: tuple[str, ...], doing: str) -> dict[str, NDArray[np.generic]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(doing, "a single array, not an archive", "save it with numpy.savez(path, x=…)")
        with archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                found = f"no array {missing[0]!r} (there are: {', '.join(archive.files) or 'none'})"
                raise InputError(doing, found, f"save it with numpy.savez(path, {missing[0]}=…)")
            return {name: archive[name] for name in names}
    except OSError as error:
        raise InputError(doing, f"{error.strerror or error}", "check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            doing, f"not a readable .npz archive ({error})", "save it with numpy.savez(path, x=…)"
        ) from error


def _samples(x: NDArray[np.generic], spec: TensorSpec, doing: str) -> NDArray[np.float32]:
    """The samples with the model's batch axis of 1 put in, after checking dtype, shape and values."""
    sample = spec.shape[1:]
    expected = f"float32 [N, {', '.join(map(str, sample))}]"
    if x.dtype != np.float32 or x.shape[1:] != sample or x.ndim != len(spec.shape):
        found = f"x is {x.dtype} {list(x.shape)}, expected {expected}"
        raise InputError(doing, found, "convert it to the model's input shape and dtype")
    if len(x) == 0:
        raise InputError(doing, "x has no samples", "store at least one")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x.reshape(len(x), -1))).any(axis=1).sum())
        raise InputError(doing, f"NaN or infinite values in {bad} of {len(x)} samples", "remove those samples")
    return np.ascontiguousarray(x, np.float32)[:, np.newaxis]
