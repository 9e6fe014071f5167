"""Arrays of a .npy or .npz file as raw tensors, without numpy.

No pickled objects, no column-major order, no text: what a tensor cannot hold is refused.
Source: numpy.lib.format, versions 1 to 3.
"""

from __future__ import annotations

import ast
import math
import zipfile
from pathlib import Path
from typing import Any

from edgefleet.errors import InputError
from edgefleet_agent.inference_types import RawTensor
from edgefleet_agent.serve.datatypes import DATATYPES

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
CODES = {
    "|b1": "bool", "|u1": "uint8", "<u2": "uint16", "<u4": "uint32", "<u8": "uint64", "|i1": "int8", "<i2": "int16",
    "<i4": "int32", "<i8": "int64", "<f2": "float16", "<f4": "float32", "<f8": "float64",
}  # fmt: skip
"""A file's word for a type → numpy's name."""


def read(path: Path) -> dict[str, RawTensor]:
    """Every array of a file by its name; the one of a .npy file is called by the file's stem. Raises InputError."""
    doing = f"reading the inputs {path}"
    try:
        if not zipfile.is_zipfile(path):
            return {path.stem: array(path.stem, path.read_bytes())}
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name[:-4]: array(name[:-4], archive.read(name)) for name in names}
    except OSError as error:
        raise InputError(doing, error.strerror or str(error), "name a readable .npy or .npz file") from error
    except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(doing, str(error), "save it again with numpy.save or numpy.savez") from error


def array(name: str, content: bytes) -> RawTensor:
    """One array in the format of a .npy file; raises ValueError."""
    if not content.startswith(MAGIC) or len(content) < 12:
        raise ValueError(f"{name!r} is no array in numpy's format")
    start = 10 if content[6] == 1 else 12
    end = start + int.from_bytes(content[8:start], "little")
    if content[6] not in (1, 2, 3) or end - start > MAX_HEADER_BYTES or end > len(content):
        raise ValueError(f"{name!r} has a header that is none of numpy's")
    dtype, shape = _described(name, content[start:end].decode("latin-1"))
    data = memoryview(content)[end:]
    if len(data) != math.prod(shape) * DATATYPES[dtype].size_bytes:
        raise ValueError(f"{name!r} has {len(data)} bytes, which is not {dtype} {list(shape)}")
    return RawTensor(name, dtype, shape, data)


def _described(name: str, header: str) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) as a header says."""
    try:
        described: Any = ast.literal_eval(header.strip())
        code, by_column, shape = described["descr"], described["fortran_order"], described["shape"]
    except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name!r} has a header that is none of numpy's") from error
    if not isinstance(code, str) or code not in CODES:
        raise ValueError(f"{name!r} holds {code!r}, which is no tensor of numbers")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name!r} has a header that is none of numpy's")
    if by_column and len(shape) > 1:
        raise ValueError(f"{name!r} is stored column by column")
    return CODES[code], shape
