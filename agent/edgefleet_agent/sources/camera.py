"""A camera: OpenCV's (V4L2 devices, streams, files) or the Raspberry Pi's own through Picamera2.

A thread opens it and waits for its frames, so that nothing else does (a stream that is away takes half a minute to say
so); between two samples all frames but the newest are dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError, MissingExtraError
from edgefleet_agent.sources import Sample, made_of
from edgefleet_agent.sources.pictures import Pictures

Pixels = NDArray[np.uint8]


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample | None]:
    """The newest frame as a sample; raises InputError for a variant that says nothing of pictures.

    While it is read: InputError for a camera that is not there, MissingExtraError, whatever a library raises.
    """
    doing = f"reading the camera {source['device']}"
    pictures = Pictures(spec, doing)
    return _samples(Newest(lambda: DRIVERS[source["driver"]](source, doing), doing), pictures)


def _samples(newest: Newest, pictures: Pictures) -> Iterator[Sample | None]:
    try:
        while True:
            pixels = newest.take()
            yield None if pixels is None else made_of(partial(pictures.of_pixels, pixels))
    finally:
        newest.close()


class Driver(Protocol):
    """A camera that was opened."""

    def read(self) -> Pixels | None:
        """Wait for a frame [height, width, 3] in RGB; None when there will be no more."""
        ...

    def close(self) -> None:
        """Give the camera back."""
        ...


class Newest:
    """The newest frame of a camera that a thread reads."""

    def __init__(self, opens: Callable[[], Driver], doing: str) -> None:
        """Start opening, and then reading."""
        self._open = opens
        self._doing = doing
        self._lock = threading.Lock()
        self._pixels: Pixels | None = None
        self._failure: Exception | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def take(self) -> Pixels | None:
        """A frame that was not taken yet; raises what the camera raised, InputError when it has ended."""
        # Read first: behind a failure comes no frame.
        failure = self._failure
        with self._lock:
            pixels, self._pixels = self._pixels, None
        if pixels is None and failure is not None:
            raise failure
        return pixels

    def close(self) -> None:
        """End the thread; the camera is given back when its last frame has come."""
        self._is_closing = True

    def _read(self) -> None:
        try:
            driver = self._open()
            try:
                self._read_all(driver)
            finally:
                driver.close()
        except Exception as error:  # noqa: BLE001 - raised again where frames are taken
            self._failure = error

    def _read_all(self, driver: Driver) -> None:
        while not self._is_closing:
            pixels = driver.read()
            if pixels is None:
                raise InputError(self._doing, "it gives no frames", "check its cable and its settings")
            with self._lock:
                self._pixels = pixels


class _OpenCv:
    """VideoCapture: an index, a device, a stream's address, a file."""

    def __init__(self, source: Mapping[str, Any], doing: str) -> None:
        try:
            import cv2  # noqa: PLC0415 - only where there is a camera
        except ModuleNotFoundError as error:
            raise MissingExtraError(doing, error.name or "cv2", "camera") from error
        device = str(source["device"])
        self._capture = cv2.VideoCapture(int(device) if device.isdecimal() else device)
        if not self._capture.isOpened():
            found = "it cannot be opened"
            raise InputError(doing, found, "check that it is there, free, and that this user is in the group video")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, source["width"])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, source["height"])

    def read(self) -> Pixels | None:
        is_read, pixels = self._capture.read()
        return pixels[..., ::-1] if is_read else None

    def close(self) -> None:
        self._capture.release()


class _Picamera2:
    """The Raspberry Pi's cameras, by number."""

    def __init__(self, source: Mapping[str, Any], doing: str) -> None:
        try:
            from picamera2 import Picamera2  # noqa: PLC0415 - only on the boards that have it
        except ModuleNotFoundError as error:
            remedy = "run: apt install python3-picamera2, in an environment that sees the system's packages"
            raise InputError(doing, f"the Python package {error.name} is not installed", remedy) from error
        try:
            self._camera = Picamera2(int(source["device"]))
            # Picamera2 manual, appendix A: what libcamera calls BGR888 is an array of [R, G, B].
            main = {"size": (source["width"], source["height"]), "format": "BGR888"}
            self._camera.configure(self._camera.create_video_configuration(main=main))
            self._camera.start()
        except (RuntimeError, IndexError, ValueError) as error:
            remedy = "check its cable, and that `rpicam-hello --list-cameras` shows it"
            raise InputError(doing, f"it cannot be opened ({error})", remedy) from error

    def read(self) -> Pixels | None:
        pixels: Pixels = self._camera.capture_array("main")
        return pixels

    def close(self) -> None:
        self._camera.close()


DRIVERS: dict[str, Callable[[Mapping[str, Any], str], Driver]] = {"opencv": _OpenCv, "picamera2": _Picamera2}
