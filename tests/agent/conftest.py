"""What the agent's tests share: one founded fleet, copied for each test, and a device of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.agent_lab import Device, Fleet, Hubs, write_settings


@pytest.fixture(scope="session", name="founded")
def _founded(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.found(tmp_path_factory.mktemp("founded") / "fleet")


@pytest.fixture(name="home")
def _home(founded: Fleet, tmp_path: Path) -> Fleet:
    return founded.copy(tmp_path / "fleet")


@pytest.fixture(name="open_device")
def _open_device(home: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Device]]:
    """Opens the device pi-kitchen; again after a close is a restart."""
    opened: list[Device] = []

    def open_it() -> Device:
        if not (tmp_path / "identity").exists():
            home.enroll(tmp_path / "identity")
        opened.append(Device(write_settings(tmp_path), Hubs(home), monkeypatch))
        return opened[-1]

    yield open_it
    for device in opened:
        if not device.agent._folder.lock.closed:
            device.close()


@pytest.fixture(name="device")
def _device(open_device: Callable[[], Device]) -> Device:
    return open_device()
