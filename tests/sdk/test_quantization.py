"""Real numbers to the integers of a file's inputs, and its outputs back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgefleet.package.manifest import Quantization, TensorSpec
from edgefleet.package.quantization import dequantized, quantized


def test_the_nearest_level_within_the_types_ends() -> None:
    array = np.array([0.0, 0.24, 0.26, -64.0, 1e9, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(quantized(array, "int8", 0.5, 3), [3, 3, 4, -125, 127, -128, 3])
    np.testing.assert_array_equal(quantized(array[:3], "uint8", 0.5, 3), [3, 3, 4])
    assert quantized(array, "int16", 0.5, 0).dtype == np.int16


@given(st.lists(st.integers(-128, 127), min_size=1), st.floats(1e-6, 1e3), st.integers(-128, 127))
def test_every_level_comes_back_as_itself(levels: list[int], scale: float, zero_point: int) -> None:
    stored = np.array(levels, np.int8)
    real = dequantized(stored, scale, zero_point)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(quantized(real, "int8", scale, zero_point), stored)


def test_the_spec_keeps_it_and_older_specs_have_none() -> None:
    border = Quantization(dtype="int8", scale=0.25, zero_point=-3)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4), quantization=border)
    assert TensorSpec.model_validate_json(spec.model_dump_json()) == spec
    assert TensorSpec.model_validate({"name": "x", "dtype": "float32", "shape": (1, 4)}).quantization is None
    with pytest.raises(ValidationError, match="greater than 0"):
        Quantization(dtype="int8", scale=0.0, zero_point=0)
