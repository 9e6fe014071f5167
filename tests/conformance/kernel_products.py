"""Kernel cases of matrix products, convolutions and what else sees neighbours.

Windows have one element: which types a kernel takes does not depend on more.
"""

from __future__ import annotations

import numpy as np

from conformance.kernel_forms import Case, Make, ints, sample


def _matmul(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) < 2 or dtype == "bool":
        return None
    x, y = sample(shape, dtype, small=True), np.swapaxes(sample(shape, dtype, small=True), -1, -2).copy()
    return Case((x, y), (np.matmul(x, y),), "BatchMatMul", (("adjX", False), ("adjY", False)))


def _neighbours(dtype: str, shape: tuple[int, ...]) -> Case | None:
    x = sample(shape, dtype, small=True)
    fields = (("radius", 0), ("bias", 1.5), ("alpha", 0.3), ("beta", 0.75))
    y = (x / (1.5 + 0.3 * x * x) ** 0.75).astype(dtype)
    return Case((x,), (y,), "LocalResponseNormalization", fields) if len(shape) == 4 else None


def _pointwise(rank: int, options: str, order: tuple[int, ...] | None = None) -> Make:
    """A convolution with a window of one element; `order` is that of a transposed one's weights."""
    steps = (*((f"stride{axis}", 1) for axis in "DHW"[5 - rank :]), ("padding", 1))

    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        if len(shape) != rank:
            return None
        x, w = sample(shape, dtype, small=True), sample((shape[-1], 3), dtype, small=True)
        y, window = x @ w, (1,) * (rank - 2)
        if order is None:
            kernel, bias = w.reshape(*window, *w.shape), np.zeros(3, dtype)
            dilations = tuple((f"dilation{axis}Factor", 1) for axis in "DHW")
            return Case((x, kernel, bias), (y,), options, (*steps, *dilations), (1, 2))
        kernel = np.ascontiguousarray(w.reshape(*window, *w.shape).transpose(order))
        return Case((ints(*y.shape), kernel, x), (y,), options, steps, (0, 1))

    return make


def _resized(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) != 4:
        return None
    x = sample(shape, dtype)
    return Case((x, ints(6, 4)), (x.repeat(2, 1).repeat(2, 2),), "ResizeNearestNeighbor", (), (1,))


def _interpolated(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) != 4:
        return None
    x = sample(shape, dtype)
    y = np.stack([x[:, 0], x[:, :2].mean(1), x[:, 1], x[:, 1:].mean(1), x[:, 2]], 1).astype(dtype)
    return Case((x, ints(5, 2)), (y,), "ResizeBilinear", (("alignCorners", True),), (1,))


PRODUCTS: dict[str, Make] = {
    "BATCH_MATMUL": _matmul,
    "CONV_3D": _pointwise(5, "Conv3D"),
    "CONV_3D_TRANSPOSE": _pointwise(5, "Conv3D", (0, 1, 2, 4, 3)),
    "LOCAL_RESPONSE_NORMALIZATION": _neighbours,
    "RESIZE_BILINEAR": _interpolated,
    "RESIZE_NEAREST_NEIGHBOR": _resized,
    "TRANSPOSE_CONV": _pointwise(4, "TransposeConv", (3, 0, 1, 2)),
}
