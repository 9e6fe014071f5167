"""A topic of the house's own MQTT broker: each message is a sample, as a picture, as JSON or as raw values.

When messages come faster than they are inferred on, the oldest are dropped. One that is no input is passed over, and
said once in a while.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from edgefleet.errors import EdgefleetError, InputError, TransportError
from edgefleet.mqtt import Connection
from edgefleet_agent import local_broker
from edgefleet_agent.sources import Array, Sample, made_of
from edgefleet_agent.sources.inputs import from_json, from_raw
from edgefleet_agent.sources.pictures import Pictures

MOST_WAITING = 8
SAY_EVERY_S = 60.0
# A broker that is away for longer is said.
AWAY_S = 30.0

log = logging.getLogger("edgefleet.agent")


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample | None]:
    """Messages of `topic` in the format `payload`; raises InputError for a variant that takes no such inputs, and,
    while it is read, TransportError for a broker that stays away.
    """
    doing = f"reading the topic {source['topic']}"
    read = READERS[source["payload"]](spec, doing)
    waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
    connection = local_broker.connect(
        source["broker"], [(source["topic"], 0)], lambda _topic, payload, _retained: waiting.append(payload)
    )
    return _samples(connection, waiting, read, doing)


def _samples(
    connection: Connection, waiting: deque[bytes], read: Callable[[bytes], dict[str, Array]], doing: str
) -> Iterator[Sample | None]:
    said_at, heard_at = -SAY_EVERY_S, time.monotonic()
    try:
        while True:
            connection.poll(0.0)
            if connection.connected:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > AWAY_S:
                remedy = "check that it runs, and the name and password it is given"
                raise TransportError(doing, connection.last_failure or "the broker does not answer", remedy)
            if not waiting:
                yield None
                continue
            try:
                sample = made_of(partial(read, waiting.popleft()))
            except EdgefleetError as error:
                if time.monotonic() - said_at >= SAY_EVERY_S:
                    said_at = time.monotonic()
                    log.warning("%s: a message is passed over: %s; %s", doing, error.found, error.remedy)
                continue
            yield sample
    finally:
        connection.close()


def _json_reader(spec: Mapping[str, Any], doing: str) -> Callable[[bytes], dict[str, Array]]:
    def read(content: bytes) -> dict[str, Array]:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(doing, f"not JSON ({error})", "send nested lists, or an object of them") from error
        return from_json(found, spec["inputs"], doing)

    return read


READERS: dict[str, Callable[[Mapping[str, Any], str], Callable[[bytes], dict[str, Array]]]] = {
    "json": _json_reader,
    "picture": lambda spec, doing: Pictures(spec, doing).of_file,
    "raw": lambda spec, doing: lambda content: from_raw(content, spec["inputs"], doing),
}
