"""Many devices in one process: each an agent's `Install` on a connection of its own, turned by one loop.

For what a thousand devices do to a server, not for how fast one is. It prints `ready` once all are connected, begins
at the first line of its input, prints `done` when all installations have ended, and at the end of its input one JSON
line per device: what happened when.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from transport_device import Device, Plan

TURN_S = 0.1
EVERYONE_EVERY_S = 0.5


@dataclass
class Member:
    """One device and the times of what happened to it."""

    device: Device
    said: list[dict[str, object]] = field(default_factory=list)

    def turn(self) -> None:
        """Serve the connection, then the installation."""
        device = self.device
        before = sum(device.outcome.requests.values())
        device.connection.poll(0.0)
        device.tick()
        for _ in range(sum(device.outcome.requests.values()) - before):
            self.note("request")

    def note(self, kind: str) -> None:
        """Something happened now."""
        self.said.append({"kind": kind, "at": time.monotonic()})

    def report(self) -> dict[str, object]:
        """For the JSON line."""
        outcome = self.device.outcome
        return {
            "device": self.device.plan.device, "said": self.said, "connected": self.device.connection.connected,
            "state": outcome.state, "reason": outcome.reason, "at": outcome.at, "requests": outcome.requests,
            "received_bytes": outcome.received_bytes,
        }  # fmt: skip


def _member(plan: Plan) -> Member:
    said: list[dict[str, object]] = []
    return Member(Device(plan, lambda kind: said.append({"kind": kind, "at": time.monotonic()})), said)


class Swarm:
    """The loop."""

    def __init__(self, members: list[Member]) -> None:
        """Nothing is connected yet."""
        self.members = members
        self._everyone_at = 0.0

    def turn(self) -> None:
        """Wait for any of them, serve those that have something, and all of them twice a second."""
        waiting, owners, timeout_s = select.poll(), dict[int, Member](), TURN_S
        for member in self.members:
            connection = member.device.connection
            descriptors = [descriptor for descriptor in (connection.fileno(),) if descriptor >= 0]
            for descriptor in [*descriptors, *member.device.descriptors()]:
                owners[descriptor] = member
                waiting.register(descriptor, select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
            if connection.has_input:
                timeout_s = 0.0
        ready = {id(owners[descriptor]) for descriptor, _ in waiting.poll(timeout_s * 1000)}
        everyone = time.monotonic() - self._everyone_at > EVERYONE_EVERY_S
        if everyone:
            self._everyone_at = time.monotonic()
        for member in self.members:
            if everyone or id(member) in ready or member.device.connection.has_input:
                member.turn()


def main(plans: list[Plan]) -> None:
    """The process."""
    swarm = Swarm([_member(plan) for plan in plans])
    while not all(member.device.connection.connected for member in swarm.members):
        swarm.turn()
    print("ready", flush=True)
    begun = said_done = False
    while True:
        if select.select([0], [], [], 0)[0]:
            if not os.read(0, 1024):
                break
            for member in swarm.members if not begun else ():
                member.device.begin()
            begun = True
        swarm.turn()
        if not said_done and all(member.device.done for member in swarm.members):
            print("done", flush=True)
            said_done = True
    for member in swarm.members:
        print(json.dumps(member.report()), flush=True)


if __name__ == "__main__":
    main([Plan(**each) for each in json.loads(Path(sys.argv[1]).read_text())])
