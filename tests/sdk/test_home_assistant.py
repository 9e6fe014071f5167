"""What Home Assistant gets: against its schema, against a store, and over a real broker with a login."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.protocol.measurements import Thermal
from edgefleet.server import cli, home_assistant, home_link
from edgefleet.server.home_assistant import Seen
from edgefleet.server.home_link import HomeLink, HomeSettings, read_login
from edgefleet.server.service import Server, ServerSettings
from edgefleet.server.store import DeviceTelemetry, Store
from edgefleet.spans import merge
from edgefleet_demo.processes import ProcessGroup, free_port
from patience import PATIENCE_S
from sdk import wire_examples
from sdk.fleet_made import found
from sdk.home_assistant_cases import CASES, DEVICE, FLEET, ROW, SEEN, SPAN, changed, sent
from sdk.home_assistant_schema import OBJECT_ID, Discovery, UpdateState, value


@pytest.mark.parametrize("seen", CASES.values(), ids=CASES)
def test_every_message_keeps_to_the_schema(seen: Seen) -> None:
    discovery, figures, update = home_assistant.messages(FLEET, seen)
    assert all((message.retained, message.qos) == (True, 1) for message in (discovery, figures, update))
    prefix, kind, object_id, last = discovery.topic.split("/")
    assert (prefix, kind, last) == ("homeassistant", "device", "config")
    assert OBJECT_ID.match(object_id)
    Discovery.model_validate_json(discovery.payload)
    UpdateState.model_validate_json(update.payload)
    assert set(json.loads(figures.payload)) >= set(home_assistant.ENTITIES)
    assert re.search(rb"[\x00-\x1f]", figures.payload + update.payload) is None


@pytest.mark.parametrize("seen", CASES.values(), ids=CASES)
def test_every_template_makes_a_state_of_what_is_sent(seen: Seen) -> None:
    payloads = sent(seen)
    discovery = Discovery.model_validate_json(payloads[home_assistant.discovery_topic(FLEET, DEVICE)])
    assert discovery.availability_mode == "all"
    for key, component in discovery.components.items():
        assert component.qos == 1
        payload = payloads[component.state_topic]
        if component.platform == "update":
            continue
        assert component.value_template is not None
        shown = value(component.value_template, payload)
        assert len(shown) <= 255
        if component.platform == "binary_sensor":
            assert shown in {component.payload_on, component.payload_off, "None"}, key
        elif component.options is not None:
            assert shown in {*component.options, "None"}
        elif component.state_class is not None:
            assert shown == "None" or float(shown) >= 0, key
        if component.json_attributes_template is not None:
            assert isinstance(json.loads(value(component.json_attributes_template, payload)), dict)


def test_every_entity_has_a_name_of_its_own_for_ever() -> None:
    names = [
        component.unique_id
        for device in ("a", "a-b", "b")
        for component in Discovery.model_validate(
            home_assistant.discovery(FLEET, changed(device=device))
        ).components.values()
    ]
    assert len(names) == len(set(names)) == 3 * (len(home_assistant.ENTITIES) + 1)


def test_the_figures_are_those_of_the_span() -> None:
    shown = home_assistant.figures(SEEN)
    assert shown["latency_p50"] == pytest.approx(SPAN.inference.quantile(0.5) * 1000, rel=1e-3)
    assert shown["rate"] == pytest.approx(SPAN.count / SPAN.duration_s, rel=1e-3)
    assert (shown["online"], shown["state"], shown["variant"]) == ("ON", "committed", "litert-int8")
    assert SPAN.energy is not None
    assert shown["power"] == pytest.approx(SPAN.energy.watts, rel=1e-3)
    assert shown["about_power"]["source"] == SPAN.energy.source


@pytest.mark.parametrize(("throttled", "shown"), [(True, "ON"), (False, "OFF"), (None, None)])
def test_heat_is_that_of_the_newest_window_and_not_known_where_the_board_does_not_tell(
    throttled: bool | None, shown: str | None
) -> None:
    window = wire_examples.telemetry(1).window
    newest = window.model_copy(update={"thermal": Thermal(temperature_c=61.25, throttled=throttled)})
    span = merge([newest, window])
    figures = home_assistant.figures(Seen(ROW, DeviceTelemetry(2, 2, 0, 0, 0, span), None, None))
    assert (figures["temperature"], figures["throttled"]) == (61.25, shown)


def test_a_device_that_is_gone_is_unavailable_but_its_connection_is_known() -> None:
    payloads = sent(changed(online=False))
    discovery = Discovery.model_validate_json(payloads[home_assistant.discovery_topic(FLEET, DEVICE)])
    _, of_device = discovery.availability
    assert of_device.value_template is not None
    assert value(of_device.value_template, payloads[of_device.topic]) == "offline"
    assert [entry.topic for entry in discovery.components["online"].availability] == ["edgefleet/home/server"]
    assert discovery.components["power"].availability == []


NO_UPDATE = {"release_summary": "", "in_progress": False, "update_percentage": None}
UPDATE = {"title": "digits", "installed_version": "1.0", "latest_version": "1.1"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("all is well", UPDATE | NO_UPDATE),
        ("nothing wanted", UPDATE | NO_UPDATE | {"latest_version": "1.0"}),
        ("it never ran anything", NO_UPDATE),
        ("in the middle of an update", UPDATE | NO_UPDATE | {"in_progress": True, "update_percentage": 33}),
        ("before the first byte", UPDATE | NO_UPDATE | {"in_progress": True}),
        ("another package than it shall run", UPDATE | NO_UPDATE | {"installed_version": "none"}),
    ],
)
def test_the_update_is_what_runs_against_what_shall(case: str, expected: dict[str, object]) -> None:
    assert home_assistant.update(CASES[case]) == expected


def test_nothing_of_home_assistants_can_install() -> None:
    for component in home_assistant.discovery(FLEET, SEEN)["components"].values():
        assert "command_topic" not in component


@pytest.mark.parametrize("content", ["", "user", ":password", "user:pass\nmore", "\n"])
def test_a_login_that_is_none_is_refused_without_a_word_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "login").write_text(content)
    with pytest.raises(InputError, match="it is not one line of USER:PASSWORD") as refused:
        read_login(tmp_path / "login")
    assert "pass" not in str(refused.value)


# Over a broker ----------------------------------------------------------------------------------------


@pytest.fixture(name="group")
def _group(tmp_path: Path) -> Iterator[ProcessGroup]:
    (tmp_path / "logs").mkdir()
    with ProcessGroup(tmp_path / "logs") as group:
        yield group


@pytest.fixture(name="address")
def _address(tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]) -> BrokerAddress:
    """A broker as Home Assistant's is: a name and a password, and no certificates."""
    mosquitto = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    need(mosquitto is not None and shutil.which("mosquitto_passwd") is not None, "mosquitto")
    assert mosquitto is not None
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(tmp_path / "users"), "fleet", "a:b secret"], check=True)
    (tmp_path / "users").chmod(0o644)
    port = free_port()
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {tmp_path}/users\nuser {getpass.getuser()}\n"
    )
    group.start("broker", (mosquitto, "-c", str(tmp_path / "mosquitto.conf")))
    return BrokerAddress("127.0.0.1", port)


class Home:
    """Home Assistant's end: hears everything."""

    def __init__(self, address: BrokerAddress) -> None:
        self.heard: dict[str, bytes] = {}
        self.connection = Connection(
            address, Identity("home-assistant", "fleet", "a:b secret"), [("homeassistant/#", 1), ("edgefleet/#", 1)],
            on_message=lambda topic, payload, _retained: self.heard.update({topic: payload}),
            on_connected=lambda: None,
        )  # fmt: skip

    def until(self, ready: Callable[[], bool], *others: Callable[[], None]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            assert time.monotonic() < deadline, self.heard
            self.connection.poll(0.01)
            for other in others:
                other()


def test_a_fleet_is_shown_changes_and_is_forgotten_again(
    tmp_path: Path, address: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "login").write_text("fleet:a:b secret\n")
    store = Store(tmp_path / "store.sqlite")
    with store.transaction():
        store.add_facts(DEVICE, wire_examples.FACTS, 1.0)
    link = HomeLink(HomeSettings(address, *read_login(tmp_path / "login")), FLEET, store)
    home, now = Home(address), [0.0]

    def turn() -> None:
        now[0] += home_link.LOOK_EVERY_S
        link.turn(now[0])

    discovery, server = home_assistant.discovery_topic(FLEET, DEVICE), home_assistant.server_topic(FLEET)
    home.until(lambda: {discovery, server} <= set(home.heard), turn)
    Discovery.model_validate_json(home.heard[discovery])
    assert home.heard[server] == b"online"
    home.heard.clear()
    with store.transaction():
        store.set_online(DEVICE, wire_examples.online(99, enrolment_id=wire_examples.FACTS.enrolment_id, online=True))
    figures = home_assistant.figures_topic(FLEET, DEVICE)
    home.until(lambda: figures in home.heard, turn)
    # What did not change is not said again.
    assert set(home.heard) == {figures}
    monkeypatch.setattr(store, "devices", list)
    home.until(lambda: home.heard.get(discovery) == b"", turn)
    link.close()
    home.until(lambda: home.heard.get(server) == b"offline")
    home.connection.close()
    store.close()


def test_a_server_shows_its_fleet_though_the_fleets_own_broker_is_away(tmp_path: Path, address: BrokerAddress) -> None:
    fleet = found(tmp_path / "fleet")
    with fleet.store.transaction():
        fleet.store.add_facts(DEVICE, wire_examples.FACTS, 1.0)
    fleet.store.close()
    settings = ServerSettings(
        fleet.data, BrokerAddress("127.0.0.1", free_port()), tls=False, own_hubs=0,
        home=HomeSettings(address, "fleet", "a:b secret"),
    )  # fmt: skip
    server, home = Server(settings), Home(address)
    discovery = home_assistant.discovery_topic(FLEET, DEVICE)
    home.until(lambda: discovery in home.heard, server.turn)
    Discovery.model_validate_json(home.heard[discovery])
    server.store.close()
    home.connection.close()


def test_the_option_of_the_server_says_where_and_who(tmp_path: Path) -> None:
    (tmp_path / "login").write_text("fleet:secret")
    assert cli._home_settings(None, None) is None
    assert cli._home_settings("ha.lan:1883", tmp_path / "login") == HomeSettings(
        BrokerAddress("ha.lan", 1883), "fleet", "secret"
    )
    assert cli._home_settings("ha.lan:1883", None) == HomeSettings(BrokerAddress("ha.lan", 1883))
    assert {"--home-assistant", "--home-assistant-login"} <= {name for each in cli.server.params for name in each.opts}


def test_a_broker_that_does_not_take_us_costs_the_server_nothing(tmp_path: Path, address: BrokerAddress) -> None:
    store = Store(tmp_path / "store.sqlite")
    link = HomeLink(HomeSettings(address, "fleet", "wrong"), FLEET, store)
    deadline = time.monotonic() + PATIENCE_S
    while link.connection.last_failure != "it does not allow this client":
        assert time.monotonic() < deadline, link.connection.last_failure
        link.turn(time.monotonic())
    assert not link.connection.connected
    link.close()
    store.close()


def test_what_forgets_a_device_is_nothing_retained_on_each_of_its_topics() -> None:
    cleared = list(home_assistant.forgotten(FLEET, DEVICE))
    assert cleared[0] == Outgoing("homeassistant/device/edgefleet_home_pi-kitchen/config", b"", 1, True)
    assert {message.topic for message in cleared} == set(sent(SEEN))
