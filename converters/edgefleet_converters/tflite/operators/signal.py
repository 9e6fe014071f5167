"""Signal processing: DFT and STFT as products with constant matrices.

Windows and filter banks of constant size are computed before run time, or lowered through their function bodies.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering

Floats = NDArray[np.float64]


def dft(node: Node, e: Emitter) -> None:
    """DFT of real or complex float32 along one axis, forward or inverse, onesided or not, of a constant length."""
    value = e.input(0)
    axis = node.integer("axis", 1) if node.opset < 20 else -2
    if node.opset >= 20 and e.has(2):
        axis = int(e.array(2, "axis").reshape(-1)[0])
    axis %= value.rank
    size, parts = value.shape[axis], value.shape[-1]
    inverse, onesided = node.integer("inverse", 0) == 1, node.integer("onesided", 0) == 1
    length = 2 * (size - 1) if inverse and onesided else size
    if e.has(1):
        length = int(e.array(1, "dft_length").reshape(-1)[0])
    weights = transform(size, parts, length, inverse=inverse, onesided=onesided)
    others = [other for other in range(value.rank - 1) if other != axis]
    order = (*others, axis, value.rank - 1)
    moved = e.transpose(value, order)
    rows = e.reshape(moved, (1, math.prod(moved.shape[:-2]), size * parts))
    product = e.batch_matmul(rows, e.constant(weights[None], "float32", role="transform"))
    output = e.output().shape
    spread = e.reshape(product, (*(value.shape[other] for other in others), output[axis], output[-1]))
    e.into(node.outputs[0], e.transpose(spread, tuple(int(at) for at in np.argsort(order))))


def transform(size: int, parts: int, length: int, *, inverse: bool = False, onesided: bool = False) -> Floats:
    """Matrix [size x parts, results x parts] of a transform of `length`: what it makes of each unit vector.

    Real numbers have one part, complex ones two; a onesided inverse makes real numbers, all others complex ones.
    """
    basis = np.eye(size * parts).reshape(size * parts, size, parts)
    signal = basis[..., 0] if parts == 1 else basis[..., 0] + 1j * basis[..., 1]
    if inverse and onesided:
        return np.asarray(np.fft.irfft(signal, length))
    if onesided:
        found = np.fft.fft(signal, length)[:, : length // 2 + 1]
    else:
        found = np.fft.ifft(signal, length) if inverse else np.fft.fft(signal, length)
    return np.stack([found.real, found.imag], -1).reshape(size * parts, -1)


def stft(node: Node, e: Emitter) -> None:
    """STFT of a real or complex float32 signal [N, samples, parts], with constant step, length and any window."""
    value = e.input(0)
    if value.rank == 2:
        value = e.reshape(value, (*value.shape, 1))
    batch, samples, parts = value.shape
    step = int(e.array(1, "frame_step").reshape(-1)[0])
    length = int(e.array(3, "frame_length").reshape(-1)[0]) if e.has(3) else e.input(2).shape[0]
    count = 1 + (samples - length) // step
    if e.has(2) and e.input(2).shape != (length,):
        raise NotLowerableError(f"a window of {e.input(2).shape} for frames of {length}")
    places = (np.arange(count)[:, None] * step + np.arange(length)[None, :]).astype(np.int32)
    frames = e.gather(value, places, 1)
    if e.has(2):
        frames = e.mul(frames, e.reshape(e.cast(e.input(2), "float32"), (1, 1, length, 1)))
    weights = transform(length, parts, length, onesided=node.integer("onesided", 1) == 1)
    rows = e.reshape(frames, (1, batch * count, length * parts))
    product = e.batch_matmul(rows, e.constant(weights[None], "float32", role="transform"))
    e.into(node.outputs[0], e.reshape(product, e.output().shape))


OPERATORS: dict[str, Lowering] = {"DFT": dft, "STFT": stft}
