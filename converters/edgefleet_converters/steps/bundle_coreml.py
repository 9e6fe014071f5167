"""Step: a CoreML package, which is a folder, to one file: a zip archive that holds the folder `model.mlpackage`.

Does not compress: weights hardly shrink, and a piece of the file stays a piece of the weights.
"""

from __future__ import annotations

import zipfile

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context

# The earliest date that the format can hold: no clock enters the file.
_DATE = (1980, 1, 1, 0, 0, 0)


def run(artefact: Artefact, context: Context) -> Artefact:
    """An .mlpackage folder in, model.mlpackage.zip out: the same bytes for the same folder."""
    folder = artefact.files[0]
    path = context.folder / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = file.relative_to(folder.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, _DATE), file.read_bytes())
    return artefact.model_copy(update={"files": (path,)})
