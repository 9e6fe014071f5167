"""What Home Assistant is told of a fleet: for each device a discovery message, its figures, and its update. Pure.

Formats: MQTT discovery by device (Home Assistant 2024.12 and later), sensor.mqtt, binary_sensor.mqtt, update.mqtt. No
button installs: what a device runs is signed by an operator, who is neither this server nor Home Assistant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgefleet import __version__, spans
from edgefleet.errors import one_line
from edgefleet.mqtt import Outgoing
from edgefleet.protocol.messages import TERMINAL_STATES, State
from edgefleet.server.store import DeviceRow, DeviceTelemetry

PREFIX = "homeassistant"
"""Where Home Assistant looks for discovery messages, unless it was told otherwise."""
TOPIC_ROOT = "edgefleet"
ONLINE, OFFLINE = "online", "offline"
# Of the whole device it would be taken, and given to none of its entities.
QOS = 1
# Longer states are refused.
MAX_STATE_CHARS = 255
QUANTILES = {"latency_p50": 0.5, "latency_p90": 0.9}


@dataclass(frozen=True, slots=True)
class Seen:
    """One device as the server knows it."""

    row: DeviceRow
    telemetry: DeviceTelemetry | None
    """Of the variant that it runs."""
    installed: tuple[str, str] | None
    """(package, version) that it runs, where it is one of this server's."""
    wanted: tuple[str, str] | None
    """(package, version) that it shall run."""


# key of the figures → what its entity is beside its name, its topic and its template.
ENTITIES: Mapping[str, Mapping[str, Any]] = {
    "online": {"platform": "binary_sensor", "name": "Connection", "device_class": "connectivity"},
    "state": {"platform": "sensor", "name": "State", "device_class": "enum", "options": [each.value for each in State]},
    "reason": {"platform": "sensor", "name": "Reason", "icon": "mdi:message-alert-outline"},
    "variant": {"platform": "sensor", "name": "Variant", "icon": "mdi:cube-outline"},
    "latency_p50": {
        "platform": "sensor", "name": "Inference p50", "device_class": "duration", "unit_of_measurement": "ms",
    },
    "latency_p90": {
        "platform": "sensor", "name": "Inference p90", "device_class": "duration", "unit_of_measurement": "ms",
    },
    "rate": {"platform": "sensor", "name": "Inference rate", "unit_of_measurement": "1/s", "icon": "mdi:speedometer"},
    "errors": {
        "platform": "sensor", "name": "Inference errors", "unit_of_measurement": "%", "icon": "mdi:alert-outline",
    },
    "power": {"platform": "sensor", "name": "Power", "device_class": "power", "unit_of_measurement": "W"},
    "energy": {
        "platform": "sensor", "name": "Energy per inference", "unit_of_measurement": "mJ", "icon": "mdi:lightning-bolt",
    },
    "temperature": {
        "platform": "sensor", "name": "Temperature", "device_class": "temperature", "unit_of_measurement": "°C",
    },
    "throttled": {"platform": "binary_sensor", "name": "Throttled", "device_class": "problem"},
}  # fmt: skip
# Neither a state nor a number: what these say is about the device rather than of it.
DIAGNOSTIC = frozenset({"online", "state", "reason", "variant", "errors", "throttled"})
NUMBERS = frozenset({"latency_p50", "latency_p90", "rate", "errors", "power", "energy", "temperature"})
ABOUT = frozenset({"power", "energy"})
"""Have attributes that say how the number was come by."""


def server_topic(fleet: str) -> str:
    """Whether this server is connected; retained, and its will."""
    return f"{TOPIC_ROOT}/{fleet}/server"


def server_says(fleet: str, *, online: bool) -> Outgoing:
    """That the server is there, or not any more."""
    return Outgoing(server_topic(fleet), (ONLINE if online else OFFLINE).encode(), 1, True)


def messages(fleet: str, seen: Seen, prefix: str = PREFIX) -> Iterator[Outgoing]:
    """Everything about one device; all retained: discovery, figures, update."""
    device = seen.row.device
    yield _retained(discovery_topic(fleet, device, prefix), discovery(fleet, seen))
    yield _retained(figures_topic(fleet, device), figures(seen))
    yield _retained(update_topic(fleet, device), update(seen))


def forgotten(fleet: str, device: str, prefix: str = PREFIX) -> Iterator[Outgoing]:
    """What removes a device again: nothing, retained, on each of its topics."""
    for topic in (discovery_topic(fleet, device, prefix), figures_topic(fleet, device), update_topic(fleet, device)):
        yield Outgoing(topic, b"", 1, True)


def discovery_topic(fleet: str, device: str, prefix: str = PREFIX) -> str:
    """`<prefix>/device/<object id>/config`."""
    return f"{prefix}/device/{_id(fleet, device)}/config"


def figures_topic(fleet: str, device: str) -> str:
    """Where the figures of a device are."""
    return f"{TOPIC_ROOT}/{fleet}/{device}/figures"


def update_topic(fleet: str, device: str) -> str:
    """Where the state of a device's update is."""
    return f"{TOPIC_ROOT}/{fleet}/{device}/update"


def discovery(fleet: str, seen: Seen) -> dict[str, Any]:
    """One device with all its entities."""
    row = seen.row
    of_server = {"topic": server_topic(fleet)}
    of_device = {
        "topic": figures_topic(fleet, row.device),
        "value_template": f"{{{{ '{ONLINE}' if value_json.online == 'ON' else '{OFFLINE}' }}}}",
    }
    profile = one_line(row.profile or "unknown")
    return {
        "device": {
            "identifiers": [_id(fleet, row.device)],
            "name": row.device,
            "manufacturer": "edgefleet",
            "model": f"{profile}, simulated" if row.simulated else profile,
        },
        "origin": {"name": "edgefleet", "sw_version": __version__},
        # Figures of a device that is not there are of the past; whether it is there is known as long as the server is.
        "availability": [of_server, of_device],
        "availability_mode": "all",
        "components": {
            **{key: _component(fleet, row.device, key, of_server) for key in ENTITIES},
            "update": {
                "platform": "update",
                "unique_id": f"{_id(fleet, row.device)}_update",
                "name": "Model",
                "state_topic": update_topic(fleet, row.device),
                "qos": QOS,
                "availability": [of_server],
            },
        },
    }


def _component(fleet: str, device: str, key: str, of_server: dict[str, str]) -> dict[str, Any]:
    topic = figures_topic(fleet, device)
    made = {
        **ENTITIES[key],
        "unique_id": f"{_id(fleet, device)}_{key}",
        "state_topic": topic,
        "qos": QOS,
        "value_template": f"{{{{ value_json.{key} }}}}",
    }
    if key in DIAGNOSTIC:
        made["entity_category"] = "diagnostic"
        made["availability"] = [of_server]
    if key in NUMBERS:
        made["state_class"] = "measurement"
    if key in ABOUT:
        made["json_attributes_topic"] = topic
        made["json_attributes_template"] = f"{{{{ value_json.about_{key} | tojson }}}}"
    return made


def figures(seen: Seen) -> dict[str, Any]:
    """What the entities show, by their keys; null is shown as unknown."""
    row, span = seen.row, None if seen.telemetry is None else seen.telemetry.span
    total = None if span is None else span.energy
    thermal = None if span is None else span.thermal
    per_run = spans.energy_per_inference(total)
    inference = None if span is None else span.inference
    runs = 0 if span is None else span.count + span.errors
    shown: dict[str, Any] = {
        "online": _switch(on=row.online),
        "state": row.state,
        "reason": _short(row.reason or "none"),
        "variant": None if row.variant is None else _short(row.variant),
        **{
            key: None if inference is None else _ms(spans.percentile(inference, q).value)
            for key, q in QUANTILES.items()
        },
        "rate": None if span is None else _rounded(span.achieved_per_s),
        "errors": _rounded(100 * span.errors / runs) if span is not None and runs else None,
        "power": None if total is None else _rounded(total.watts),
        "energy": None if per_run.value is None else _rounded(per_run.value * 1000),
        "temperature": None if thermal is None else _rounded(thermal.temperature_c),
        # A board that does not tell is not one that keeps cool.
        "throttled": None if thermal is None or thermal.throttled is None else _switch(on=thermal.throttled),
    }
    source = {} if total is None else {"source": total.source, "scope": one_line(total.scope)}
    why = {} if total is None or total.reason is None else {"reason": one_line(total.reason)}
    shown["about_power"] = {**source, **why}
    shown["about_energy"] = {**source, **({} if per_run.reason is None else {"reason": one_line(per_run.reason)})}
    return shown


def update(seen: Seen) -> dict[str, Any]:
    """The state of the update entity. A key that is left out stays there as it was; no version may be null."""
    row, wanted = seen.row, seen.wanted
    # Another package is another title, and no version of this one.
    installed = seen.installed if wanted is None or seen.installed is None or seen.installed[0] == wanted[0] else None
    latest = wanted or installed
    shown: dict[str, Any] = {
        "release_summary": _short(row.reason or ""), "in_progress": False, "update_percentage": None,
    }  # fmt: skip
    if latest is not None:
        shown["title"], shown["latest_version"] = latest
        shown["installed_version"] = "none" if installed is None else installed[1]
    if row.state not in (None, State.IDLE, *TERMINAL_STATES):
        shown["in_progress"] = True
        if row.total_bytes and row.verified_bytes is not None:
            shown["update_percentage"] = min(100, round(100 * row.verified_bytes / row.total_bytes))
    return shown


def _id(fleet: str, device: str) -> str:
    """Names are of lower-case letters, digits and hyphens, as an object id may be."""
    return f"edgefleet_{fleet}_{device}"


def _retained(topic: str, content: Mapping[str, Any]) -> Outgoing:
    return Outgoing(topic, json.dumps(content, ensure_ascii=False, allow_nan=False).encode(), 1, True)


def _switch(*, on: bool) -> str:
    return "ON" if on else "OFF"


def _short(text: str) -> str:
    return one_line(text)[:MAX_STATE_CHARS]


def _ms(seconds: float | None) -> float | None:
    return _rounded(None if seconds is None else seconds * 1000)


def _rounded(value: float | None) -> float | None:
    """Four significant digits: figures that change in the fifth are not news."""
    return None if value is None else float(f"{value:.4g}")
