"""A whole agent process on a measured fleet: enrolled, deployed to with real signatures, watched from the server.

It waits for nothing and judges nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgefleet.package.layout import Package
from edgefleet.protocol.signed import PackageVersion
from edgefleet.server import control, publishing
from edgefleet.server.store import Store
from edgefleet.trust.keys import KeyFolder
from edgefleet_demo.processes import EDGEFLEET, Process
from transport_fleet import Fleet, wait

OPERATOR = "operator-default"
RELEASE = "release"


@dataclass
class RealAgent:
    """One `edgefleet agent run`."""

    fleet: Fleet
    store: Store
    device: str
    wrap: Callable[..., list[str]] = lambda *command: list(command)
    process: Process | None = None
    identity: Path | None = field(default=None)

    def start(self) -> None:
        """Enrol it (once), start it, and wait until it has said hello."""
        home = self.fleet.folder / "agents" / self.device
        if self.identity is None:
            home.mkdir(parents=True)
            self.identity = self.fleet.enroll(self.store, self.device)
            np.savez(home / "inputs.npz", x=np.zeros((4, 1, 4), np.float32))
            (home / "agent.toml").write_text(
                f'profile = "generic-x86-64"\nidentity = {json.dumps(str(self.identity))}\nstate_folder = "state"\n'
                '[download]\nhttp = "never"\n[source]\nkind = "replay"\npath = "inputs.npz"\n'
            )
        command = self.wrap(*EDGEFLEET, "agent", "run", "--config", str(home / "agent.toml"))
        self.process = self.fleet.group.start(self.device, command)
        wait(lambda: self.store.device(self.device) is not None, f"hello of {self.device}", 60.0)

    def stop(self) -> None:
        """Stop it in good order."""
        if self.process is not None:
            self.process.stop()

    def deploy(self, package: Package) -> int:
        """Publish and deploy to it alone; returns the generation."""
        keys, now = KeyFolder(self.fleet.keys), time.time()
        target: PackageVersion = publishing.publish(self.fleet.data, package, keys.signer(RELEASE), now)
        signer = keys.signer(OPERATOR)
        _, generations = control.deploy(self.store, self.fleet.data, target, self.device, signer, now)
        return generations[self.device]

    def accepted(self, generation: int) -> bool:
        """Whether its own log says that it has begun with a generation."""
        return self.process is not None and f"accepted: generation {generation}" in self.process.log_file.read_text()

    def verified_bytes(self) -> int:
        """Of what it is pulling, by its last report."""
        row = self.store.device(self.device)
        return (row.verified_bytes or 0) if row else 0
