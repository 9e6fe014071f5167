"""Calibration samples for a model with any inputs: an .npz file, or a folder of .npy and .npz files.

Data are in the source model's layout, names and dtypes; nothing is converted, shuffled or made up.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError

FEWEST = 32
"""Below this the ranges that int8 is built on are guesses; a warning, not an error."""

Array = NDArray[np.generic]


class InputLike(Protocol):
    """An input that samples are for: its name, numpy dtype and shape in the source's layout."""

    @property
    def name(self) -> str:
        """Name in the model."""

    @property
    def dtype(self) -> str:
        """Element type, by numpy's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Static shape, batch axis included."""


Samples = Mapping[str, Array]
"""Input name → [N, *input shape], the same N for all inputs."""


def load_samples(path: Path, inputs: Sequence[InputLike], doing: str = "") -> Samples:
    """All samples of a file or folder; raises InputError for data that are not the model's inputs."""
    doing = doing or f"reading the calibration data {path}"
    files = [path]
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.suffix in (".npy", ".npz"))
        if not files:
            raise InputError(doing, "no .npy or .npz file in this folder", "store one sample or stack in each")
    parts = [_read(file, inputs, doing if file == path else f"{doing}, {file.name}") for file in files]
    joined = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in inputs}
    refuse_unusable(joined, doing)
    return joined


def refuse_unusable(samples: Samples, doing: str) -> None:
    """Raise InputError for samples that are none, or that no model can take."""
    for name, array in samples.items():
        if len(array) == 0:
            raise InputError(doing, f"{name!r} has no samples", "store at least one")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
            found = f"NaN or infinite values in {bad} of {len(array)} samples of {name!r}"
            raise InputError(doing, found, "remove those samples")


def count(samples: Samples) -> int:
    """How many samples there are."""
    return len(next(iter(samples.values()), ()))


def _read(path: Path, inputs: Sequence[InputLike], doing: str) -> dict[str, Array]:
    """The samples of one file."""
    arrays = _arrays(path, doing)
    if len(inputs) == 1 and inputs[0].name not in arrays and "x" in arrays:
        arrays[inputs[0].name] = arrays["x"]
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        found = f"no array for {', '.join(map(repr, missing))} (there are: {', '.join(arrays) or 'none'})"
        raise InputError(doing, found, "store one array for each input, by its name in the model")
    samples = {spec.name: stacked(arrays[spec.name], spec, doing) for spec in inputs}
    lengths = {name: len(array) for name, array in samples.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(doing, f"unequal numbers of samples: {shown}", "store as many for each input")
    return samples


def _arrays(path: Path, doing: str) -> dict[str, Array]:
    """Arrays of a file by name; the one of an .npy file is called `x`."""
    remedy = "save it with numpy.savez(path, NAME=…)"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return {"x": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(doing, f"{error.strerror or error}", "check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(doing, f"not a readable .npz or .npy file ({error})", remedy) from error


def stacked(array: Array, spec: InputLike, doing: str) -> Array:
    """[N, *input shape] from a stack with or without the batch axis of 1, or from one sample; raises InputError."""
    shape = spec.shape
    single = shape[:1] == (1,)
    if str(array.dtype) == spec.dtype:
        if array.shape[1:] == shape and array.ndim == len(shape) + 1:
            return array
        if single and array.ndim == len(shape) and array.shape[1:] == shape[1:]:
            return array[:, np.newaxis]
        if array.shape == shape or (single and array.shape == shape[1:]):
            return array.reshape(1, *shape)
    expected = f"{spec.dtype} [N, {', '.join(map(str, shape[1:] if single else shape))}]"
    found = f"{spec.name!r} is {array.dtype} {list(array.shape)}, expected {expected}"
    raise InputError(doing, found, _layout_remedy(array, shape))


# What is found against what is expected, as permutations of one image's axes.
_LAYOUTS = {(2, 0, 1): "NHWC, and the model wants NCHW", (1, 2, 0): "NCHW, and the model wants NHWC"}


def _layout_remedy(array: Array, shape: tuple[int, ...]) -> str:
    """What to do about a shape or dtype that is not the input's; a known mistake is named."""
    image = array.shape[-3:]
    for permutation, text in _LAYOUTS.items() if len(shape) == 4 and array.ndim >= 4 else ():
        if image != shape[1:] and tuple(image[axis] for axis in permutation) == shape[1:]:
            axes = ", ".join(str(axis + 1) for axis in permutation)
            return f"it looks like {text}: transpose it with (0, {axes})"
    return "convert it to the model's input shape and dtype, in the model's layout"
