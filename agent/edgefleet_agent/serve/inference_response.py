"""The answer to an inference request: JSON, and the raw tensors behind it where they are wanted so. Pure.

Sources: Open Inference Protocol 2, "Inference Response JSON Object"; the binary tensor data extension.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

import pydantic_core

from edgefleet_agent.inference_types import FailureKind, InferFailure, InferResult, RawTensor
from edgefleet_agent.serve.answers import Answer, Form, RefusedError
from edgefleet_agent.serve.datatypes import DATATYPES, FLOATS, all_finite, unpacked
from edgefleet_agent.serve.inference_request import Asked

STATUSES = {
    FailureKind.REFUSED: HTTPStatus.BAD_REQUEST,
    FailureKind.FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    FailureKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

_TIME = b'"inference_s":0.0'


def respond(result: InferResult | InferFailure, asked: Asked, model_name: str, version: str | None) -> Answer:
    """The answer; `version` is the digest that was asked for, if any. Raises RefusedError."""
    if isinstance(result, InferFailure):
        raise RefusedError(STATUSES[result.kind], result.reason)
    if version not in (None, result.digest):
        # The variant was switched between the question and the answer.
        raise RefusedError(HTTPStatus.NOT_FOUND, f"version {version} is not loaded any more, {result.digest} is")
    given = {tensor.name: tensor for tensor in result.tensors}
    try:
        tensors = [given[name] for name in asked.binary]
    except KeyError:
        reason = "the model became another one meanwhile; ask again"
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason) from None
    raw = [tensor.data for tensor in tensors if asked.binary[tensor.name]]
    form = None
    if len(raw) == len(tensors):
        described = tuple([(tensor.name, tensor.dtype, tensor.shape, len(tensor.data)) for tensor in tensors])
        pattern = _raw_text(model_name, result.digest, asked.request_id, described)
        text = pattern % result.inference_s
        if asked.text is not None:
            form = Form(asked.text, asked.request, pattern, described, result.digest)
    else:
        outputs = [_output(tensor, raw=asked.binary[tensor.name]) for tensor in tensors]
        text = _text(model_name, result.digest, asked.request_id, result.inference_s, outputs)
    return Answer(HTTPStatus.OK, (text, *raw), json_bytes=len(text) if raw else None, form=form)


def _text(
    model_name: str, digest: str, request_id: str | None, inference_s: float, outputs: list[dict[str, object]]
) -> bytes:
    content: dict[str, object] = {
        "model_name": model_name,
        "model_version": digest,
        "parameters": {"digest": digest, "inference_s": inference_s},
        "outputs": outputs,
    }
    return pydantic_core.to_json(content if request_id is None else {"id": request_id, **content})


@lru_cache(maxsize=16)
def _raw_text(
    model_name: str, digest: str, request_id: str | None, described: tuple[tuple[str, str, tuple[int, ...], int], ...]
) -> bytes:
    """The JSON of an answer whose values all follow raw, with %.9f where the time belongs: the same each time."""
    outputs: list[dict[str, object]] = [
        {"name": name, "datatype": DATATYPES[dtype].name, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, dtype, shape, size in described
    ]
    before, after = _text(model_name, digest, request_id, 0.0, outputs).replace(b"%", b"%%").split(_TIME, 1)
    return before + b'"inference_s":%.9f' + after


def _output(tensor: RawTensor, *, raw: bool) -> dict[str, object]:
    datatype = DATATYPES[tensor.dtype]
    described: dict[str, object] = {"name": tensor.name, "datatype": datatype.name, "shape": tensor.shape}
    if raw:
        return {**described, "parameters": {"binary_data_size": len(tensor.data)}}
    values = unpacked(tensor.data, datatype)
    if datatype.code in FLOATS and not all_finite(values):
        reason = f"output {tensor.name!r} holds NaN or infinity, which JSON has no word for: ask for it as binary data"
        raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
    return {**described, "data": values}
