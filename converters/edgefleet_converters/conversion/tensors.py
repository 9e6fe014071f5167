"""Inputs and outputs as they cross to child processes, and arrays between the source's layout and the file's.

Does not read or write models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet_converters.tflite import LoweredTensor

Array = NDArray[np.generic]


class TensorLayout(BaseModel):
    """One input or output: source name, dtype and shape, and the permutation to the file's layout.

    `bounded`: it has as many rows as its data ask for, `shape[0]` at most.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None
    bounded: bool = False

    def stored(self, array: Array) -> Array:
        """An array of the source's layout, as the file has it."""
        return np.ascontiguousarray(array if self.permutation is None else array.transpose(self.permutation))

    def restored(self, array: Array) -> Array:
        """An array of the file's layout, as the source has it."""
        return array if self.permutation is None else array.transpose(np.argsort(self.permutation))


def layouts(tensors: Sequence[LoweredTensor]) -> tuple[TensorLayout, ...]:
    """The same descriptions, ready to cross."""
    return tuple(
        TensorLayout(
            name=item.name, dtype=item.dtype, shape=item.shape, permutation=item.permutation, bounded=item.bounded
        )
        for item in tensors
    )


def save_feeds(path: Path, inputs: Sequence[TensorLayout], samples: Mapping[str, Array]) -> None:
    """Write [N, *shape] for each input; by position, because a name may be no name for a file."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{str(at): samples[spec.name] for at, spec in enumerate(inputs)})


def load_feeds(path: Path, inputs: Sequence[TensorLayout]) -> list[dict[str, Array]]:
    """The samples that `save_feeds` wrote, one dictionary by input name each."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {spec.name: archive[str(at)] for at, spec in enumerate(inputs)}
    total = len(next(iter(arrays.values()), ()))
    return [{name: np.asarray(array[at]) for name, array in arrays.items()} for at in range(total)] if arrays else [{}]
