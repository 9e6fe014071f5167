"""How a Reshape carries a layout: which order of the result's axes leaves every element where it is in memory.

Axes are matched by the groups that a reshape merges or splits, so equal sizes of different axes are never confused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgefleet_converters.tflite.passes.layout_axes import Order, identity


def carried(shape: Sequence[int], order: Order, result: Sequence[int]) -> Order | None:
    """Layout of `result` such that reshaping the data of `shape` stored in `order` gives it; None if there is none."""
    groups = _groups(shape, result)
    if groups is None:
        return None
    sequence = [axis for axis in order if shape[axis] != 1]
    starts = {sources[0]: (sources, targets) for sources, targets in groups}
    found: list[int] = []
    position = 0
    while position < len(sequence):
        sources, targets = starts.get(sequence[position], ([], []))
        if not sources or sequence[position : position + len(sources)] != sources:
            return None
        found.extend(targets)
        position += len(sources)
    return settled(found, result)


def _groups(shape: Sequence[int], result: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The shortest runs of axes, of lengths other than 1, that hold the same elements on both sides."""
    left = [axis for axis, size in enumerate(shape) if size != 1]
    right = [axis for axis, size in enumerate(result) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        if not left or not right:
            return None
        sources, targets = [left.pop(0)], [right.pop(0)]
        here, there = shape[sources[0]], result[targets[0]]
        while here != there:
            if (here < there and not left) or (there < here and not right):
                return None
            if here < there:
                sources.append(left.pop(0))
                here *= shape[sources[-1]]
            else:
                targets.append(right.pop(0))
                there *= result[targets[-1]]
        groups.append((sources, targets))
    return groups


def settled(order: Sequence[int], shape: Sequence[int]) -> Order:
    """A whole permutation from the order of the axes that are longer than 1; those of length 1 may go anywhere."""
    rank = len(shape)
    usual = (identity(rank), (0, *range(2, rank), 1)) if rank > 2 else (identity(rank),)
    for candidate in usual:
        if [axis for axis in candidate if shape[axis] != 1] == list(order):
            return candidate
    whole = list(order)
    for axis in range(rank):
        if shape[axis] == 1:
            whole.insert(whole.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(whole)


def is_sorted(order: Sequence[int]) -> bool:
    """Whether axes are in the source's order."""
    return all(first < second for first, second in pairwise(order))
