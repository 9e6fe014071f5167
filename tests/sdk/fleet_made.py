"""A founded fleet for tests: keys, the server's data folder and its store, with devices enrolled as they are needed."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgefleet.package.layout import Package, write_package
from edgefleet.protocol.messages import Facts
from edgefleet.protocol.signed import PackageVersion
from edgefleet.server import publishing
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.store import Store
from edgefleet.trust import setup
from edgefleet.trust.keys import KeyFolder
from sdk.packages_made import two_variants
from sdk.wire_examples import FACTS

FLEET = "home"
LONG = 4_000_000_000.0


@dataclass
class MadeFleet:
    """One fleet below one folder."""

    folder: Path
    data: Path
    keys: KeyFolder
    store: Store

    def add(self, device: str, enrolment_id: str | None = None, now: float | None = None) -> Facts:
        """Enrol a device without a certificate and have it say hello; returns what it said."""
        facts = FACTS.model_copy(update={"enrolment_id": enrolment_id or f"e-{device}"})
        moment = time.time() if now is None else now
        self.store.add_enrolment(device, facts.enrolment_id, LONG, "0a", moment)
        self.store.add_facts(device, facts, moment)
        return facts

    def publish(self, version: str = "1.2.0", release: int = 7, now: float | None = None) -> PackageVersion:
        """Publish a small package."""
        folder = self.folder / f"package-{version}-{release}"
        variants = two_variants(self.folder / "inputs")
        write_package(folder, name="made", version=version, release=release, variants=variants)
        signer = self.keys.signer("release")
        return publishing.publish(self.data, Package(folder), signer, time.time() if now is None else now)


@cache
def _template(now: float | None) -> tempfile.TemporaryDirectory[str]:
    """A founded fleet to copy: founding one takes half a second of keys and of waiting for the disk."""
    folder = tempfile.TemporaryDirectory(prefix="edgefleet-made-")
    keys, data = KeyFolder(Path(folder.name) / "keys"), Path(folder.name) / "data"
    setup.init(FLEET, keys, data, root_keys=1, root_threshold=1, now=now)
    return folder


def found(folder: Path, now: float | None = None) -> MadeFleet:
    """A fleet below `folder`, founded at `now`."""
    shutil.copytree(_template(now).name, folder, dirs_exist_ok=True)
    return MadeFleet(folder, folder / "data", KeyFolder(folder / "keys"), Store(folder / "data" / STORE_FILE))
