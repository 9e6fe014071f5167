"""Home Assistant itself, as far as its MQTT integration needs it: no broker, no files, no entities of anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from homeassistant.components.mqtt.models import DATA_MQTT, MqttData
from homeassistant.core import HomeAssistant


@pytest.fixture(scope="session", name="hass")
def _hass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    async def made(folder: Path) -> HomeAssistant:
        hass = HomeAssistant(str(folder))
        hass.data[DATA_MQTT] = MqttData(client=None, config=[])
        return hass

    with asyncio.Runner() as runner:
        yield runner.run(made(tmp_path_factory.mktemp("home")))
