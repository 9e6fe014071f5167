"""Emitter methods that reduce axes or scan along one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.emitter.core import Core
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.kernels import working_dtype

_TYPES = {"int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64}


class Reduction(Core):
    """Sums, extremes, their positions, running sums, and softmax."""

    def reduce(self, operator: str, value: Tensor, axes: Sequence[int], *, keepdims: bool) -> Tensor:
        """Any reducing operator over some axes; no axes means that nothing is reduced."""
        reduced = {int(axis) % max(value.rank, 1) for axis in axes}
        if not reduced or not value.rank:
            return value
        kept = [1 if axis in reduced else size for axis, size in enumerate(value.shape)]
        shape = kept if keepdims else [size for axis, size in enumerate(value.shape) if axis not in reduced]
        working = working_dtype(operator, value.dtype)
        inputs = [self.cast(value, working), self.integers(sorted(reduced), "axes")]
        made = self.call(operator, inputs, shape, working, options_of("Reducer", keepDims=keepdims))
        return self.cast(made, value.dtype)

    def reduce_sum(self, value: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """Sum over axes."""
        return self.reduce("SUM", value, axes, keepdims=keepdims)

    def reduce_mean(self, value: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """Mean over axes; an integer mean truncates."""
        return self.reduce("MEAN", value, axes, keepdims=keepdims)

    def reduce_max(self, value: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """Largest over axes; of bools, whether any holds."""
        return self.reduce("REDUCE_ANY" if value.dtype == "bool" else "REDUCE_MAX", value, axes, keepdims=keepdims)

    def reduce_min(self, value: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """Smallest over axes; of bools, whether all hold."""
        return self.reduce("REDUCE_ALL" if value.dtype == "bool" else "REDUCE_MIN", value, axes, keepdims=keepdims)

    def reduce_prod(self, value: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """Product over axes."""
        return self.reduce("REDUCE_PROD", value, axes, keepdims=keepdims)

    def arg_max(self, value: Tensor, axis: int, dtype: str = "int64") -> Tensor:
        """Position of the first largest element along an axis, which goes away."""
        return self._arg("ARG_MAX", "ArgMax", value, axis, dtype)

    def arg_min(self, value: Tensor, axis: int, dtype: str = "int64") -> Tensor:
        """Position of the first smallest element along an axis, which goes away."""
        return self._arg("ARG_MIN", "ArgMin", value, axis, dtype)

    def _arg(self, operator: str, table: str, value: Tensor, axis: int, dtype: str) -> Tensor:
        along = axis % value.rank
        shape = (*value.shape[:along], *value.shape[along + 1 :])
        position = self.constant(np.array(along, np.int32), role="axis")
        options = options_of(table, outputType=_TYPES[dtype])
        cast = self.cast(value, working_dtype(operator, value.dtype))
        return self.call(operator, [cast, position], shape, dtype, options)

    def cumsum(self, value: Tensor, axis: int, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
        """Running sum along an axis."""
        working = working_dtype("CUMSUM", value.dtype)
        position = self.constant(np.array(axis % value.rank, np.int32), role="axis")
        options = options_of("Cumsum", exclusive=exclusive, reverse=reverse)
        made = self.call("CUMSUM", [self.cast(value, working), position], value.shape, working, options)
        return self.cast(made, value.dtype)

    def top_k(self, value: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest along the last axis, largest first, and their int32 positions."""
        working = working_dtype("TOPK_V2", value.dtype)
        shape = (*value.shape[:-1], k)
        inputs = [self.cast(value, working), self.constant(np.array(k, np.int32), role="k")]
        found, positions = self.calls("TOPK_V2", inputs, [(shape, working), (shape, "int32")], options_of("TopKV2"))
        return self.cast(found, value.dtype), positions

    def softmax(self, value: Tensor) -> Tensor:
        """Softmax over the last axis, float32."""
        return self.call("SOFTMAX", [value], value.shape, value.dtype, options_of("Softmax", beta=1.0))

    def log_softmax(self, value: Tensor) -> Tensor:
        """Logarithm of softmax over the last axis, float32."""
        return self.call("LOG_SOFTMAX", [value], value.shape, value.dtype, options_of("LogSoftmax"))
