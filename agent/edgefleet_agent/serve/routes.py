"""Which path is answered by what: the protocol's table of endpoints, and their answers.

It holds no socket; an inference is answered later, when the backend is done with it.
Source: Open Inference Protocol 2, "HTTP/REST".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

import edgefleet
from edgefleet_agent.inference_types import Backend, InferFailure, InferResult, ModelInfo, TensorInfo
from edgefleet_agent.serve import inference_request, inference_response
from edgefleet_agent.serve.answers import Answer, RefusedError, json_answer
from edgefleet_agent.serve.datatypes import DATATYPES
from edgefleet_agent.serve.head import Head

EXTENSIONS = ["binary_tensor_data"]

Reply = Callable[[Answer], None]

log = logging.getLogger("edgefleet.serve")


@dataclass(frozen=True, slots=True)
class Served:
    """Whatever `backend` has loaded, under the one name that clients know it by."""

    backend: Backend
    name: str


# A tuple, since one is made for each request: a frozen dataclass takes four times as long.
class Asking(NamedTuple):
    """One request: its head and body, and the model and version that its path names."""

    served: Served
    head: Head
    body: memoryview
    model: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint; `later` answers when it can, `at_once` now."""

    method: str
    at_once: Callable[[Asking], Answer] | None = None
    later: Callable[[Asking, Reply], None] | None = None


def answer(served: Served, head: Head, body: memoryview, reply: Reply) -> None:
    """Call `reply` once, now or later; raises nothing."""
    try:
        route, model, version = _find(head.path)
        _check(route, head)
        asking = Asking(served, head, body, model, version)
        if route.at_once is not None:
            reply(route.at_once(asking))
        elif route.later is not None:
            route.later(asking, reply)
    except Exception as error:  # noqa: BLE001 - nothing that this machine can be asked may end its agent
        reply(_refusal(error))


def _refusal(error: Exception) -> Answer:
    if isinstance(error, RefusedError):
        return error.answer()
    log.error("a request could not be answered", exc_info=error)
    return RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the agent; its log says more").answer()


def _check(route: Route, head: Head) -> None:
    if head.method != route.method and (head.method, route.method) != ("HEAD", "GET"):
        allow = "GET, HEAD" if route.method == "GET" else route.method
        reason = f"{head.method} is not what {head.path} takes, {allow} is"
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, reason, allow=allow)
    if head.fields.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "bodies are taken as they are, without Content-Encoding")


@lru_cache(maxsize=64)
def _find(path: str) -> tuple[Route, str, str | None]:
    """(endpoint, the model that the path names, and the version of it, if any); raises RefusedError."""
    segments = tuple(unquote(segment) for segment in path.split("/")[1:])
    route = SERVER_ROUTES.get(segments)
    if route is not None:
        return route, "", None
    if segments[:2] == ("v2", "models") and len(segments) > 2:
        has_version = len(segments) > 4 and segments[3] == "versions"
        route = MODEL_ROUTES.get(segments[5:] if has_version else segments[3:])
        if route is not None:
            return route, segments[2], segments[4] if has_version else None
    raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path}")


def _live(_asking: Asking) -> Answer:
    return json_answer({"live": True})


def _ready(asking: Asking) -> Answer:
    ready = asking.served.backend.ready
    # The protocol's text has "live" here, its OpenAPI document "ready"; clients go by the status.
    return json_answer({"live": True, "ready": ready}, _status(ready))


def _server(_asking: Asking) -> Answer:
    return json_answer({"name": "edgefleet-agent", "version": edgefleet.__version__, "extensions": EXTENSIONS})


def _index(asking: Asking) -> Answer:
    """What there is to ask for, so that nobody needs to know its name."""
    backend = asking.served.backend
    info = backend.metadata
    state = "READY" if backend.ready else "UNAVAILABLE"
    entries = [] if info is None else [{"name": asking.served.name, "version": info.digest, "state": state}]
    return json_answer(entries)


def _model(asking: Asking) -> Answer:
    info = _loaded(asking)
    return json_answer({
        "name": asking.served.name,
        "versions": [info.digest],
        "platform": info.runtime,
        "inputs": [_described(tensor) for tensor in info.inputs],
        "outputs": [_described(tensor) for tensor in info.outputs],
    })  # fmt: skip


def _described(tensor: TensorInfo) -> dict[str, object]:
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype].name, "shape": tensor.shape}


def _model_ready(asking: Asking) -> Answer:
    _check_name(asking)
    ready = asking.served.backend.ready and _loaded(asking) is not None
    return json_answer({"name": asking.model, "ready": ready}, _status(ready))


def _infer(asking: Asking, reply: Reply) -> None:
    backend, info = asking.served.backend, _loaded(asking)
    asked = inference_request.parse(asking.body, asking.head.fields.get(inference_request.HEADER_LENGTH), info)

    def done(result: InferResult | InferFailure) -> None:
        try:
            answered = inference_response.respond(result, asked, asking.model, asking.version)
        except Exception as error:  # noqa: BLE001 - as above: whoever calls this has a worker to look after
            answered = _refusal(error)
        reply(answered)

    if not backend.infer(asked.request, done):
        reason = "too many requests wait for the model already" if backend.ready else "the model is not ready"
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason)


def _check_name(asking: Asking) -> None:
    if asking.model != asking.served.name:
        reason = f"there is no model {asking.model!r} here, only {asking.served.name!r}"
        raise RefusedError(HTTPStatus.NOT_FOUND, reason)


def _loaded(asking: Asking) -> ModelInfo:
    """What is loaded; raises RefusedError when the path names something else."""
    _check_name(asking)
    info = asking.served.backend.metadata
    if info is None:
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "no model is loaded")
    if asking.version not in (None, info.digest):
        raise RefusedError(HTTPStatus.NOT_FOUND, f"version {asking.version} is not loaded, {info.digest} is")
    return info


def _status(ready: bool) -> HTTPStatus:
    return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE


SERVER_ROUTES = {
    ("v2",): Route("GET", at_once=_server),
    ("v2", "health", "live"): Route("GET", at_once=_live),
    ("v2", "health", "ready"): Route("GET", at_once=_ready),
    ("v2", "repository", "index"): Route("POST", at_once=_index),
}
"""By the whole path."""

MODEL_ROUTES = {
    (): Route("GET", at_once=_model),
    ("ready",): Route("GET", at_once=_model_ready),
    ("infer",): Route("POST", later=_infer),
}
"""By what follows /v2/models/NAME or /v2/models/NAME/versions/VERSION."""
