"""What every file of a package says of itself, whatever its format: whose it is, how its images are prepared, labels.

A pydantic model, because it crosses to child processes as JSON. How a format holds it is its own module's business.
"""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from edgefleet import __version__
from edgefleet.package.manifest import Preprocessing


class Facts(BaseModel):
    """The same facts give the same bytes: no time, no host, no path.

    Nor the package's version, which would make every file of a new release another one, and no block of it shared.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source_digest: str
    """sha256 of the model that the file was made from."""
    preprocessing: tuple[Preprocessing, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def entries(self) -> dict[str, str]:
        """The facts as texts by name, for formats that hold such pairs; lists as JSON."""
        found = {
            "version": __version__,
            "name": self.name,
            "source_sha256": self.source_digest,
        }
        if self.preprocessing:
            prepared = [item.model_dump(mode="json", exclude_none=True) for item in self.preprocessing]
            found["preprocessing"] = json.dumps(prepared, sort_keys=True, separators=(",", ":"))
        if self.labels:
            found["labels"] = json.dumps(self.labels, ensure_ascii=False, separators=(",", ":"))
        return found
