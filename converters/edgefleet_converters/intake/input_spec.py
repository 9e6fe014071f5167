"""The input spec: a small TOML file that says how an image becomes each input, and what the classes are called.

Does not touch data: `data` applies it to folders of images, checks other data against it, and the package carries it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edgefleet.errors import EdgefleetError, InputError
from edgefleet.package.manifest import DType, Preprocessing, TensorSpec
from edgefleet_converters.intake import refuse_streams

_KNOWN = "it may have labels, and a table [inputs.NAME] with layout, colour, scale, mean, std, resize and dtype"
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


def _listed(value: object) -> object:
    """One number may stand without brackets."""
    return [value] if isinstance(value, int | float) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resize(_Strict):
    """Bring every image to this size, without keeping its proportions."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    method: Literal["nearest", "bilinear", "bicubic", "area"] = "bilinear"


class ImageInput(_Strict):
    """One input: `(pixel / scale - mean) / std` with pixels from 0 to 255; one number, or one for each channel."""

    layout: Literal["nchw", "nhwc"]
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = Field(default=1.0, gt=0)
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    resize: Resize | None = None
    dtype: DType | None = None
    """The model's own type, for those who want it checked."""

    @model_validator(mode="after")
    def _as_many_as_channels(self) -> Self:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, CHANNELS[self.colour]):
                raise ValueError(f"{name} has {len(numbers)} numbers, and {self.colour} has {CHANNELS[self.colour]}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the input's shape."""
        return self.layout.index("c")

    @property
    def span(self) -> tuple[float, float]:
        """What black and white pixels become: the smallest and the largest over the channels."""
        channels = range(max(len(self.mean), len(self.std)))
        pairs = [(self.mean[place % len(self.mean)], self.std[place % len(self.std)]) for place in channels]
        return min(-mean / std for mean, std in pairs), max((255 / self.scale - mean) / std for mean, std in pairs)

    @property
    def described(self) -> str:
        """The normalisation in a few words."""
        shown = [", ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std)]
        return f"scale {self.scale:g}, mean {shown[0]}, std {shown[1]}"


class InputSpec(_Strict):
    """Inputs by their names in the model, and the names of the classes in the order of the output."""

    inputs: dict[str, ImageInput] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def preprocessing(self, inputs: Sequence[TensorSpec]) -> tuple[Preprocessing, ...]:
        """What the package says of the image inputs."""
        return tuple(
            Preprocessing(
                input=spec.name,
                layout=image.layout,
                colour=image.colour,
                width=sizes_of(spec, image)[0],
                height=sizes_of(spec, image)[1],
                method="bilinear" if image.resize is None else image.resize.method,
                scale=image.scale,
                mean=image.mean,
                std=image.std,
            )
            for spec in inputs
            if (image := self.inputs.get(spec.name)) is not None
        )


def read_input_spec(path: Path, inputs: Sequence[TensorSpec]) -> InputSpec:
    """Read a spec and check it against the model's inputs; `labels` may be a list, or a text file with one a line.

    Raises InputError.
    """
    doing = f"reading the input spec {path}"
    refuse_streams(path, doing)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if isinstance(content.get("labels"), str):
            listed = (path.parent / content["labels"]).read_text(encoding="utf-8")
            content["labels"] = [line.strip() for line in listed.splitlines() if line.strip()]
        spec = InputSpec.model_validate(content)
    except OSError as error:
        raise InputError(doing, f"{error.strerror or error} ({error.filename})", "check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InputError(doing, f"{where}: {first['msg']}", _KNOWN) from error
    except ValueError as error:  # tomllib's and the decoder's errors
        raise InputError(doing, f"not readable as TOML ({error})", "correct the file") from error
    if len(set(spec.labels)) != len(spec.labels):
        twice = next(label for label in spec.labels if spec.labels.count(label) > 1)
        raise InputError(doing, f"the label {twice!r} is listed twice", "give each class a name of its own")
    known = {item.name: item for item in inputs}
    for name, image in spec.inputs.items():
        if name not in known:
            raise InputError(doing, f"the model has no input {name!r}", f"its inputs are: {', '.join(known)}")
        _check_input(known[name], image, doing)
    return spec


def _check_input(spec: TensorSpec, image: ImageInput, doing: str) -> None:
    """Raise InputError where an image as described is not this input."""
    shape, channels = list(spec.shape), CHANNELS[image.colour]
    refused: EdgefleetError | None = None
    if len(shape) != 4 or shape[0] != 1:
        remedy = "describe only inputs that take one image"
        refused = InputError(doing, f"input {spec.name!r} has the shape {shape}, and is no image", remedy)
    elif shape[image.channel_axis] != channels:
        found = f"{image.layout} and {image.colour} ask for {channels} on axis {image.channel_axis}, and input "
        refused = InputError(doing, f"{found}{spec.name!r} has the shape {shape}", "correct layout or colour")
    elif image.dtype not in (None, spec.dtype):
        refused = InputError(doing, f"input {spec.name!r} is {spec.dtype}, not {image.dtype}", "correct dtype")
    elif image.resize is not None and sizes_of(spec, image) != (image.resize.width, image.resize.height):
        width, height = sizes_of(spec, image)
        found = f"resize gives {image.resize.width} x {image.resize.height}, and input {spec.name!r} takes "
        refused = InputError(doing, f"{found}{width} x {height} (width x height)", "correct resize")
    if refused is not None:
        raise refused


def sizes_of(spec: TensorSpec, image: ImageInput) -> tuple[int, int]:
    """Width and height of the images that an input takes."""
    return spec.shape[image.layout.index("w")], spec.shape[image.layout.index("h")]
