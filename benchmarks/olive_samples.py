"""The calibration samples of `olive_ratio.py` as Olive takes them: a script of the user's own, named in its config.

Runs in Olive's environment, and sees nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from olive.data.registry import Registry


class Samples:
    """Arrays by input name, [N, *shape without the batch]; an item is a feed and a label that nobody reads."""

    def __init__(self, path: str) -> None:
        with np.load(path) as stored:
            self._arrays = dict(stored)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, place: int) -> tuple[dict[str, NDArray[Any]], int]:
        return {name: array[place] for name, array in self._arrays.items()}, 0


@Registry.register_dataset()  # type: ignore[untyped-decorator] # Olive ships no types
def saved_samples(path: str, **_unused: object) -> Samples:
    """Samples from an .npz."""
    return Samples(path)


def feed(item: tuple[Mapping[str, Any], Any]) -> dict[str, NDArray[Any]]:
    """A batch of the data loader as NNCF wants it: arrays, and no label."""
    return {name: tensor.numpy() for name, tensor in item[0].items()}
