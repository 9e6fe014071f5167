"""Inputs replayed from an .npz file, round and round. Labels, where there are any, give accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet_agent.sources import Array, Sample


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample]:
    """`open_replay` by the settings' section and the variant's settings layer."""
    return open_replay(Path(source["path"]), spec["inputs"])


def open_replay(path: Path, inputs: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    """Samples of the model's shapes for ever, labelled where the file has labels; raises InputError for what fits not.

    `inputs` are the variant's, as its settings layer has them; the one input of a model may also be called `x`.
    """
    doing = f"opening the replay source {path}"
    names = [spec["name"] for spec in inputs]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name if name in arrays.files or len(names) > 1 else "x"] for name in names}
            labels = arrays.get("y")
    except Exception as error:  # the header, the archive and the memory each raise what they like
        wanted = "x" if len(names) == 1 else ", ".join(names)
        raise InputError(
            doing, f"it is not an .npz file with {wanted} ({error})", "write one with numpy.savez"
        ) from error
    for spec in inputs:
        _check_input(stored[spec["name"]], spec, doing)
    count = len(stored[names[0]])
    if any(len(array) != count for array in stored.values()):
        lengths = ", ".join(f"{name} {len(array)}" for name, array in stored.items())
        raise InputError(doing, f"unequal numbers of samples: {lengths}", "store as many for each input")
    if labels is not None and labels.shape != (count,):
        raise InputError(doing, f"y has the shape {list(labels.shape)}", f"give {count} labels, or none")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise InputError(doing, f"y is {labels.dtype}", "give class numbers")
    shapes = {spec["name"]: tuple(spec["shape"]) for spec in inputs}
    return _endless(stored, labels, shapes)


def _check_input(array: Array, spec: Mapping[str, Any], doing: str) -> None:
    shape = tuple(spec["shape"])
    # With the batch axis of 1 or without it.
    if str(array.dtype) == spec["dtype"] and array.size and shape in (array.shape[1:], (1, *array.shape[1:])):
        return
    inner = ", ".join(map(str, shape[1:] if shape[:1] == (1,) else shape))
    found = f"{spec['name']} is {array.dtype} {list(array.shape)}, the model wants {spec['dtype']} [N, {inner}]"
    raise InputError(doing, found, "give inputs in the source model's layout")


def _endless(
    stored: Mapping[str, Array], labels: NDArray[np.integer] | None, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Sample]:
    while True:
        for place in range(len(next(iter(stored.values())))):
            sample = {name: array[place].reshape(shapes[name]) for name, array in stored.items()}
            yield Sample(sample, None if labels is None else int(labels[place]))
