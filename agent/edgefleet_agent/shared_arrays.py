"""Numpy views of the tensors in shared memory: a request's inputs are read in place, outputs are copied there.

Where they lie comes with a request only when it is not as before, and goes with an answer only then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgefleet_agent.inference_types import FREE
from edgefleet_agent.tensors import Place, Region, lay_out
from edgefleet_agent.variant import Array, Arrays


class SharedArrays:
    """The arrays of one worker's requests, one request after the other."""

    def __init__(self, region: Region, spec: Mapping[str, Any]) -> None:
        """`spec`: the variant's settings layer."""
        self._region = region
        self._inputs_wanted = {tensor["name"]: tensor for tensor in spec["inputs"]}
        self._outputs_known = [tensor["name"] for tensor in spec["outputs"]]
        self._inputs: dict[str, Array] = {}
        self._refusal: str | None = None
        self._end = 0
        self._outputs_wanted: Sequence[str] = ()
        self._outputs: list[tuple[str, Array]] = []

    def inputs(self, message: Mapping[str, Any]) -> dict[str, Array]:
        """The inputs of a request; raises ValueError for a request that does not fit the model."""
        if "inputs" in message:
            self._refusal = self._take(message["inputs"], message["outputs"])
        if self._refusal is not None:
            raise ValueError(self._refusal)
        return self._inputs

    def _take(self, places: Sequence[Place], outputs: Sequence[str] | None) -> str | None:
        """Remember another layout; returns why it does not fit, if it does not."""
        self._outputs = []
        names = [place[0] for place in places]
        if sorted(names) != sorted(self._inputs_wanted):
            return f"the inputs are {', '.join(names) or 'none'}; the model wants {', '.join(self._inputs_wanted)}"
        self._outputs_wanted = self._outputs_known if outputs is None else outputs
        unknown = [name for name in self._outputs_wanted if name not in self._outputs_known]
        if unknown:
            return f"there is no output {unknown[0]!r}; the model has {', '.join(self._outputs_known)}"
        for name, dtype, shape, _, size_bytes in places:
            tensor = self._inputs_wanted[name]
            if dtype != tensor["dtype"] or not _fits(shape, tensor["shape"]):
                wanted = f"the model wants {tensor['dtype']} {list(tensor['shape'])}"
                return f"the input {name!r} is {dtype} {list(shape)}; {wanted}"
            if size_bytes != np.dtype(dtype).itemsize * math.prod(shape):
                return f"the input {name!r} has {size_bytes} bytes, which {dtype} {list(shape)} has not"
        self._end = max(offset + size_bytes for *_, offset, size_bytes in places)
        self._region.reserve(self._end)
        self._inputs = {place[0]: self._array(place) for place in places}
        return None

    def put(self, outputs: Arrays) -> list[Place] | None:
        """Copy what the request wants of the outputs; returns where it lies when that is not as before.

        Raises ValueError for more than the memory may hold, OSError when the kernel refuses.
        """
        places = self._lay_out(outputs)
        for name, target in self._outputs:
            np.copyto(target, outputs[name])
        return places

    def _lay_out(self, outputs: Arrays) -> list[Place] | None:
        """Make room for the outputs where they are not like the last ones; returns where it is then."""
        for name, target in self._outputs:
            output = outputs[name]
            if output.shape != target.shape or output.dtype != target.dtype:
                break
        else:
            if self._outputs:
                return None
        wanted = [(name, outputs[name]) for name in self._outputs_wanted]
        places, end = lay_out(((name, str(a.dtype), a.shape, a.nbytes) for name, a in wanted), self._end)
        self._region.reserve(end)
        self._outputs = [(place[0], self._array(place)) for place in places]
        return places

    def took(self, inference_s: float) -> None:
        """Say how long the inference itself was."""
        self._region.inference_s = inference_s

    def _array(self, place: Place) -> Array:
        _, dtype, shape, offset, _ = place
        return np.ndarray(tuple(shape), dtype, buffer=self._region.view, offset=offset)


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(w in (FREE, n) for n, w in zip(shape, wanted, strict=True))
