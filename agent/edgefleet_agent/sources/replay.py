"""Inputs replayed from an .npz file, round and round. Labels, where there are any, give accuracy."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError

Sample = tuple[NDArray[np.float32], int | None]


def open_replay(path: Path, shape: tuple[int, ...]) -> Iterator[Sample]:
    """Endless (input of `shape`, label or None); raises InputError for a file that does not fit the model."""
    doing = f"opening the replay source {path}"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs = arrays["x"]
            labels = arrays.get("y")
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(doing, f"it is not an .npz file with x ({error})", "write one with numpy.savez") from error
    if inputs.dtype != np.float32 or inputs.shape[1:] != shape[1:] or not len(inputs):
        found = (
            f"x is {inputs.dtype} {list(inputs.shape)}, the model wants float32 [N, {', '.join(map(str, shape[1:]))}]"
        )
        raise InputError(doing, found, "give inputs in the source model's layout")
    if labels is not None and labels.shape != (len(inputs),):
        raise InputError(doing, f"y has the shape {list(labels.shape)}", f"give {len(inputs)} labels, or none")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise InputError(doing, f"y is {labels.dtype}", "give class numbers")
    return _endless(inputs, labels, shape)


def _endless(
    inputs: NDArray[np.float32], labels: NDArray[np.integer] | None, shape: tuple[int, ...]
) -> Iterator[Sample]:
    while True:
        for place, sample in enumerate(inputs):
            yield sample.reshape(shape), None if labels is None else int(labels[place])
