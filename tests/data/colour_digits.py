"""Digits in colour: the demo's 8x8 digits as 32x32 RGB images, each in two colours of its own.

Pure numpy, so that whoever trains, converts or classifies sees the same images; it trains nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet_demo import digits

MODEL = Path(__file__).parent / "colour_digits.onnx"
"""The trained classifier: "image" float32 [1, 3, 32, 32], (level - 127.5) / 127.5, to "scores" [1, 10], softmax."""
MEAN = STD = 127.5
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDE = 32
# Ink and paper are at least this far apart in brightness, in levels, or nobody could read them.
_CONTRAST = 80

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def training() -> tuple[Images, Labels]:
    """1,257 images uint8 [n, 32, 32, 3] and their labels."""
    found = digits.load()
    return coloured(found.train_x, seed=1), found.train_y


def held_out() -> tuple[Images, Labels]:
    """540 others."""
    found = digits.load()
    return coloured(found.heldout_x, seed=2), found.heldout_y


def coloured(ink: NDArray[np.float32], seed: int) -> Images:
    """Ink [n, 1, 8, 8] in 0..1 between two colours drawn for each image."""
    draw = np.random.default_rng(seed)
    paper = draw.integers(0, 256, (len(ink), 3)).astype(np.float32)
    colour = draw.integers(0, 256, (len(ink), 3)).astype(np.float32)
    close = np.abs(paper.mean(axis=1) - colour.mean(axis=1)) < _CONTRAST
    colour[close] = np.where(paper[close].mean(axis=1, keepdims=True) < 128, 255 - paper[close] / 4, paper[close] / 4)
    share = _enlarged(ink[:, 0])[..., np.newaxis]
    mixed = paper[:, np.newaxis, np.newaxis] * (1 - share) + colour[:, np.newaxis, np.newaxis] * share
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def normalised(images: Images) -> NDArray[np.float32]:
    """Images as the model takes them: float32 [n, 3, 32, 32]."""
    return ((images.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)


def _enlarged(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, 8, 8] to [n, 32, 32], linear between the centres of the pixels."""
    place = (np.arange(_SIDE) + 0.5) * small.shape[1] / _SIDE - 0.5
    whole = np.clip(np.floor(place).astype(int), 0, small.shape[1] - 2)
    share = np.clip(place - whole, 0, 1).astype(np.float32)
    rows = small[:, whole] * (1 - share)[:, None] + small[:, whole + 1] * share[:, None]
    found: NDArray[np.float32] = rows[:, :, whole] * (1 - share) + rows[:, :, whole + 1] * share
    return found
