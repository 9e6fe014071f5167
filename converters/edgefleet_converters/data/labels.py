"""Labels from a file of their own: .npy, .csv or .txt; class names become their numbers.

Does not check that the model has such classes: `check_classes` does.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError

_COLUMN = "label"


def read_labels(path: Path, names: Sequence[str]) -> NDArray[np.generic]:
    """Labels [N, …]: an array as it is; one a line; or the column `label`, else the last one. Raises InputError."""
    doing = f"reading the labels {path}"
    try:
        if path.suffix.lower() == ".npy":
            found: NDArray[np.generic] = np.load(path, allow_pickle=False)
            return found
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(doing, error.strerror or str(error), "check the path") from error
    except (ValueError, EOFError) as error:
        raise InputError(doing, f"not a readable file ({error})", "give .npy, .csv or .txt") from error
    texts = _column(lines) if path.suffix.lower() == ".csv" else [line.strip() for line in lines if line.strip()]
    return numbered(texts, names, doing)


def numbered(texts: Sequence[str], names: Sequence[str], doing: str) -> NDArray[np.generic]:
    """Class numbers of labels that are numbers or names; measurements stay float32. Raises InputError."""
    unknown = [text for text in texts if text not in names]
    if not unknown:
        return np.array([names.index(text) for text in texts], np.int64)
    for kind in (np.int64, np.float32):
        try:
            return np.array([kind(text) for text in texts])
        except ValueError:
            continue
    listed = ", ".join(names[:8]) or "none"
    remedy = "list the class names in the input spec under labels, in the order of the model's output"
    raise InputError(doing, f"{unknown[0]!r} is neither a number nor one of the labels ({listed})", remedy)


def _column(lines: Sequence[str]) -> list[str]:
    """The column `label` under a header, else the last column of all rows."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    if rows and _COLUMN in rows[0]:
        place = rows[0].index(_COLUMN)
        return [row[place] for row in rows[1:] if len(row) > place]
    return [row[-1] for row in rows]
