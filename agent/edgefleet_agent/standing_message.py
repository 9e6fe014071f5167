"""A lent client as one datagram: its number and its standing request as JSON, beside its socket. Pure."""

from __future__ import annotations

import json
from dataclasses import fields

from edgefleet_agent.inference_types import Standing

# Any byte as one character, and back.
_BYTES = "latin-1"
_AS_TEXT = ("question", "head", "text")


def packed(number: int, standing: Standing) -> bytes:
    """What is sent."""
    said = {one.name: getattr(standing, one.name) for one in fields(standing)}
    said |= {name: said[name].decode(_BYTES) for name in _AS_TEXT}
    return json.dumps({"client": number, **said}).encode()


def unpacked(content: bytes) -> tuple[int, Standing]:
    """The number, and the standing request."""
    said = json.loads(content)
    number = said.pop("client")
    said |= {name: said[name].encode(_BYTES) for name in _AS_TEXT}
    for name in ("inputs", "outputs"):
        said[name] = tuple((*one[:2], tuple(one[2]), one[3]) for one in said[name])
    return number, Standing(**said)
