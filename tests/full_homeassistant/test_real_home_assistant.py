"""What Home Assistant itself makes of our messages: its schemas, its templates, its entities.

Runs in the environment of constraints/homeassistant.txt: the last release that takes every Python 3.13.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import voluptuous as vol
from homeassistant.components.mqtt import binary_sensor, discovery, sensor, update
from homeassistant.components.mqtt.models import MqttValueTemplate, ReceiveMessage
from homeassistant.core import HomeAssistant

from edgefleet.protocol.messages import State
from edgefleet.server import home_assistant
from edgefleet.server.home_assistant import Seen
from sdk.home_assistant_cases import CASES, DEVICE, FLEET, SEEN, changed, sent

PLATFORMS = {
    "sensor": (sensor, sensor.MqttSensor),
    "binary_sensor": (binary_sensor, binary_sensor.MqttBinarySensor),
    "update": (update, update.MqttUpdate),
}
OBJECT_ID = home_assistant.discovery_topic(FLEET, DEVICE).split("/")[2]
SHOWN_SWITCH = {"ON": "on", "OFF": "off", None: None}

Discovery = dict[str, Any]


def components(hass: HomeAssistant, payload: str) -> dict[str, Discovery]:
    """Key → configuration, as Home Assistant makes it of a discovery message; empty where it refuses the message."""
    device = discovery._parse_device_payload(hass, payload, OBJECT_ID, None)
    made = {}
    for key, component in device.get("components", {}).items():
        config = discovery.MQTTDiscoveryPayload(component | {"device": device["device"], "origin": device["origin"]})
        discovery._merge_common_device_options(config, device)
        made[key] = dict(config)
    return made


def entity(hass: HomeAssistant, component: Discovery) -> Any:
    """The entity of a component; raises vol.Invalid where its schema does, or where it knows one of the keys not."""
    config = {key: value for key, value in component.items() if key != "platform"}
    module, made_by = PLATFORMS[component["platform"]]
    # That of discovery drops what it does not know without a word, the one for files does not.
    module.PLATFORM_SCHEMA_MODERN(dict(config))
    made = made_by(hass, module.DISCOVERY_SCHEMA(dict(config)), None, None)
    made.hass, made.entity_id = hass, f"{component['platform']}.{component['unique_id']}"
    return made


def entities(hass: HomeAssistant, seen: Seen) -> dict[str, Any]:
    payload = sent(seen)[home_assistant.discovery_topic(FLEET, DEVICE)].decode()
    return {key: entity(hass, component) for key, component in components(hass, payload).items()}


def message(topic: str, payloads: Mapping[str, bytes]) -> ReceiveMessage:
    return ReceiveMessage(topic, payloads[topic].decode(), 1, True, topic, 0.0)


def hear(shown: Any, payloads: Mapping[str, bytes]) -> None:
    """Give an entity what is retained on its topics."""
    state = message(shown._config["state_topic"], payloads)
    receive = (
        shown._handle_state_message_received if isinstance(shown, update.MqttUpdate) else shown._state_message_received
    )
    receive(state)
    if "json_attributes_topic" in shown._config:
        shown._attributes_prepare_subscribe_topics()
        shown._attributes_message_received(message(shown._config["json_attributes_topic"], payloads))


@pytest.mark.parametrize("seen", CASES.values(), ids=CASES)
def test_every_entity_is_taken_as_it_is_and_shows_what_was_sent(
    hass: HomeAssistant, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    payloads, figures = sent(seen), home_assistant.figures(seen)
    made = entities(hass, seen)
    assert set(made) == {*home_assistant.ENTITIES, "update"}
    for key, shown in made.items():
        assert shown._config["qos"] == 1
        hear(shown, payloads)
        if key == "update":
            continue
        expected = figures[key]
        if isinstance(shown, binary_sensor.MqttBinarySensor):
            assert shown.state == SHOWN_SWITCH[expected], key
        else:
            assert (shown.state if expected is None else type(expected)(shown.state)) == expected, key
        if key in home_assistant.ABOUT:
            assert shown.extra_state_attributes == figures[f"about_{key}"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_topics_are_ones_that_it_listens_to() -> None:
    topic = home_assistant.discovery_topic(FLEET, DEVICE).removeprefix("homeassistant/")
    match = discovery.TOPIC_MATCHER.match(topic)
    assert match is not None
    assert match.groups() == ("device", None, OBJECT_ID)


@pytest.mark.parametrize("online", [True, False])
def test_figures_are_there_while_their_device_is_and_its_connection_while_the_server_is(
    hass: HomeAssistant, online: bool
) -> None:
    seen = changed(online=online)
    payloads = sent(seen) | {home_assistant.server_topic(FLEET): home_assistant.server_says(FLEET, online=True).payload}
    made = entities(hass, seen)

    def available(key: str) -> list[bool]:
        config = made[key]._config
        assert config["availability_mode"] == "all"
        return [
            MqttValueTemplate(each.get("value_template"), entity=made[key]).async_render_with_possible_json_value(
                payloads[each["topic"]].decode()
            ) == each["payload_available"]
            for each in config["availability"]
        ]  # fmt: skip

    assert available("power") == available("temperature") == [True, online]
    assert available("online") == available("state") == available("update") == [True]


def test_an_update_leaves_nothing_of_the_one_before(hass: HomeAssistant) -> None:
    shown = entities(hass, SEEN)["update"]

    def after(**changes: Any) -> tuple[str | None, bool, int | None, str | None]:
        hear(shown, sent(changed(**changes)))
        return shown.state, shown.in_progress, shown.update_percentage, shown.release_summary

    loading: dict[str, Any] = {"state": State.DOWNLOADING, "total_bytes": 90}
    assert after() == ("on", False, None, "")
    assert after(**loading, verified_bytes=30) == ("on", True, 33, "")
    assert after(state=State.FAILED, reason="it does not fit") == ("on", False, None, "it does not fit")
    assert after(state=State.RESOLVING, verified_bytes=None) == ("on", True, None, "")
    assert (shown.title, shown.installed_version, shown.latest_version) == ("digits", "1.0", "1.1")
    hear(shown, sent(CASES["nothing wanted"]))
    assert shown.state == "off"


# What must be refused, so that the rest says something ------------------------------------------------


def _without_identifiers(message: Discovery) -> None:
    del message["device"]["identifiers"]


def _without_origin(message: Discovery) -> None:
    del message["origin"]


def _with_another_platform(message: Discovery) -> None:
    message["components"]["power"]["platform"] = "power_plant"


def _without_a_unique_id(message: Discovery) -> None:
    del message["components"]["power"]["unique_id"]


@pytest.mark.parametrize("spoil", [_without_identifiers, _without_origin, _with_another_platform, _without_a_unique_id])
def test_a_spoilt_device_is_refused(
    hass: HomeAssistant, spoil: Callable[[Discovery], None], caplog: pytest.LogCaptureFixture
) -> None:
    content = home_assistant.discovery(FLEET, SEEN)
    spoil(content)
    assert components(hass, json.dumps(content)) == {}
    assert "Invalid MQTT device discovery payload" in caplog.text


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("power", {"state_topic": "edgefleet/#/figures"}),
        ("power", {"device_class": "might"}),
        ("power", {"value_template": "{{ value_json.power"}),
        ("power", {"state_class": "measured"}),
        ("power", {"qos": 3}),
        ("power", {"wattage": 3}),
        ("state", {"unit_of_measurement": "W"}),
        ("state", {"options": []}),
        ("throttled", {"device_class": "hot"}),
        ("online", {"entity_category": "gossip"}),
        ("update", {"device_class": "model"}),
    ],
)
def test_a_spoilt_component_is_refused(hass: HomeAssistant, key: str, changes: Discovery) -> None:
    component = components(hass, json.dumps(home_assistant.discovery(FLEET, SEEN)))[key]
    entity(hass, component)
    with pytest.raises(vol.Invalid):
        entity(hass, component | changes)


@pytest.mark.parametrize("changes", [{"title": None}, {"update_percentage": 101}, {"progress": 3}])
def test_a_spoilt_update_changes_nothing(
    hass: HomeAssistant, changes: Discovery, caplog: pytest.LogCaptureFixture
) -> None:
    shown, topic = entities(hass, SEEN)["update"], home_assistant.update_topic(FLEET, DEVICE)
    hear(shown, {topic: json.dumps(home_assistant.update(SEEN) | {"title": "faces"} | changes).encode()})
    assert shown.title is None
    assert "Schema violation" in caplog.text
