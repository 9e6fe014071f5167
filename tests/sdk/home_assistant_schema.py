"""What Home Assistant takes, as its documents and its source say: which keys there are, and of which kind.

Sources: MQTT integration (device discovery payload), sensor.mqtt, binary_sensor.mqtt, update.mqtt, and the lists of
device classes with their units of the sensor and binary_sensor integrations, 2024.12 to 2026.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

OBJECT_ID = re.compile(r"^[a-zA-Z0-9_-]+$")
# Device class → units, of those that we use.
SENSOR_UNITS: dict[str, set[str | None]] = {
    "duration": {"d", "h", "min", "s", "ms", "µs"},
    "power": {"mW", "W", "kW", "MW", "GW", "TW", "BTU/h"},
    "temperature": {"°C", "°F", "K"},
    "enum": {None},
}
BINARY_CLASSES = {"connectivity", "problem"}


def _is_topic(topic: str) -> str:
    """valid_subscribe_topic: UTF-8 of at most 65535 bytes, no NUL; and none of ours has a wildcard."""
    if not topic or "\0" in topic or len(topic.encode()) > 65535 or "+" in topic or "#" in topic:
        raise ValueError(f"{topic!r} is no topic")
    return topic


def _is_template(text: str) -> str:
    if text.count("{{") != text.count("}}") or "{{" not in text:
        raise ValueError(f"{text!r} is no template")
    return text


Topic = Annotated[str, AfterValidator(_is_topic)]
Template = Annotated[str, AfterValidator(_is_template)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Availability(_Strict):
    """One entry of `availability`."""

    topic: Topic
    payload_available: str = "online"
    payload_not_available: str = "offline"
    value_template: Template | None = None


class Device(_Strict):
    """`device`."""

    identifiers: list[str] = Field(min_length=1)
    connections: list[tuple[str, str]] = []
    configuration_url: str | None = None
    hw_version: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    model_id: str | None = None
    name: str
    serial_number: str | None = None
    suggested_area: str | None = None
    sw_version: str | None = None
    via_device: str | None = None


class Origin(_Strict):
    """`origin`."""

    name: str
    sw_version: str | None = None
    support_url: str | None = None


class _Entity(_Strict):
    unique_id: str
    name: str | None = None
    state_topic: Topic
    value_template: Template | None = None
    availability: list[Availability] = []
    availability_mode: Literal["all", "any", "latest"] = "latest"
    entity_category: Literal["diagnostic"] | None = None
    enabled_by_default: bool = True
    icon: Annotated[str, Field(pattern=r"^mdi:[a-z0-9-]+$")] | None = None
    json_attributes_topic: Topic | None = None
    json_attributes_template: Template | None = None
    qos: Literal[0, 1, 2] = 0


class Sensor(_Entity):
    """sensor.mqtt."""

    platform: Literal["sensor"]
    device_class: str | None = None
    expire_after: Annotated[int, Field(ge=0)] | None = None
    force_update: bool = False
    options: list[str] | None = None
    suggested_display_precision: int | None = None
    state_class: Literal["measurement", "total", "total_increasing"] | None = None
    unit_of_measurement: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """The checks of `validate_sensor_state_and_device_class_config`."""
        if self.device_class is not None and self.unit_of_measurement not in SENSOR_UNITS[self.device_class]:
            raise ValueError(f"{self.unit_of_measurement!r} is no unit of {self.device_class}")
        if self.options is not None and (
            not self.options or self.device_class != "enum" or self.state_class or self.unit_of_measurement
        ):
            raise ValueError("options are of an enum sensor without a unit")
        if self.device_class == "enum" and not self.options:
            raise ValueError("an enum needs options")
        return self


class BinarySensor(_Entity):
    """binary_sensor.mqtt."""

    platform: Literal["binary_sensor"]
    device_class: str | None = None
    expire_after: int | None = None
    off_delay: int | None = None
    payload_on: str = "ON"
    payload_off: str = "OFF"

    @model_validator(mode="after")
    def _is_of_a_class(self) -> Self:
        if self.device_class is not None and self.device_class not in BINARY_CLASSES:
            raise ValueError(f"{self.device_class!r} is no class of binary sensors")
        return self


class Update(_Entity):
    """update.mqtt."""

    platform: Literal["update"]
    command_topic: Topic | None = None
    device_class: Literal["firmware"] | None = None
    display_precision: int = 0
    entity_picture: str | None = None
    latest_version_template: Template | None = None
    latest_version_topic: Topic | None = None
    payload_install: str | None = None
    release_summary: str | None = None
    release_url: str | None = None
    retain: bool = False
    title: str | None = None


class Discovery(_Strict):
    """The payload of `<prefix>/device/<object id>/config`."""

    device: Device
    origin: Origin
    components: dict[str, Annotated[Sensor | BinarySensor | Update, Field(discriminator="platform")]]
    availability: list[Availability] = []
    availability_mode: Literal["all", "any", "latest"] = "latest"
    state_topic: Topic | None = None
    command_topic: Topic | None = None
    qos: Literal[0, 1, 2] = 0
    encoding: str = "utf-8"


class UpdateState(_Strict):
    """MQTT_JSON_UPDATE_SCHEMA: any other key, and null anywhere but in the percentage, drops the whole message."""

    installed_version: str = ""
    latest_version: str = ""
    title: str = ""
    release_summary: Annotated[str, Field(max_length=255)] = ""
    release_url: str = ""
    entity_picture: str = ""
    in_progress: bool = False
    update_percentage: Annotated[int, Field(ge=0, le=100)] | None = None


def value(template: str, payload: bytes) -> str:
    """What one of our templates makes of a payload: `{{ value_json.KEY }}`, with `| tojson`, or the choice by `==`.

    Jinja's own None is `None`, which stands for unknown.
    """
    content = TypeAdapter(dict[str, Any]).validate_json(payload)
    body = template.removeprefix("{{").removesuffix("}}").strip()
    if match := re.fullmatch(r"'(\w+)' if value_json\.(\w+) == '(\w+)' else '(\w+)'", body):
        return match[1] if content[match[2]] == match[3] else match[4]
    if match := re.fullmatch(r"value_json\.(\w+) \| tojson", body):
        return TypeAdapter(Any).dump_json(content[match[1]]).decode()
    match = re.fullmatch(r"value_json\.(\w+)", body)
    assert match is not None, template
    return str(content[match[1]])
