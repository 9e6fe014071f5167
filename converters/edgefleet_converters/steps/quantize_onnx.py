"""Step: static int8 QDQ with ONNX Runtime: weights int8 per channel, activations uint8, min-max ranges.

Signed activations would be slower than float32 on x86, and are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


class _Samples(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
    """Hands calibration samples [1, *sample shape] to the quantiser one by one."""

    def __init__(self, name: str, samples: NDArray[np.float32]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = ({name: sample} for sample in samples)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next feed, or None at the end."""
        return next(self._feeds, None)


def run(artefact: Artefact, calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """Float ONNX in, QDQ ONNX out, with the same float32 inputs and outputs."""
    path = folder / "model.onnx"
    quantize_static(
        artefact.files[0],
        path,
        _Samples(artefact.inputs[0].name, calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return artefact.model_copy(update={"files": (path,)})
