"""More steps for random graphs: products with maps around them, blocks of channels, regions, slopes, normalisations.

Apart from the others, so that a seed without them still gives the graph that it always gave.
"""

from __future__ import annotations

import numpy as np

from conformance_graphs.building import Building
from conformance_graphs.random_graphs import Step, pick


def _blocks(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    if data and b.shape(data)[1] % 4 == 0:
        return b.node("DepthToSpace", data, blocksize=2, mode=str(b.random.choice(["DCR", "CRD"])))
    if data and not any(size % 2 for size in b.shape(data)[2:]):
        return b.node("SpaceToDepth", data, blocksize=2)
    return ""


def _regions(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    if not data or b.shape(data)[0] > 1:
        return ""
    regions = b.constant(np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32))
    return b.node("RoiAlign", data, regions, b.integers(0, 0), output_height=2, output_width=2, sampling_ratio=2)


def _instances(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    shape = b.shape(data)
    if len(shape) < 3 or int(np.prod(shape[2:])) < 2:
        return ""
    return b.node("InstanceNormalization", data, b.normal(shape[1]), b.normal(shape[1]))


def _slopes(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    shape = b.shape(data)
    if not shape:
        return ""
    cut = int(b.random.integers(0, len(shape)))
    return b.node("PRelu", data, b.normal(*(size if b.random.random() < 0.6 else 1 for size in shape[cut:])))


def _biased(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    if len(b.shape(data)) < 2:
        return ""
    made = b.node("MatMul", data, b.normal(b.shape(data)[-1], 5))
    made = b.node("Add", made, b.normal(5)) if b.random.random() < 0.7 else made
    return b.node("Mul", made, b.normal(5)) if b.random.random() < 0.5 else made


def _mapped(b: Building, values: list[str]) -> str:
    """A gain and an offset that two products read, or a product and something else."""
    data = pick(b, values)
    shape = b.shape(data)
    if len(shape) < 2:
        return ""
    made = b.node("Add", b.node("Mul", data, b.normal(shape[-1])), b.normal(shape[-1]))
    values.append(b.node("MatMul", made, b.normal(shape[-1], 4)))
    return b.node("MatMul", made, b.normal(shape[-1], 4)) if b.random.random() < 0.8 else made


def _by_itself(b: Building, values: list[str]) -> str:
    """A product of a value with itself, transposed."""
    data = pick(b, values)
    rank = len(b.shape(data))
    if rank < 2:
        return ""
    return b.node("MatMul", data, b.node("Transpose", data, perm=[*range(rank - 2), rank - 1, rank - 2]))


MORE: tuple[Step, ...] = (_blocks, _blocks, _regions, _instances, _slopes, _biased, _biased, _mapped, _by_itself)
