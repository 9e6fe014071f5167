"""A variant that takes pictures, and a broker of the house, for the tests of sources and sinks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgefleet.mqtt import BrokerAddress, Connection, Identity
from edgefleet_agent.sources import Sample
from patience import PATIENCE_S
from sdk.mqtt_made import mosquitto

WIDTH, HEIGHT = 6, 4
PICTURE = {
    "input": "image", "layout": "nchw", "colour": "rgb", "width": WIDTH, "height": HEIGHT, "method": "bilinear",
    "scale": 255.0, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2),
}  # fmt: skip
SPEC: dict[str, Any] = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, HEIGHT, WIDTH]}],
    "preprocessing": [PICTURE],
    "labels": ["cat", "dog", "bird"],
}
VECTOR: dict[str, Any] = {
    "inputs": [{"name": "values", "dtype": "int16", "shape": [1, 3]}], "preprocessing": [], "labels": [],
}  # fmt: skip
PASSWORD = "open sesame"  # noqa: S105 - of a broker that lives for one test


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A picture in RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write it whole, as a careful writer does."""
    temporary = path.with_name(f".{path.name}")
    Image.fromarray(picture).save(temporary, "PNG")
    temporary.rename(path)


def expected(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The input that a picture of the right size is."""
    scaled = (picture / 255.0 - np.array(PICTURE["mean"])) / np.array(PICTURE["std"])
    found: NDArray[np.float32] = scaled.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    return found


def take(source: Iterator[Sample | None], count: int, turn: Callable[[], object] = lambda: None) -> list[Sample]:
    """So many samples; `turn` is called between the looks."""
    found: list[Sample] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} samples came"
        turn()
        sample = next(source)
        if sample is None:
            time.sleep(0.005)
        else:
            found.append(sample)
    return found


@contextmanager
def house_broker(folder: Path, *, password: bool = False) -> Iterator[dict[str, Any]]:
    """Run mosquitto; the section of the settings that reaches it."""
    lines: Sequence[str] = ["allow_anonymous true"]
    if password:
        subprocess.run(["mosquitto_passwd", "-b", "-c", folder / "passwords", "pi", PASSWORD], check=True)
        (folder / "passwords").chmod(0o644)
        lines = ["allow_anonymous false", f"password_file {folder / 'passwords'}"]
    with mosquitto(folder, *lines) as address:
        yield {"host": address.host, "port": address.port, "user": None, "password_file": None}


@contextmanager
def client(broker: dict[str, Any], topic: str | None = None) -> Iterator[tuple[Connection, list[bytes]]]:
    """Somebody in the house, and what they heard of `topic`."""
    heard: list[bytes] = []
    connection = Connection(
        BrokerAddress(broker["host"], broker["port"]), Identity("house", "house"), [(topic, 0)] if topic else [],
        on_message=lambda _topic, payload, _retained: heard.append(payload), on_connected=lambda: None,
    )  # fmt: skip
    connection.connect_now()
    yield connection, heard
    connection.close()


class Frames:
    """What stands behind the fake cameras: frames that come one after the other, then none."""

    def __init__(self, count: int, width: int, height: int) -> None:
        self.frames = [pixels(number, width, height) for number in range(count)]
        self.left = iter(self.frames)
        self.asked: list[Any] = []
        self.closed = 0


class VideoCapture:
    """OpenCV's: BGR, and False when there is nothing."""

    frames: ClassVar[Frames]

    def __init__(self, device: int | str) -> None:
        self._device = device
        self.frames.asked.append(device)

    def isOpened(self) -> bool:  # noqa: N802
        return self._device != 9

    def set(self, name: int, value: int) -> None:
        self.frames.asked.append((name, value))

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        frame = next(self.frames.left, None)
        return frame is not None, None if frame is None else frame[..., ::-1]

    def release(self) -> None:
        self.frames.closed += 1


class Picamera2:
    """Picamera2's: RGB in what libcamera calls BGR888."""

    frames: ClassVar[Frames]

    def __init__(self, number: int) -> None:
        if number:
            raise IndexError("list index out of range")

    def create_video_configuration(self, main: dict[str, Any]) -> dict[str, Any]:
        return main

    def configure(self, main: dict[str, Any]) -> None:
        self.frames.asked.append(main)

    def start(self) -> None:
        self.frames.asked.append("start")

    def capture_array(self, name: str) -> NDArray[np.uint8]:
        frame = next(self.frames.left, None)
        if frame is None:
            raise RuntimeError(f"{name}: the camera was pulled out")
        return frame

    def close(self) -> None:
        self.frames.closed += 1
