"""Sources: what comes in becomes the variant's input; what does not fit is passed over or refused in one line."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agent.source_lab import (
    HEIGHT,
    PASSWORD,
    PICTURE,
    SPEC,
    VECTOR,
    WIDTH,
    Frames,
    Picamera2,
    VideoCapture,
    client,
    expected,
    house_broker,
    pixels,
    save,
    take,
)
from edgefleet.errors import EdgefleetError, InputError, MissingExtraError, TransportError
from edgefleet.mqtt import Outgoing
from edgefleet_agent.source_settings import Source
from edgefleet_agent.sources import TABLE, Sample, folder, open_source, topic
from edgefleet_agent.sources.pictures import Pictures
from edgefleet_converters.data.images import normalised
from edgefleet_converters.intake.input_spec import ImageInput
from patience import PATIENCE_S
from sdk.mqtt_made import MOSQUITTO

CAMERA = {"kind": "camera", "driver": "opencv", "device": "0", "width": 64, "height": 48}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOOK_EVERY_S", 0.01)


def watched(path: Path, after: str = "keep", spec: dict[str, Any] = SPEC) -> Iterator[Sample | None]:
    return open_source({"kind": "folder", "path": str(path), "after": after}, spec)


def images(samples: list[Sample]) -> list[NDArray[np.generic]]:
    """Of samples that were made of pictures, which takes its time."""
    assert {(sample.label, sample.preprocess_s > 0.0) for sample in samples} <= {(None, True)}
    return [sample.inputs["image"] for sample in samples]


def test_every_kind_of_the_settings_has_a_module() -> None:
    sections = get_args(get_args(Source)[0])
    assert {get_args(section.model_fields["kind"].annotation)[0] for section in sections} == set(TABLE)


# Pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 255.0), ("uint8", 1.0), ("int8", 2.0)])
def test_a_picture_becomes_the_input_that_the_package_was_scored_with(
    colour: str, layout: str, dtype: str, scale: float
) -> None:
    """By the converters' own code, which this floor must not import."""
    channels = 1 if colour == "gray" else 3
    how = {**PICTURE, "colour": colour, "layout": layout, "scale": scale, "mean": (0.5,), "std": (2.0,)}
    shape = [1, channels, HEIGHT, WIDTH] if layout == "nchw" else [1, HEIGHT, WIDTH, channels]
    spec = {"inputs": [{"name": "image", "dtype": dtype, "shape": shape}], "preprocessing": [how]}
    picture = pixels(3)
    (found,) = Pictures(spec, "testing").of_pixels(picture).values()
    stored = picture if colour != "gray" else np.asarray(Image.fromarray(picture).convert("L"))[..., np.newaxis]
    image = ImageInput.model_validate({"layout": layout, "colour": colour, "scale": scale, "mean": [0.5], "std": [2.0]})
    np.testing.assert_array_equal(found[0], normalised(stored, image, np.dtype(dtype)))
    assert found.dtype == dtype
    assert found.flags.c_contiguous


def test_a_picture_of_another_size_is_resized(tmp_path: Path) -> None:
    plain = np.full((40, 60, 3), 128, np.uint8)
    save(tmp_path / "large.png", plain)
    found = Pictures(SPEC, "testing")
    by_file = found.of_file((tmp_path / "large.png").read_bytes())["image"]
    np.testing.assert_array_equal(by_file, expected(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)))
    np.testing.assert_array_equal(by_file, found.of_pixels(plain)["image"])


def test_a_variant_that_says_nothing_of_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="how a picture becomes its input"):
        Pictures(VECTOR, "testing")


# A folder ---------------------------------------------------------------------------------------------


def test_files_that_come_are_taken_in_order_and_once(tmp_path: Path) -> None:
    save(tmp_path / "old.png", pixels(0))
    source = watched(tmp_path)
    assert next(source) is None
    for number in (2, 1, 3):
        save(tmp_path / f"{number}.png", pixels(number))
    found = images(take(source, 3))
    for place, number in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(found[place], expected(pixels(number)))
    save(tmp_path / "2.png", pixels(9))
    np.testing.assert_array_equal(images(take(source, 1))[0], expected(pixels(9)))
    assert [next(source) for _ in range(20)] == [None] * 20
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_there_is_taken_and_removed_where_that_is_asked_for(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"{number}.png", pixels(number))
    source = watched(tmp_path, "delete")
    assert len(take(source, 2)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_ended_the_worker_is_not_given_to_the_next(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(1))
    take(watched(tmp_path, "delete"), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_grows_is_left_alone(tmp_path: Path) -> None:
    source = watched(tmp_path)
    next(source)
    save(tmp_path / "whole.png", pixels(1))
    content = (tmp_path / "whole.png").read_bytes()
    take(source, 1)
    with (tmp_path / "slow.png").open("wb", buffering=0) as slow:
        for byte in content:
            slow.write(bytes([byte]))
            folder_looked = [next(source) for _ in range(2)]
            assert folder_looked == [None, None]
    np.testing.assert_array_equal(images(take(source, 1))[0], expected(pixels(1)))


@pytest.mark.parametrize("name", ["bad.png", "bad.npy", "bad.npz", "folder.png", "a-list.npy"])
def test_a_file_that_is_no_input_is_passed_over_and_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = watched(tmp_path)
    next(source)
    if name == "folder.png":
        (tmp_path / name).mkdir()
    elif name == "a-list.npy":
        np.save(tmp_path / name, np.zeros(7, np.float32))
    else:
        (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
    save(tmp_path / "good.png", pixels(1))
    take(source, 1)
    assert (name in caplog.text) == (name != "folder.png")
    assert caplog.text.count("watching the folder") == len(caplog.messages)
    assert [next(source) for _ in range(20)] == [None] * 20
    assert len(caplog.messages) <= 1


def test_numpy_files_need_no_word_of_pictures(tmp_path: Path) -> None:
    source = watched(tmp_path, "delete", VECTOR)
    np.save(tmp_path / "a.npy", np.array([1, 2, 3], np.int16))
    np.savez(tmp_path / "b.npz", values=np.array([[4, 5, 6]], np.int16))
    found = [sample.inputs["values"].tolist() for sample in take(source, 2)]
    assert found == [[[1, 2, 3]], [[4, 5, 6]]]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        watched(tmp_path / "none")
    assert len(str(caught.value).splitlines()) == 1


# A topic ----------------------------------------------------------------------------------------------


def heard(broker: dict[str, Any], payload: str, spec: dict[str, Any]) -> Iterator[Sample | None]:
    return open_source({"kind": "mqtt", "topic": "home/+/in", "payload": payload, "broker": broker}, spec)


@pytest.mark.parametrize("payload", ["json", "raw", "picture"])
def test_messages_become_samples(tmp_path: Path, payload: str, need: Callable[[bool, str], None]) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")
    picture = pixels(5)
    save(tmp_path / "a.png", picture)
    contents: dict[str, tuple[dict[str, Any], bytes, Any]] = {
        "json": (VECTOR, json.dumps({"values": [[7, -8, 9]]}).encode(), [[7, -8, 9]]),
        "raw": (VECTOR, np.array([7, -8, 9], "<i2").tobytes(), [[7, -8, 9]]),
        "picture": (SPEC, (tmp_path / "a.png").read_bytes(), expected(picture).tolist()),
    }
    spec, good, wanted = contents[payload]
    with house_broker(tmp_path) as broker, client(broker) as (house, _):
        source = heard(broker, payload, spec)

        def send() -> None:
            for content in (b"\xff no input", good):
                house.publish(Outgoing("home/kitchen/in", content, 0, retained=False))
            house.poll(0.0)

        (sample,) = take(source, 1, send)
        assert (sample.label, sample.preprocess_s > 0.0) == (None, True)
        (found,) = sample.inputs.values()
        assert found.tolist() == wanted
        source.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"3", b'"abc"', b"[]", b"[1, 20]", b"[[1, 2], [3]]", b"[[1, 2, 70000]]", b"[[1, 2, 1e999]]",
        b'{"values": {"a": 1}}', b'{"values": null}', b'{"other": [1, 2, 3]}', b'[["a", "b", "c"]]',
        b"[" * 100_000, b"\xff\xfe", b'{"values": [1, 2, "\\ud800"]}',
    ],
    ids=lambda content: repr(content[:30]),
)  # fmt: skip
def test_whatever_comes_over_a_topic_is_an_input_or_refused_in_one_line(content: bytes) -> None:
    for payload in ("json", "raw"):
        with pytest.raises(InputError) as caught:
            topic.READERS[payload](VECTOR, "testing")(content)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError):
        topic.READERS["picture"](SPEC, "testing")(content)


def test_an_open_shape_takes_no_raw_values() -> None:
    spec = {"inputs": [{"name": "ids", "dtype": "int64", "shape": [1, -1]}]}
    with pytest.raises(InputError, match="JSON"):
        topic.READERS["raw"](spec, "testing")(bytes(8))


def test_the_newest_messages_are_kept(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")
    with house_broker(tmp_path) as broker, client(broker) as (house, _):
        source = heard(broker, "json", VECTOR)
        numbers = itertools.count()

        def send(count: int) -> None:
            for number in itertools.islice(numbers, count):
                house.publish(Outgoing("home/a/in", json.dumps([[number] * 3]).encode(), 0, retained=False))
            house.poll(0.0)

        take(source, 1, lambda: send(1))
        first = next(numbers)
        send(50)
        newest = next(numbers) - 1
        found = [0]
        while found[-1] != newest:
            found += [int(sample.inputs["values"][0, 0]) for sample in take(source, 1)]
        taken = [number for number in found if number > first]
        assert len(taken) < 50
        assert taken == sorted(taken)
        source.close()  # type: ignore[attr-defined]


def test_a_password_comes_from_its_file_and_a_broker_that_refuses_is_said(
    tmp_path: Path, need: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")
    (tmp_path / "good").write_text(f"{PASSWORD}\n")
    (tmp_path / "bad").write_text("wrong\n")
    with house_broker(tmp_path, password=True) as broker:
        monkeypatch.setattr(topic, "AWAY_S", 0.3)
        refused = heard({**broker, "user": "pi", "password_file": str(tmp_path / "bad")}, "json", VECTOR)
        with pytest.raises(TransportError, match="does not allow this client"):
            take(refused, 1)
        source = heard({**broker, "user": "pi", "password_file": str(tmp_path / "good")}, "json", VECTOR)
        for _ in range(300):
            assert next(source) is None
        source.close()  # type: ignore[attr-defined]


def test_a_password_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    broker = {"host": "127.0.0.1", "port": 1, "user": "pi", "password_file": str(tmp_path / "none")}
    with pytest.raises(InputError, match="password file"):
        heard(broker, "json", VECTOR)


# A camera ---------------------------------------------------------------------------------------------


@pytest.fixture(name="frames")
def _frames(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Both libraries, as far as they are used."""
    VideoCapture.frames = Picamera2.frames = frames = Frames(5, 64, 48)
    constants = {"CAP_PROP_BUFFERSIZE": 38, "CAP_PROP_FRAME_WIDTH": 3, "CAP_PROP_FRAME_HEIGHT": 4}
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=VideoCapture, **constants))
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    return frames


def until_it_fails(source: Iterator[Sample | None], found: list[Sample]) -> None:
    while True:
        found += take(source, 1)


@pytest.mark.parametrize(
    ("driver", "said", "asked"),
    [
        ("opencv", "it gives no frames", [0, (38, 1), (3, 64), (4, 48)]),
        ("picamera2", "pulled out", [{"size": (64, 48), "format": "BGR888"}, "start"]),
    ],
)
def test_the_newest_frame_is_a_sample_and_a_camera_that_ends_is_an_error(
    frames: Frames, driver: str, said: str, asked: list[Any]
) -> None:
    source = open_source({**CAMERA, "driver": driver}, SPEC)
    found: list[Sample] = []
    with pytest.raises((EdgefleetError, RuntimeError), match=said):
        until_it_fails(source, found)
    assert found
    last = Pictures(SPEC, "testing").of_pixels(frames.frames[-1])["image"]
    np.testing.assert_array_equal(images(found)[-1], last)
    assert frames.asked == asked
    assert frames.closed == 1


def test_a_camera_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is away takes OpenCV half a minute to give up: requests are served meanwhile."""
    asked, answer = threading.Event(), threading.Event()

    class Waiting:
        def __init__(self, _device: int | str) -> None:
            asked.set()
            answer.wait(PATIENCE_S)

        def isOpened(self) -> bool:  # noqa: N802
            return False

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=Waiting))
    source = open_source(CAMERA, SPEC)
    assert next(source) is None
    assert asked.wait(PATIENCE_S)
    assert next(source) is None
    answer.set()
    with pytest.raises(InputError, match="cannot be opened"):
        take(source, 1)


@pytest.mark.parametrize(("driver", "device"), [("opencv", "9"), ("picamera2", "1")])
@pytest.mark.usefixtures("frames")
def test_a_camera_that_is_not_there_is_one_line(driver: str, device: str) -> None:
    with pytest.raises(InputError, match="cannot be opened") as caught:
        take(open_source({**CAMERA, "driver": driver, "device": device}, SPEC), 1)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("driver", "error", "said"), [
    ("opencv", MissingExtraError, r"edgefleet\[camera\]"), ("picamera2", InputError, "apt install python3-picamera2"),
])  # fmt: skip
def test_a_missing_library_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, driver: str, error: type[Exception], said: str
) -> None:
    for name in ("cv2", "picamera2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(error, match=said):
        take(open_source({**CAMERA, "driver": driver}, SPEC), 1)
