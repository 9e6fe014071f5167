"""What every message is made of: JSON on the wire, version 1, checked by pydantic.

Unknown fields are ignored, so that a newer peer can add some; another major version is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet.errors import short_line
from edgefleet.protocol.topics import NAME_PATTERN

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
# What every JSON reader and SQLite can hold.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seq = Annotated[int, Field(ge=1, lt=2**53)]
# The Unix time, and room for one a second for the next 30,000 years.
Generation = Annotated[int, Field(ge=0, lt=2**40)]


class MessageError(ValueError):
    """A payload is not a message of this version; `reason` is one line."""


class Part(BaseModel):
    """Base of what messages are made of. NaN and infinity are refused: no store keeps them."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        allow_inf_nan=False,
        serialize_by_alias=True,
    )


class Message(Part):
    """Base of everything on the wire."""

    v: Literal[1] = 1

    def encode(self) -> bytes:
        """JSON bytes for the wire."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse a payload; raises MessageError with one line."""
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "payload"
            # A peer chooses the keys.
            raise MessageError(short_line(f"{cls.__name__}: {where}: {first['msg']}")) from error
