"""Sections of the agent's settings for where inputs come from and where results go.

What they mean to a driver is `sources`' and `sinks`' business; those get them as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

_LEVEL = r"(?:\+|[^+#/\x00]*)"
# MQTT 3.1.1, section 4.7.1: + is a whole level, # is the last one.
_FILTER = rf"^(?:#|{_LEVEL}(?:/{_LEVEL})*(?:/#)?)$"


class Section(BaseModel):
    """A section of the settings: it is not changed, and what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def below(self, folder: Path) -> Self:
        """With its relative paths, and those of the sections in it, relative to `folder`."""
        changed: dict[str, object] = {}
        for name, value in self:
            if isinstance(value, Path):
                changed[name] = folder / value
            elif isinstance(value, Section):
                changed[name] = value.below(folder)
        return self.model_copy(update=changed)


class LocalBroker(Section):
    """A broker of the house, without TLS; never the fleet's."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=1883, ge=1, le=65535)
    user: str | None = None
    password_file: Path | None = None
    """A text file with nothing but the password."""


class ReplaySource(Section):
    """Inputs replayed from a file, round and round."""

    kind: Literal["replay"]
    path: Path
    """.npz with `x` float32 [N, *sample] in the source model's layout and, for accuracy, `y` integer labels [N]."""
    rate_per_s: float = Field(default=20.0, gt=0, le=10_000)


class CameraSource(Section):
    """The newest frame of a camera."""

    kind: Literal["camera"]
    driver: Literal["opencv", "picamera2"] = "opencv"
    device: str = Field(default="0", min_length=1)
    """Its number, or for opencv also a device (`/dev/video2`), the address of a stream, or a video file."""
    width: int = Field(default=640, ge=16, le=8192)
    height: int = Field(default=480, ge=16, le=8192)
    """What is asked of the camera; the variant's own size is made of it."""
    rate_per_s: float = Field(default=10.0, gt=0, le=1000)


class FolderSource(Section):
    """A folder that is watched: pictures, .npy and .npz files."""

    kind: Literal["folder"]
    path: Path
    after: Literal["keep", "delete"] = "keep"
    """keep: files that come are taken, nothing is touched; delete: what is there is taken too, and removed."""
    rate_per_s: float = Field(default=20.0, gt=0, le=10_000)


class MqttSource(Section):
    """A topic of the house's own broker."""

    kind: Literal["mqtt"]
    topic: str = Field(min_length=1, max_length=1024, pattern=_FILTER)
    """It may hold + and #."""
    payload: Literal["picture", "json", "raw"] = "picture"
    """An image file; nested lists, or an object of them by input; the input's values, little-endian."""
    broker: LocalBroker = LocalBroker()
    rate_per_s: float = Field(default=20.0, gt=0, le=10_000)


Source = Annotated[ReplaySource | CameraSource | FolderSource | MqttSource, Field(discriminator="kind")]


class JsonlSink(Section):
    """Results as lines of JSON in a file."""

    kind: Literal["jsonl"]
    path: Path
    most_mb: int = Field(default=10, ge=1, le=100_000)
    """Of the file; the one before it is kept as NAME.1 (1 MB is 10^6 bytes)."""


class MqttSink(Section):
    """Results as JSON on a topic of the house's own broker."""

    kind: Literal["mqtt"]
    topic: str = Field(min_length=1, max_length=1024, pattern=r"^[^+#\x00]+$")
    broker: LocalBroker = LocalBroker()


Sink = Annotated[JsonlSink | MqttSink, Field(discriminator="kind")]
