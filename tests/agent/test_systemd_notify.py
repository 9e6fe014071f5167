"""The line to the service manager: a real datagram socket, and the loop that must pet it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.agent_lab import Fleet, write_settings
from edgefleet_agent import status
from edgefleet_agent.notify import Notifier, watched
from edgefleet_demo.processes import EDGEFLEET, free_port
from patience import PATIENCE_S


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"}

    def heard(self) -> list[str]:
        said = []
        while True:
            try:
                said.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return said


@pytest.fixture(name="manager", params=["path", "abstract"])
def _manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"@edgefleet-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_ready_once_pets_at_half_the_interval_and_says_what_changes(manager: Manager) -> None:
    now, ends = [0.0], [False]
    turn = watched(lambda: ends[0], Notifier(manager.environment), lambda at: f"turn at {at // 50:.0f}", lambda: now[0])
    assert turn() is False
    assert manager.heard() == ["READY=1", "WATCHDOG=1", "STATUS=turn at 0"]
    now[0] = 29.9
    turn()
    assert manager.heard() == []
    now[0] = 30.0
    turn()
    assert manager.heard() == ["WATCHDOG=1"]
    now[0], ends[0] = 61.0, True
    assert turn() is True
    assert manager.heard() == ["WATCHDOG=1", "STATUS=turn at 1", "STOPPING=1"]


def test_a_status_has_one_line(manager: Manager) -> None:
    Notifier(manager.environment).status("connected\nREADY=1")
    assert manager.heard() == ["STATUS=connected"]


@pytest.mark.parametrize(
    ("environment", "every_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_interval_is_the_managers(environment: dict[str, str], every_s: float | None) -> None:
    assert Notifier(environment).pet_every_s == every_s


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nonexistent/socket", "WATCHDOG_USEC": "1000000"}])
def test_nobody_listens_and_nothing_happens(environment: dict[str, str]) -> None:
    turn = watched(lambda: True, Notifier(environment), lambda _: "running")
    assert turn() is True


def test_an_agent_that_runs_says_so_and_notes_how_it_is(home: Fleet, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    home.enroll(tmp_path / "identity", port=free_port())
    np.savez(tmp_path / "inputs.npz", x=np.zeros((1, 1, 8, 8), dtype=np.float32))
    write_settings(tmp_path)
    heard: list[str] = []
    agent = subprocess.Popen(
        [*EDGEFLEET, "agent", "run", "--config", str(tmp_path / "agent.toml")],
        env={**os.environ, **manager.environment, "WATCHDOG_USEC": "200000"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        manager.socket.settimeout(PATIENCE_S)
        while heard.count("WATCHDOG=1") < 3:
            heard.append(manager.socket.recv(4096).decode())
        running = status.running_agent(tmp_path / "state")
    finally:
        agent.terminate()
        agent.wait(PATIENCE_S)
    assert heard[0] == "READY=1"
    assert "STATUS=not connected, nothing to infer with" in heard
    assert running is not None
    assert (running.pid, running.connected) == (agent.pid, False)
    assert status.running_agent(tmp_path / "state") is None
    manager.socket.setblocking(False)
    assert manager.heard()[-1] == "STOPPING=1"
    manager.socket.close()
