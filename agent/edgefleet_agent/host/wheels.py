"""Where a new environment's packages come from: pip's index, a folder of wheels, or a bundle of them in one file.

It trusts what the machine's administrator names, as pip does; what is signed on the fleet's behalf are models.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from edgefleet.errors import InputError, StorageError
from edgefleet_agent.source_settings import CameraSource, FolderSource, MqttSource, Source
from edgefleet_device_profiles.detect import installed_runtimes
from edgefleet_device_profiles.profile import Runtime

MAX_BUNDLE_BYTES = 2 * 1024**3
MAX_BUNDLE_WHEELS = 500
_REMEDY = "give a folder of wheels, or a .tar, .tar.gz or .zip file of them (pip download, tar -cf)"
# Runtime → the extra that installs it. There is no LiteRT for 32 bits, and 32-bit programs may run on a 64-bit kernel.
RUNTIME_EXTRAS = {
    Runtime.LITERT: "litert" if sys.maxsize > 2**32 else "tflite",
    Runtime.ONNXRUNTIME: "onnx",
    Runtime.OPENVINO: "openvino",
}


def extras_here() -> tuple[str, ...]:
    """The extras of the runtimes that this environment has; raises InputError when it has none."""
    found = tuple(RUNTIME_EXTRAS[runtime] for runtime in installed_runtimes() if runtime in RUNTIME_EXTRAS)
    if not found:
        raise InputError(
            "choosing what to install",
            "this environment has no runtime",
            f"name one: --extra {', '.join(RUNTIME_EXTRAS.values())}",
        )
    return found


def extras_for(source: Source | None) -> tuple[str, ...]:
    """The extras that inputs from there need."""
    match source:
        case CameraSource(driver="opencv"):
            return ("camera",)
        case CameraSource() | FolderSource() | MqttSource(payload="picture"):
            return ("data",)
        case _:
            return ()


def requirement(version: str | None, extras: tuple[str, ...], wheels: Path | None) -> list[str]:
    """What pip is told: edgefleet with its agent and `extras`, newest where no version is named."""
    source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    wanted = ",".join(dict.fromkeys(["agent", *extras]))
    return [*source, f"edgefleet[{wanted}]{'' if version is None else f'=={version}'}"]


@contextmanager
def folder_of(given: Path | None, space: Path) -> Iterator[Path | None]:
    """The folder of wheels that was given, unpacked below `space` if it is a bundle; None for the index.

    Raises InputError for what is neither, StorageError when `space` cannot take it.
    """
    if given is None or given.is_dir():
        yield None if given is None else given.resolve()
        return
    doing = f"reading the bundle {given}"
    try:
        space.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wheels-", dir=space) as unpacked:
            _unpack(given, Path(unpacked), doing)
            yield Path(unpacked)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(doing, f"it is not a whole archive ({error})", _REMEDY) from error
    except FileNotFoundError as error:
        raise InputError(doing, "there is no such file", _REMEDY) from error
    except OSError as error:
        raise StorageError(doing, error.strerror or str(error), f"free the disk of {space}") from error


def _unpack(archive: Path, folder: Path, doing: str) -> None:
    """Every wheel of an archive into one folder: plain files by their own names, and no more than a bundle may hold."""
    left = MAX_BUNDLE_BYTES
    names: set[str] = set()
    for path, size, stream in _members(archive, doing):
        name = PurePosixPath(path).name
        if not name.endswith(".whl") or name in names:
            raise InputError(doing, f"it holds {path!r}, which is no wheel or there twice", _REMEDY)
        names.add(name)
        left -= size
        if left < 0 or len(names) > MAX_BUNDLE_WHEELS:
            raise InputError(doing, f"it holds more than {MAX_BUNDLE_BYTES >> 30} GiB or too many files", _REMEDY)
        with (folder / name).open("xb") as target:
            shutil.copyfileobj(stream, target)
    if not names:
        raise InputError(doing, "it holds no wheel", _REMEDY)


def _members(archive: Path, doing: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, content) of every file in an archive."""
    # First: a plain tape that ends with a wheel passes for a zip file too, which that wheel is.
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tape:
            for member in tape:
                if member.isdir():
                    continue
                content = tape.extractfile(member) if member.isreg() else None
                if content is None:
                    raise InputError(doing, f"it holds {member.name!r}, which is no plain file", _REMEDY)
                yield member.name, member.size, content
        return
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if not entry.is_dir():
                with opened.open(entry) as stream:
                    yield entry.filename, entry.file_size, stream
