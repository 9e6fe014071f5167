"""The kernel table holds for the installed LiteRT: each row is asked again, at a rank of up to 4."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.kernel_cases import MAKERS
from conformance.kernel_probe import SHAPES, verdict
from edgefleet_converters.tflite.kernels import KERNELS


@pytest.mark.parametrize("operator", sorted(KERNELS.keys() & MAKERS.keys()))
def test_a_row_of_the_table(operator: str) -> None:
    with np.errstate(all="ignore"):
        for dtype, rank in KERNELS[operator].items():
            case = None if dtype == "float16" else MAKERS[operator](dtype, SHAPES[min(rank, 4)])
            if case is not None:
                assert verdict(operator, case) == "ok", dtype
