"""Emitter methods that multiply matrices, float32 only."""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter.core import Core
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, NotLowerableError


class Matrices(Core):
    """Batched products, and the product with constant weights."""

    def batch_matmul(self, left: Tensor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """[..., M, K] x [..., K, N], or [..., N, K] `transposed`: both of rank 2 or more, batch axes broadcast."""
        terms, columns = (-1, -2) if transposed else (-2, -1)
        if left.shape[-1] != right.shape[terms]:
            raise NotLowerableError(f"a product of {left.shape} and {right.shape}")
        shape = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[columns])
        options = options_of("BatchMatMul", adjX=False, adjY=transposed)
        return self.call("BATCH_MATMUL", [left, right], shape, left.dtype, options)

    def fully_connected(
        self, value: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = Activation.NONE
    ) -> Tensor:
        """Value [rows, K] x weight [N, K] transposed, plus bias [N]."""
        options = options_of("FullyConnected", fusedActivationFunction=FUSED[activation])
        shape = (value.shape[0], weight.shape[0])
        return self.call("FULLY_CONNECTED", [value, weight, bias], shape, value.dtype, options)
