"""A folder that is watched: pictures, .npy and .npz files become samples, in the order of their names.

A file counts once it has not changed between two looks, so a writer may take its time; names that begin with a dot
are left alone. A file that is no input is passed over, and said.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet.errors import InputError, one_line
from edgefleet_agent.sources import Array, Sample, made_of
from edgefleet_agent.sources.inputs import fitted
from edgefleet_agent.sources.pictures import Pictures

LOOK_EVERY_S = 0.5
# A sample of more is no sample.
MOST_BYTES = 256 * 1024 * 1024

log = logging.getLogger("edgefleet.agent")

Version = tuple[int, int]
"""(modified, in ns; size in bytes)"""


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample | None]:
    """`after = "keep"`: what lies there already is left out, and nothing is touched; "delete": all of it is taken,
    and each file removed as it is. Raises InputError for a folder that cannot be read.
    """
    folder, is_deleting = Path(source["path"]), source["after"] == "delete"
    doing = f"watching the folder {folder}"
    watch = Watch(folder, doing)
    if not is_deleting:
        watch.done.update(watch.look())
    return _samples(watch, spec, doing, is_deleting=is_deleting)


@dataclass(slots=True)
class Watch:
    """What lies in the folder, and what of it is done with."""

    folder: Path
    doing: str
    done: dict[str, Version] = field(default_factory=dict)
    _seen: dict[str, Version] = field(default_factory=dict)

    def look(self) -> dict[str, Version]:
        """Name → version of each file there; raises InputError."""
        try:
            with os.scandir(self.folder) as entries:
                return {e.name: _version(e) for e in entries if not e.name.startswith(".") and _is_file(e)}
        except OSError as error:
            raise InputError(self.doing, error.strerror or str(error), "name a folder that can be read") from error

    def new(self) -> list[str]:
        """Names of files that are not done and the same as at the last look."""
        found, before = self.look(), self._seen
        self._seen = found
        # What is gone may come again.
        self.done = {name: version for name, version in self.done.items() if name in found}
        return sorted(n for n, version in found.items() if before.get(n) == version != self.done.get(n))

    def finish(self, name: str, *, delete: bool) -> None:
        """Do not give this version of a file again."""
        self.done[name] = self._seen[name]
        if delete:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: %s cannot be removed: %s", self.doing, one_line(name), error.strerror or error)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # A link that leads to itself: one name less, not a folder that cannot be watched.
        return False


def _version(entry: os.DirEntry[str]) -> Version:
    try:
        status = entry.stat()
    except FileNotFoundError:
        return (0, -1)
    return (status.st_mtime_ns, status.st_size)


def _samples(watch: Watch, spec: Mapping[str, Any], doing: str, *, is_deleting: bool) -> Iterator[Sample | None]:
    read = _Reader(spec, doing)
    looked_at = -LOOK_EVERY_S
    while True:
        if time.monotonic() - looked_at < LOOK_EVERY_S:
            yield None
            continue
        looked_at = time.monotonic()
        for name in watch.new():
            try:
                sample = read(watch.folder / name)
            except (InputError, OSError, MemoryError) as error:
                log.warning("%s: %s is passed over: %s", doing, one_line(name), _told(error))
                watch.finish(name, delete=False)
                continue
            # Before it is inferred on: a file that ends the worker must not end the next one too.
            watch.finish(name, delete=is_deleting)
            yield sample


def _told(error: InputError | OSError | MemoryError) -> str:
    match error:
        case InputError():
            return f"{error.found}; {error.remedy}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return f"memory is too short for it ({error})"


class _Reader:
    """Files as samples; pictures need what the package says of them only when there is one."""

    def __init__(self, spec: Mapping[str, Any], doing: str) -> None:
        self._spec = spec
        self._doing = doing
        self._pictures: Pictures | None = None
        self._of: dict[str, Callable[[bytes], dict[str, Array]]] = {".npy": self._numpy, ".npz": self._numpy}

    def __call__(self, path: Path) -> Sample:
        """Raises InputError for a file that is no sample, OSError for one that is not read."""
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(self._doing, f"more than {MOST_BYTES} bytes", "store one sample in each file")
        return made_of(partial(self._of.get(path.suffix.lower(), self._picture), content))

    def _picture(self, content: bytes) -> dict[str, Array]:
        if self._pictures is None:
            self._pictures = Pictures(self._spec, self._doing)
        return self._pictures.of_file(content)

    def _numpy(self, content: bytes) -> dict[str, Array]:
        try:
            found = np.load(BytesIO(content), allow_pickle=False)
            arrays = {"x": found} if isinstance(found, np.ndarray) else dict(found)
        except Exception as error:  # the header, the archive and the memory each raise what they like
            raise InputError(self._doing, f"not a numpy file ({error})", "write one with numpy.savez") from error
        return fitted(arrays, self._spec["inputs"], self._doing)
