"""The body of an inference request, JSON and raw tensors behind it, checked against the model that is loaded. Pure.

Sources: Open Inference Protocol 2, "Inference Request JSON Object"; the binary tensor data extension.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet_agent.inference_types import FREE, InferRequest, ModelInfo, RawTensor, TensorInfo
from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.datatypes import DATATYPES, Datatype, packed, well_formed

HEADER_LENGTH = "inference-header-content-length"
MAX_JSON_BYTES = 4 * 1024 * 1024
"""Numbers in JSON take eight times their bytes in memory while they are read; raw tensors none."""
MAX_TENSORS = 256
MAX_KEPT_BYTES = 2048
MAX_KEPT = 16
# What would change the answer, and is not understood here, is refused; other parameters are hints.
UNSUPPORTED_PARAMETERS = ("classification", "shared_memory_region")

_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)
_Size = Annotated[int, Field(ge=0, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Parameters(_Part):
    binary_data_size: _Size | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    classification: Any = None
    shared_memory_region: Any = None


class _Input(_Part):
    name: str
    shape: Annotated[tuple[_Size, ...], Field(max_length=32)]
    datatype: str
    parameters: _Parameters = _Parameters()
    data: list[Any] | None = None


class _Output(_Part):
    name: str
    parameters: _Parameters = _Parameters()


class _Request(_Part):
    id: Annotated[str, Field(max_length=1024)] | None = None
    parameters: _Parameters = _Parameters()
    inputs: Annotated[tuple[_Input, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[_Output, ...], Field(max_length=MAX_TENSORS)] = ()


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the JSON of a request says; values that it holds itself are in `packed`, of the others the places."""

    text: bytes
    places: tuple[_Place, ...]
    packed: tuple[RawTensor, ...]
    raw_bytes: int
    outputs: tuple[str, ...] | None
    request_id: str | None
    binary: dict[str, bool]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the values of an input lie in what follows the JSON."""

    tensor: TensorInfo
    shape: tuple[int, ...]
    begin: int
    end: int
    datatype: Datatype


# A tuple, since one is made for each request: a frozen dataclass takes four times as long.
class Asked(NamedTuple):
    """A request as the worker takes it, and how its client wants the answer."""

    request: InferRequest
    request_id: str | None
    binary: dict[str, bool]
    """Output → whether it is wanted raw; in the order of the answer."""
    text: bytes | None = None
    """The JSON where all values lie behind it; the same object each time where it is kept."""


def parse(body: memoryview, header_length: str | None, model: ModelInfo) -> Asked:
    """Read and check a request; raises RefusedError (400, 413)."""
    json_bytes = len(body) if header_length is None else _number(header_length)
    if json_bytes > len(body):
        raise _bad(f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes")
    if json_bytes == 0 and len(body):
        return _one_raw_tensor(body, model)
    if json_bytes > MAX_JSON_BYTES:
        reason = f"JSON of more than {MAX_JSON_BYTES} bytes; send tensors of this size as binary data"
        raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
    text, raw = bytes(body[:json_bytes]), body[json_bytes:]
    layout = _kept_layout(text, model) if json_bytes <= MAX_KEPT_BYTES else _layout(text, model)
    if len(raw) != layout.raw_bytes:
        raise _bad(f"{len(raw)} bytes follow the JSON, the inputs' binary_data_size are {layout.raw_bytes} together")
    tensors = (*layout.packed, *[_raw(place, raw) for place in layout.places])
    standing = None if layout.packed else layout.text
    return Asked(InferRequest(tensors, layout.outputs), layout.request_id, layout.binary, standing)


# The same in one request after the other of a client.
@lru_cache(maxsize=16)
def _number(header_length: str) -> int:
    if _LENGTH.fullmatch(header_length) is None:
        raise _bad("Inference-Header-Content-Length is not one number")
    return int(header_length)


def _bad(reason: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, reason)


def _read(text: bytes) -> _Request:
    try:
        return _Request.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _bad(f"{where}: {first['msg']}" if where else first["msg"]) from error


def _layout(text: bytes, model: ModelInfo) -> _Layout:
    asked = _read(text)
    known = {tensor.name: tensor for tensor in model.inputs}
    packed_, places, offset = [], [], 0
    taken: set[str] = set()
    for given in asked.inputs:
        if given.name in taken or given.name not in known:
            what = "is given twice" if given.name in taken else f"is none of the model's: {', '.join(known)}"
            raise _bad(f"input {given.name!r} {what}")
        taken.add(given.name)
        wanted = known[given.name]
        datatype = _checked(given, wanted)
        if given.parameters.binary_data_size is None:
            packed_.append(RawTensor(given.name, wanted.dtype, given.shape, _from_json(given, datatype)))
        else:
            size = _raw_bytes(given, given.parameters.binary_data_size, datatype)
            places.append(_Place(wanted, given.shape, offset, offset + size, datatype))
            offset += size
    if missing := known.keys() - taken:
        raise _bad(f"input {min(missing)!r} is missing")
    binary = _wanted(asked, model)
    outputs = tuple(binary) if asked.outputs else None
    return _Layout(text, tuple(places), tuple(packed_), offset, outputs, asked.id, binary)


_kept: dict[bytes, tuple[ModelInfo, _Layout]] = {}


def _kept_layout(text: bytes, model: ModelInfo) -> _Layout:
    """A client that infers again and again says the same each time, but for the raw values."""
    found = _kept.get(text)
    # The same object: to compare, or hash, a model's tensors takes as long as all else here.
    if found is not None and found[0] is model:
        return found[1]
    layout = _layout(text, model)
    if len(_kept) >= MAX_KEPT:
        _kept.clear()
    _kept[text] = model, layout
    return layout


def _raw(place: _Place, raw: memoryview) -> RawTensor:
    data = raw[place.begin : place.end]
    if not well_formed(data, place.datatype):
        raise _bad(f"input {place.tensor.name!r} ({place.datatype.name}) holds a byte that is neither 0 nor 1")
    return RawTensor(place.tensor.name, place.tensor.dtype, place.shape, data)


def _checked(given: _Input, wanted: TensorInfo) -> Datatype:
    """The datatype of an input that has the model's, and its shape."""
    datatype = DATATYPES[wanted.dtype]
    if given.datatype != datatype.name:
        raise _bad(f"input {given.name!r} is {given.datatype}, the model takes {datatype.name}")
    _check_parameters(f"input {given.name!r}", given.parameters)
    # No runtime is trusted with a tensor of no values.
    fits = len(given.shape) == len(wanted.shape) and all(
        has >= 1 if wants == FREE else has == wants for has, wants in zip(given.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise _bad(f"input {given.name!r} has shape {list(given.shape)}, the model takes {list(wanted.shape)}")
    return datatype


def _check_parameters(what: str, parameters: _Parameters) -> None:
    for name in UNSUPPORTED_PARAMETERS:
        if getattr(parameters, name) is not None:
            raise _bad(f"{what}: the parameter {name} is not supported")


def _from_json(given: _Input, datatype: Datatype) -> bytes:
    if given.data is None:
        raise _bad(f"input {given.name!r} has neither data nor the parameter binary_data_size")
    values: list[Any] = given.data
    # Nested as the shape is, or flat: "the data must be given in row-major order" either way.
    if len(given.shape) > 1 and values and isinstance(values[0], list):
        values = _flat(given, values)
    if len(values) != math.prod(given.shape):
        raise _bad(f"input {given.name!r} has {len(values)} values, its shape {list(given.shape)} has another number")
    try:
        return packed(values, datatype)
    except ValueError as error:
        raise _bad(f"input {given.name!r} ({datatype.name}) holds {error}") from error


def _flat(given: _Input, nested: list[Any]) -> list[Any]:
    for dimension in given.shape[1:]:
        if not all(isinstance(row, list) and len(row) == dimension for row in nested):
            raise _bad(f"input {given.name!r}: its data is not nested as its shape {list(given.shape)} says")
        nested = list(chain.from_iterable(nested))
    return nested


def _raw_bytes(given: _Input, size: int, datatype: Datatype) -> int:
    if given.data is not None:
        raise _bad(f"input {given.name!r} has data and the parameter binary_data_size")
    expected = math.prod(given.shape) * datatype.size_bytes
    if size != expected:
        raise _bad(f"input {given.name!r}: binary_data_size is {size}, {list(given.shape)} is {expected} bytes")
    return size


def _wanted(asked: _Request, model: ModelInfo) -> dict[str, bool]:
    """Which outputs, and which of them raw."""
    known = [tensor.name for tensor in model.outputs]
    default = asked.parameters.binary_data_output
    wanted: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name in wanted or output.name not in known:
            what = "is asked for twice" if output.name in wanted else f"is none of the model's: {', '.join(known)}"
            raise _bad(f"output {output.name!r} {what}")
        _check_parameters(f"output {output.name!r}", output.parameters)
        raw = output.parameters.binary_data
        wanted[output.name] = default if raw is None else raw
    return wanted or dict.fromkeys(known, default)


def _one_raw_tensor(body: memoryview, model: ModelInfo) -> Asked:
    """The whole body is the one input of a model; its outputs are wanted raw too ("raw binary request")."""
    if len(model.inputs) != 1 or model.inputs[0].shape.count(FREE) > 1:
        raise _bad("a raw binary request needs a model of one input, of which at most one dimension is open")
    wanted = model.inputs[0]
    datatype = DATATYPES[wanted.dtype]
    fixed = math.prod(size for size in wanted.shape if size != FREE) * datatype.size_bytes
    is_whole = len(body) % fixed == 0 if FREE in wanted.shape else len(body) == fixed
    if not is_whole or not well_formed(body, datatype):
        raise _bad(f"input {wanted.name!r} is {datatype.name} {list(wanted.shape)}, a body of {len(body)} bytes is not")
    shape = tuple(len(body) // fixed if size == FREE else size for size in wanted.shape)
    tensor = RawTensor(wanted.name, wanted.dtype, shape, body)
    return Asked(InferRequest((tensor,)), None, dict.fromkeys((output.name for output in model.outputs), True))
