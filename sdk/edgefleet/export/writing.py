"""Write an export: the chosen variant's files, its labels and its page, whole or not at all.

Converts nothing: the bytes are those of the package, unpacked or as a C array where the device wants them so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgefleet.errors import InputError, StorageError
from edgefleet.export.choosing import Kit, choose, kit_of
from edgefleet.export.guides import Subject, page
from edgefleet.package.layout import Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Layer, Manifest
from edgefleet_device_profiles.profile import Profile

LABELS_FILE = "labels.txt"
_HEADER, _SOURCE = "model_data.h", "model_data.c"
_BYTES_A_LINE = 32


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    variant: str
    files: tuple[str, ...]
    """Relative to the folder, sorted."""


def export(package: Package, profile: Profile, folder: Path) -> Exported:
    """Write the variant for a profile to `folder`, which must not exist yet.

    Raises InputError (no variant for the profile, folder taken), UnsupportedError (a board that runs the agent),
    IntegrityError (of the package) or StorageError.
    """
    doing = f"exporting {package.name} to {folder}"
    chosen, kit = choose(profile, package.index), kit_of(profile)
    if folder.exists():
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")
    package.verify()
    manifest = package.manifest(chosen.digest)
    subject = Subject(
        title=f"{package.name} {package.version}",
        digest=chosen.digest,
        spec=package.spec(manifest),
        files=(),
        checked=chosen.architecture == profile.cpu.architecture,
        described=_is_described(package, manifest),
        arena_bytes=int((profile.budget.arena_kib or 0) * 1024),
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            staging.chmod(0o755)
            files = _write(package, manifest, kit, staging, doing)
            text = page(kit, replace(subject, files=files))
            (staging / "README.md").write_text(text, encoding="utf-8")
            os.rename(staging, folder)  # noqa: PTH104 - Path.rename says less about replacing an empty folder
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(doing, f"{error.strerror or error}", "free some space or choose another disk") from error
    return Exported(subject.spec.name, tuple(sorted((*files, "README.md"))))


def _write(package: Package, manifest: Manifest, kit: Kit, staging: Path, doing: str) -> tuple[str, ...]:
    """The variant's files in the kit's form; returns their names."""
    spec = package.spec(manifest)
    place = staging / "assets" if kit is Kit.ANDROID else staging
    place.mkdir(exist_ok=True)
    files = {_name(name, doing): package.blobs.path(digest) for name, digest in _model_files(manifest)}
    if spec.model_file not in files:
        raise InputError(doing, f"the variant has no {spec.model_file}", "write the package again")
    if kit is Kit.IOS:
        _unzip(files[spec.model_file], place, doing)
    elif kit is Kit.MICRO and _HEADER not in files:
        content = files[spec.model_file].read_bytes()
        (place / _HEADER).write_text(_header(len(content)), encoding="utf-8")
        (place / _SOURCE).write_text(_source(content), encoding="utf-8")
    else:
        for name, blob in files.items():
            if kit is not Kit.MICRO or name != spec.model_file:
                shutil.copyfile(blob, place / name)
    if spec.labels:
        lines = "".join(f"{' '.join(label.splitlines())}\n" for label in spec.labels)
        (place / LABELS_FILE).write_text(lines, encoding="utf-8")
    return tuple(sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()))


def _model_files(manifest: Manifest) -> list[tuple[str, str]]:
    """(file name, digest) of the files that a runtime opens."""
    layers = [layer for layer in manifest.layers if layer.media_type == Layer.MODEL]
    return [((layer.annotations or {}).get(FILEPATH_ANNOTATION, ""), layer.digest) for layer in layers]


def _is_described(package: Package, manifest: Manifest) -> bool:
    """A .tflite file names its metadata's buffer."""
    return any(
        b"TFLITE_METADATA" in package.blobs.path(digest).read_bytes()
        for name, digest in _model_files(manifest)
        if name.endswith(".tflite")
    )


def _name(name: str, doing: str) -> str:
    """A file name that stays in its folder."""
    if not name or name in {".", "..", LABELS_FILE} or PurePosixPath(name).name != name or "\0" in name:
        raise InputError(doing, f"the variant has a file {name!a}", "write the package again")
    return name


def _unzip(archive_file: Path, place: Path, doing: str) -> None:
    """A CoreML package is a folder; in ours it is one stored zip archive."""
    try:
        with zipfile.ZipFile(archive_file) as archive:
            for item in archive.infolist():
                path = PurePosixPath(item.filename)
                if path.is_absolute() or ".." in path.parts or item.compress_type != zipfile.ZIP_STORED:
                    raise InputError(doing, f"the archive holds {item.filename!a}", "write the package again")
                archive.extract(item, place)
    except zipfile.BadZipFile as error:
        raise InputError(doing, f"{archive_file.name} is no zip archive", "write the package again") from error


def _header(size_bytes: int) -> str:
    return f"""// The model for LiteRT for Microcontrollers, exported by edgefleet.
#ifndef EDGEFLEET_MODEL_DATA_H_
#define EDGEFLEET_MODEL_DATA_H_

#ifdef __cplusplus
extern "C" {{
#endif
extern const unsigned char model_data[];
extern const unsigned int model_data_size;
#ifdef __cplusplus
}}
#endif

#define MODEL_DATA_SIZE {size_bytes}

#endif  // EDGEFLEET_MODEL_DATA_H_
"""


def _source(content: bytes) -> str:
    """The bytes, aligned for the runtime, which reads them in place."""
    rows = (content[start : start + _BYTES_A_LINE] for start in range(0, len(content), _BYTES_A_LINE))
    listed = "\n".join("".join(f"{byte}," for byte in row) for row in rows)
    return f"""#include "{_HEADER}"

_Alignas(16) const unsigned char model_data[] = {{
{listed}
}};
const unsigned int model_data_size = sizeof(model_data);
"""
