"""Data from images: a folder, a folder with one subfolder for each class, or a CSV file with `file,label` rows.

The input spec says how pixels become values. Decoding runs in a child process, with Pillow; pixels are taken as they
are stored, whatever orientation a camera noted beside them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import EdgefleetError, InputError, MissingExtraError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.data.labels import numbered
from edgefleet_converters.data.loaded import Done, Loaded, LoadJob, load_in_child, store
from edgefleet_converters.intake.input_spec import ImageInput, InputSpec, sizes_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}
_METHODS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}
_REMEDY = "describe it in the input spec: layout, colour, scale, mean, std"


def load(place: str, inputs: Sequence[TensorSpec], spec: InputSpec, doing: str) -> Loaded:
    """Samples [N, *input shape] of the model's one input, labels by folder or row; raises InputError."""
    if len(inputs) != 1 or inputs[0].name not in spec.inputs:
        names = ", ".join(item.name for item in inputs)
        found = "images say nothing of their normalisation" if len(inputs) == 1 else f"the model has inputs {names}"
        raise InputError(doing, found, f"{_REMEDY} of {inputs[0].name!r}" if len(inputs) == 1 else "give .npz files")
    return load_in_child("edgefleet_converters.data.images:decode", place, inputs, spec, doing)


def decode(text: str) -> Done:
    """The child's side: find, read and normalise all images."""
    job = LoadJob.model_validate_json(text)
    tensor, image = job.inputs[0], job.spec.inputs[job.inputs[0].name]
    files, labels = find(job.folder / job.place, job.spec.labels, job.doing)
    samples = np.empty((len(files), *tensor.shape), tensor.dtype)
    for place, file in enumerate(files):
        samples[place, 0] = normalised(_pixels(file, tensor, image, job.doing), image, np.dtype(tensor.dtype))
    return store(job, {tensor.name: samples}, labels)


def find(place: Path, names: Sequence[str], doing: str) -> tuple[list[Path], NDArray[np.generic] | None]:
    """Image files in a fixed order, and their labels where there are any; raises InputError."""
    if not place.is_dir():
        return _listed(place, names, doing)
    own = _images(place)
    classes = {folder.name: _images(folder) for folder in sorted(place.iterdir()) if folder.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    refused: EdgefleetError | None = None
    if own and classes:
        found = f"images beside the class folders {', '.join(classes)}"
        refused = InputError(doing, found, "put every image into the folder of its class")
    elif not own and not classes:
        remedy = f"store images that end in {', '.join(SUFFIXES)}"
        refused = InputError(doing, "no images in this folder", remedy)
    if refused is not None:
        raise refused
    if own:
        return own, None
    # Without a list, folders are numbered by name, as Keras and torchvision do; folders 0 to 10 by their numbers.
    order = names or sorted(classes, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    if not names and all(name.isdecimal() for name in classes):
        order = [str(number) for number in range(max(map(int, classes)) + 1)]
    files = [file for found in classes.values() for file in found]
    return files, numbered([name for name, found in classes.items() for _ in found], order, doing)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _listed(path: Path, names: Sequence[str], doing: str) -> tuple[list[Path], NDArray[np.generic] | None]:
    """Files and labels of a CSV file, its files beside it; a first row that names no file is a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(doing, f"not a readable CSV file ({error})", "write rows of file,label") from error
    if rows and not (path.parent / rows[0][0]).is_file() and Path(rows[0][0]).suffix.lower() not in SUFFIXES:
        rows = rows[1:]
    files = [path.parent / row[0] for row in rows]
    missing = [str(file) for file in files if not file.is_file()]
    if not files or missing:
        found = f"there is no file {missing[0]}" if missing else "no rows"
        raise InputError(doing, found, "write rows of file,label, with paths from the CSV file's folder")
    widths = {len(row) for row in rows}
    if widths == {1}:
        return files, None
    if widths != {2}:
        raise InputError(doing, f"rows of {min(widths)} to {max(widths)} cells", "write rows of file,label")
    return files, numbered([row[1] for row in rows], names, doing)


def _pixels(file: Path, tensor: TensorSpec, image: ImageInput, doing: str) -> NDArray[np.uint8]:
    """One image [height, width, channels] in RGB or grey, of the size that the input takes."""
    try:
        from PIL import Image  # noqa: PLC0415 - said in one line where it is missing
    except ModuleNotFoundError as error:
        raise MissingExtraError(doing, error.name or "PIL", "data") from error
    try:
        with Image.open(file) as opened:
            picture: Any = opened.convert(_MODES[image.colour])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(doing, f"{file.name} is not a readable image ({error})", "remove or replace it") from error
    wanted = sizes_of(tensor, image)
    if picture.size != wanted:
        if image.resize is None:
            shown = [f"{size[0]} x {size[1]}" for size in (picture.size, wanted)]
            found = f"{file.name} is {shown[0]}, and the input takes {shown[1]} (width x height)"
            raise InputError(doing, found, "give resize in the input spec, with a method")
        picture = picture.resize(wanted, getattr(Image.Resampling, _METHODS[image.resize.method]))
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def normalised(pixels: NDArray[np.uint8], image: ImageInput, dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Pixels [height, width, RGB or grey] as the input wants them, without the batch axis."""
    ordered = pixels[..., ::-1] if image.colour == "bgr" else pixels
    values = (ordered / image.scale - np.array(image.mean)) / np.array(image.std)
    if image.layout == "nchw":
        values = values.transpose(2, 0, 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    found: NDArray[np.generic] = values.astype(dtype)
    return found
