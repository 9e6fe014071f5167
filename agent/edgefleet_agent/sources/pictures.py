"""Pictures as the one input of a variant, by what its package says of normalisation and size.

The same steps as where the package was calibrated and scored: Pillow resizes, proportions are not kept. A camera's
own note of rotation is not applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError, MissingExtraError

Array = NDArray[np.generic]
Pixels = NDArray[np.uint8]
MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}
METHODS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}


class Pictures:
    """Turns pictures into samples of one variant."""

    def __init__(self, spec: Mapping[str, Any], doing: str) -> None:
        """`spec` is the settings layer; raises InputError for a variant that says nothing of pictures."""
        described = {item["input"]: item for item in spec["preprocessing"]}
        names = [tensor["name"] for tensor in spec["inputs"]]
        if len(names) != 1 or names[0] not in described:
            found = "the variant does not say how a picture becomes its input"
            raise InputError(doing, found, "package the model with an input spec, for a single image input")
        self._doing = doing
        self._how = described[names[0]]
        self._tensor = spec["inputs"][0]
        self._size = (self._how["width"], self._how["height"])
        self._mode = MODES[self._how["colour"]]

    def of_file(self, content: bytes) -> dict[str, Array]:
        """A sample of a PNG, JPEG or whatever Pillow reads; raises InputError."""
        image = _pillow(self._doing)
        try:
            with image.open(BytesIO(content)) as opened:
                picture = opened.convert(self._mode)
        except Exception as error:  # each of Pillow's formats raises what it likes for a damaged file
            raise InputError(self._doing, f"not a readable image ({error})", "remove or replace it") from error
        return self._sample(picture)

    def of_pixels(self, pixels: Pixels) -> dict[str, Array]:
        """A sample of pixels [height, width, 3] in RGB; Pillow is needed unless they have the input's own size."""
        if self._mode == "RGB" and pixels.shape[1::-1] == self._size:
            return self._normalised(pixels)
        return self._sample(_pillow(self._doing).fromarray(np.ascontiguousarray(pixels)).convert(self._mode))

    def _sample(self, picture: Any) -> dict[str, Array]:
        if picture.size != self._size:
            method = getattr(_pillow(self._doing).Resampling, METHODS[self._how["method"]])
            picture = picture.resize(self._size, method)
        pixels = np.asarray(picture, np.uint8)
        return self._normalised(pixels[..., np.newaxis] if pixels.ndim == 2 else pixels)

    def _normalised(self, pixels: Pixels) -> dict[str, Array]:
        """Of pixels [height, width, RGB or grey]."""
        how, dtype = self._how, np.dtype(self._tensor["dtype"])
        ordered = pixels[..., ::-1] if how["colour"] == "bgr" else pixels
        values = (ordered / how["scale"] - np.array(how["mean"])) / np.array(how["std"])
        if how["layout"] == "nchw":
            values = values.transpose(2, 0, 1)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        array: Array = np.ascontiguousarray(values, dtype).reshape(self._tensor["shape"])
        return {self._tensor["name"]: array}


def _pillow(doing: str) -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 - said in one line where it is missing
    except ModuleNotFoundError as error:
        raise MissingExtraError(doing, error.name or "PIL", "data") from error
    return Image
