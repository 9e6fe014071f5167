"""A client of the local API: runs the arrays of a file through the model that a device has loaded.

It asks what is loaded and never assumes it.
"""

from __future__ import annotations

import http.client
import ipaddress
import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pydantic_core

from edgefleet.errors import InputError, TransportError, short_line
from edgefleet_agent.inference_types import FREE, RawTensor
from edgefleet_agent.serve import array_files
from edgefleet_agent.serve.datatypes import DATATYPES, unpacked
from edgefleet_agent.settings import ServeSettings

TIMEOUT_S = 60.0
BY_NAME = {datatype.name: datatype for datatype in DATATYPES.values()}
REMEDY = "is the agent running, with [serve] enabled = true?"


def url_of(settings: ServeSettings) -> str:
    """Where an agent with these settings is asked from its own machine; raises InputError where they do not tell."""
    doing = "finding the agent's local API"
    if not settings.enabled:
        raise InputError(doing, "[serve] enabled is false in the settings", "set it to true, and restart the agent")
    if settings.port == 0:
        raise InputError(doing, "[serve] port is 0, any that is free", "give --url; the agent's log names the port")
    host = ipaddress.ip_address(settings.host)
    if host.is_unspecified:
        host = ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")
    return f"http://{f'[{host}]' if host.version == 6 else host}:{settings.port}"


def infer(url: str, inputs: Path) -> Iterator[dict[str, object]]:
    """Run a .npy or .npz file through the model at `url`; yields what each sample gave, fit for JSON.

    The arrays are the model's inputs by name; a model of one input takes the file's only array, or its `x`. With one
    dimension more than the input has, or as [N, ...] where the input's first is 1, an array is as many samples.
    Raises InputError, TransportError.
    """
    arrays = array_files.read(inputs)
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"asking {url}", "it is no http:// address", "name it as in http://127.0.0.1:8000")
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)) as connection:
        model = _model(connection, url)
        doing = f"matching {inputs} with the inputs of {model['name']}"
        for sample in _samples(arrays, model["inputs"], doing):
            yield _asked(connection, url, model["name"], sample)


def _model(connection: http.client.HTTPConnection, url: str) -> dict[str, Any]:
    """Metadata of the one model that is loaded."""
    loaded = _json(connection, url, "POST", "/v2/repository/index")[0]
    if not loaded:
        raise TransportError(f"asking {url}", "no model is loaded", "deploy one, or wait until it is installed")
    model: dict[str, Any] = _json(connection, url, "GET", f"/v2/models/{quote(loaded[0]['name'], safe='')}")[0]
    return model


def _samples(arrays: dict[str, RawTensor], wanted: list[dict[str, Any]], doing: str) -> Iterator[tuple[RawTensor, ...]]:
    names = [tensor["name"] for tensor in wanted]
    if len(names) == 1 and names[0] not in arrays:
        only = arrays.get("x") or (next(iter(arrays.values())) if len(arrays) == 1 else None)
        arrays = {} if only is None else {names[0]: only}
    if missing := set(names) - arrays.keys():
        raise InputError(
            doing, f"there is no array {min(missing)!r}", f"save arrays of these names: {', '.join(names)}"
        )
    counts = {_count(arrays[tensor["name"]], tensor, doing) for tensor in wanted}
    if len(counts) != 1:
        raise InputError(doing, "the arrays hold different numbers of samples", "give each the same number")
    for index in range(counts.pop()):
        yield tuple(_sample(arrays[tensor["name"]], tensor, index) for tensor in wanted)


def _count(array: RawTensor, tensor: dict[str, Any], doing: str) -> int:
    """How many samples an array holds."""
    if DATATYPES[array.dtype].name != tensor["datatype"]:
        found = f"{array.name!r} is {DATATYPES[array.dtype].name}, {tensor['name']!r} takes {tensor['datatype']}"
        raise InputError(doing, found, "convert it with numpy.astype")
    if requests := _requests(array.shape, tensor["shape"]):
        return requests[0]
    found = f"{array.name!r} has shape {list(array.shape)}, {tensor['name']!r} takes {tensor['shape']}"
    raise InputError(doing, found, "reshape it, with the samples as first dimension if there are several")


def _requests(shape: tuple[int, ...], wanted: list[int]) -> tuple[int, tuple[int, ...]] | None:
    """How many requests an array is, and the shape of each: a dimension for the batch may be there or not."""
    if _fits(shape, wanted):
        return 1, shape
    if _fits(shape[1:], wanted):
        return shape[0], shape[1:]
    if wanted[:1] == [1] and _fits(shape[1:], wanted[1:]):
        return shape[0], (1, *shape[1:])
    if wanted[:1] in ([1], [FREE]) and _fits(shape, wanted[1:]):
        return 1, (1, *shape)
    return None


def _fits(shape: tuple[int, ...], wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (has, FREE) for has, size in zip(shape, wanted, strict=True)
    )  # fmt: skip


def _sample(array: RawTensor, tensor: dict[str, Any], index: int) -> RawTensor:
    _, shape = _requests(array.shape, tensor["shape"]) or (0, ())
    size = math.prod(shape) * DATATYPES[array.dtype].size_bytes
    return RawTensor(tensor["name"], array.dtype, shape, array.data[index * size : (index + 1) * size])


def _asked(
    connection: http.client.HTTPConnection, url: str, model: str, sample: tuple[RawTensor, ...]
) -> dict[str, object]:
    content = {
        "inputs": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": DATATYPES[tensor.dtype].name,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for tensor in sample
        ],
        "parameters": {"binary_data_output": True},
    }
    text = pydantic_core.to_json(content)
    body = b"".join([text, *(tensor.data for tensor in sample)])
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    before_s = time.perf_counter()
    answer, raw = _json(connection, url, "POST", f"/v2/models/{quote(model, safe='')}/infer", body, headers)
    return {
        "model": answer["model_name"],
        "digest": answer["model_version"],
        "inference_ms": round(1000 * answer["parameters"]["inference_s"], 3),
        "round_trip_ms": round(1000 * (time.perf_counter() - before_s), 3),
        "outputs": _outputs(answer["outputs"], raw),
    }


def _outputs(described: list[dict[str, Any]], raw: memoryview) -> dict[str, object]:
    outputs: dict[str, object] = {}
    for output in described:
        size = output["parameters"]["binary_data_size"]
        values = unpacked(raw[:size], BY_NAME[output["datatype"]])
        outputs[output["name"]] = {"datatype": output["datatype"], "shape": output["shape"], "data": values}
        raw = raw[size:]
    return outputs


def _json(
    connection: http.client.HTTPConnection,
    url: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[Any, memoryview]:
    """(the JSON of an answer, the bytes behind it); raises TransportError, InputError for what was refused."""
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        found = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TransportError(f"asking {url}", found, REMEDY) from error
    try:
        length = int(response.headers.get("Inference-Header-Content-Length", len(content)))
        answer = pydantic_core.from_json(content[:length])
        reason = "" if response.status == http.client.OK else short_line(str(answer["error"]))
    except (ValueError, TypeError, KeyError) as error:
        found = f"{response.status} without the protocol's JSON"
        raise TransportError(f"asking {url}", found, "is it the local API of an agent?") from error
    if response.status == http.client.SERVICE_UNAVAILABLE:
        raise TransportError(f"asking {url}", reason, "try again in a while")
    if reason:
        raise InputError(f"asking {url}", reason, "compare with GET /v2/models/NAME")
    return answer, memoryview(content)[length:]
