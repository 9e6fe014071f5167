"""A house whose installations are the agent's own: they pull from a package, onto a disk that a test may fill.

The self-test alone is said to pass. Nothing here asserts.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from agent.installer_lab import House
from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import Desired
from edgefleet.protocol.topics import short_digest
from edgefleet_agent.acquisition import Means
from edgefleet_agent.install import Install
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Runtime
from patience import PATIENCE_S

RUNTIMES = {Runtime.ONNXRUNTIME: "1.20.1"}
UNITS_OF_A_BLOCK = 4
FILLER = "filler"


class PassedSelfTest:
    """A worker that has said already that the golden inputs came out right."""

    def messages(self) -> tuple[list[dict[str, object]], bool]:
        return [{"kind": "self_test", "ok": True, "reason": None, "max_abs_difference": 0.0}], False

    def fileno(self) -> int:
        """Readable at once."""
        return 0

    def stop(self) -> None: ...


class PullingHouse(House):
    """One device's installer whose installations pull."""

    def __init__(self, folder: Path) -> None:
        self.asked: deque[Request] = deque()
        super().__init__(folder)
        # Of the two the smaller is what this device's profile chooses.
        self.old, self.new = self.new, self.old

    def _make(self, desired: Desired, resumed: bool, only: str | None) -> Install:  # type: ignore[override]
        profile, means = catalogue.load("generic-x86-64"), Means(self.slots, self)
        return Install(desired, profile, RUNTIMES, means, resumed=resumed, only=only)

    def request(self, request: Request) -> bool:
        self.asked.append(request)
        return True

    def turn(self, seconds: float = 0.1) -> None:
        """One turn of the loop, and the hub's answers to what it asked."""
        super().turn(seconds)
        while self.asked:
            self._answer(self.asked.popleft())

    def _answer(self, request: Request) -> None:
        install, content = self.installer.current, self.package.blobs.read(request.digest or "", doing="testing")
        if install is None:
            return
        if request.kind is RequestKind.METADATA:
            install.on_reply(Reply(req_id=request.req_id, status=Status.OK, body=content), self.now)
            return
        for first, count in request.blocks:
            for block in range(first, first + count):
                piece = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
                install.on_piece(short_digest(request.digest or ""), block * UNITS_OF_A_BLOCK, piece, self.now)

    def until(self, *states: State) -> None:
        """Turn the loop until the device is in one of some states."""
        deadline = time.monotonic() + PATIENCE_S
        while self.state not in states:
            assert time.monotonic() < deadline, f"still {self.state}"
            # Beside the self-test another thread hashes the files, in its own time.
            self.turn(0.0 if self.state is State.SELF_TEST else 0.1)
            if self.state is State.SELF_TEST:
                time.sleep(0.001)

    def bring_to(self, state: State) -> None:
        if state not in PULLED:
            super().bring_to(state)
            return
        self.runner.prepared = False
        self.installer.begin(self.desired(2))
        self.until(state)


PULLED = (
    State.RESOLVING, State.SELECTING, State.DOWNLOADING, State.VERIFYING, State.SELF_TEST, State.ACTIVATING,
)  # fmt: skip
"""States that an installation comes to by itself; there is nothing to measure here."""


def fill(folder: Path) -> Path:
    """Leave no byte free on the disk of a folder; returns what it takes to free it."""
    filler = folder / FILLER
    for size in (65_536, 4096, 1):
        with suppress(OSError), filler.open("ab", buffering=0) as stream:
            while stream.write(b"\0" * size) == size:
                pass
    return filler
