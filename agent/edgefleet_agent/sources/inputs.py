"""Arrays from outside as a variant's inputs: each by its name, of its type, with the batch axis or without.

It converts no type and no layout: what does not fit is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError

Array = NDArray[np.generic]


def fitted(arrays: Mapping[str, Array], inputs: Sequence[Mapping[str, Any]], doing: str) -> dict[str, Array]:
    """One sample of the shapes that `inputs`, of the settings layer, say; raises InputError.

    The one input of a model may also be called `x`.
    """
    found: dict[str, Array] = {}
    for spec in inputs:
        name = spec["name"]
        array = arrays.get(name, arrays.get("x") if len(inputs) == 1 else None)
        if array is None:
            raise InputError(doing, f"there is no {name!r}", f"give {', '.join(one['name'] for one in inputs)}")
        shape = tuple(spec["shape"])
        if array.dtype.name != spec["dtype"] or array.shape not in (shape, shape[1:] if shape[:1] == (1,) else shape):
            sizes = f"{array.dtype} {list(array.shape)}, the model wants {spec['dtype']} {list(shape)}"
            raise InputError(doing, f"{name} is {sizes}", "give inputs in the source model's layout")
        found[name] = array.reshape(shape)
    return found


def from_raw(content: bytes, inputs: Sequence[Mapping[str, Any]], doing: str) -> dict[str, Array]:
    """The one input's values, row by row, little-endian; raises InputError."""
    spec = inputs[0]
    dtype, shape = np.dtype(spec["dtype"]).newbyteorder("<"), tuple(spec["shape"])
    if len(inputs) != 1 or min(shape, default=1) < 1:
        found = f"the model has {len(inputs)} inputs, {spec['name']} {list(shape)} is the first"
        raise InputError(doing, found, "send JSON, which says more")
    wanted_bytes = dtype.itemsize * math.prod(shape)
    if len(content) != wanted_bytes:
        raise InputError(doing, f"{len(content)} bytes", f"give the {wanted_bytes} bytes of {spec['name']!r}")
    array: Array = np.frombuffer(content, dtype).astype(np.dtype(spec["dtype"])).reshape(shape)
    return {spec["name"]: array}


def from_json(content: Any, inputs: Sequence[Mapping[str, Any]], doing: str) -> dict[str, Array]:
    """{input name: nested lists}, or for a single input the lists alone; raises InputError."""
    lists = content if isinstance(content, dict) else {"x": content}
    types = {spec["name"]: spec["dtype"] for spec in inputs}
    try:
        arrays = {name: np.asarray(value, types.get(name, inputs[0]["dtype"])) for name, value in lists.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(doing, f"not numbers in lists ({error})", "give nested lists of equal lengths") from error
    return fitted(arrays, inputs, doing)
