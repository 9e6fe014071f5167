"""The demo's data: scikit-learn's bundled 8x8 digits, cut by the split that is committed beside this file.

It does not split, augment or download anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgefleet.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Digits:
    """Images float32 [n, 1, 8, 8] in 0..1 (ink / 16), labels int64 [n] in 0..9; no image is in both parts."""

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    heldout_x: NDArray[np.float32]
    heldout_y: NDArray[np.int64]


def load() -> Digits:
    """All 1,797 images: 1,257 to train and calibrate on, 540 held out; needs scikit-learn (extra demo)."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  the model's path is wanted without it
    except ModuleNotFoundError as error:
        raise MissingExtraError("load the digits", "scikit-learn", "demo") from error
    bundle = load_digits()
    images = (bundle.images / 16.0).astype(np.float32)[:, np.newaxis]
    labels = bundle.target.astype(np.int64)
    # Read, not computed: a library that one day shuffles differently must not move an image across.
    split = json.loads((DATA / "split.json").read_text(encoding="utf-8"))
    train, heldout = split["train"], split["heldout"]
    return Digits(images[train], labels[train], images[heldout], labels[heldout])


def model_path() -> Path:
    """The trained model: ONNX, "image" float32 [1, 1, 8, 8] in 0..1 to "logits" float32 [1, 10]."""
    return DATA / "digits.onnx"
