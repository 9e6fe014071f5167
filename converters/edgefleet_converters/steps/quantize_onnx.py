"""Step: static int8 QDQ with ONNX Runtime: weights int8 per channel, activations uint8, min-max ranges.

Signed activations would be slower than float32 on x86, and are not used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context, in_file_layout


class _Samples(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
    """Hands calibration feeds to the quantiser one by one."""

    def __init__(self, feeds: list[dict[str, NDArray[np.generic]]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.generic]]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """The next feed, or None at the end."""
        return next(self._feeds, None)


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, QDQ ONNX out, with the same float32 inputs and outputs."""
    path = context.folder / "model.onnx"
    quantize_static(
        artefact.files[0],
        path,
        _Samples(in_file_layout(artefact, context.samples)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return artefact.model_copy(update={"files": (path,)})
