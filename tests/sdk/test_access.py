"""The broker's access list and configuration, as text; on a real broker: tests/fleet/test_broker_access.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet.protocol import topics
from edgefleet.protocol.access import (
    MAX_PACKET_BYTES,
    REMOVAL_USER,
    BrokerFiles,
    access_list,
    mosquitto_configuration,
)
from edgefleet.protocol.topics import HUB_USERS, SERVER_USER, TOPICS, Role, TopicName

FLEET = "home"
LINES = [line for line in access_list(FLEET).splitlines() if line]
ROLES = {SERVER_USER: (Role.SERVER, Role.HUB), **dict.fromkeys(HUB_USERS, (Role.HUB,))}
OF_DEVICES = [name for name, row in TOPICS.items() if "{device}" in row.pattern]
FILES = BrokerFiles(
    *(Path("/etc/edgefleet") / name for name in ("ca-chain.crt", "broker.crt", "broker.key", "crl.pem"))
)


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7, for patterns without `#`."""
    levels, parts = pattern.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(a in ("+", b) for a, b in zip(levels, parts, strict=True))


def may(user: str, verb: str, topic: str) -> bool:
    """What mosquitto grants: the user's own `topic` lines, and every `pattern` line with %u replaced."""
    current: str | None = None
    for line in LINES:
        kind, _, rest = line.partition(" ")
        if kind == "user":
            current = rest
            continue
        granted, _, pattern = rest.partition(" ")
        mine = current == user if kind == "topic" else True
        if mine and granted in (verb, "readwrite") and matches(pattern.replace("%u", user), topic):
            return True
    return False


def address(name: TopicName, device: str, fleet: str = FLEET) -> str:
    return topics.topic_for(fleet, name, device, sha12="0" * 12)


@pytest.mark.parametrize("name", OF_DEVICES)
def test_a_device_touches_its_own_topics_in_the_tables_direction_only(name: TopicName) -> None:
    row = TOPICS[name]
    assert may("pi", "write", address(name, "pi")) == (row.writer is Role.DEVICE)
    assert may("pi", "read", address(name, "pi")) == (row.reader is Role.DEVICE)
    for foreign in (
        address(name, "nuc"),
        address(name, "pi", "office"),
        address(name, "+"),
        address(name, SERVER_USER),
    ):
        assert not may("pi", "write", foreign)
        assert not may("pi", "read", foreign)


@pytest.mark.parametrize("user", ROLES)
@pytest.mark.parametrize("name", OF_DEVICES)
def test_the_servers_own_do_what_their_roles_do_for_every_device(name: TopicName, user: str) -> None:
    row, roles = TOPICS[name], ROLES[user]
    for device in ("pi", "nuc"):
        assert may(user, "write", address(name, device)) == (row.writer in roles)
        assert may(user, "read", address(name, device)) == (row.reader in roles)
        assert not may(user, "write", address(name, device, "office"))
        assert not may(user, "read", address(name, device, "office"))


@pytest.mark.parametrize("name", OF_DEVICES)
def test_the_removal_touches_what_is_retained_and_nothing_else(name: TopicName) -> None:
    for verb in ("write", "read"):
        assert may(REMOVAL_USER, verb, address(name, "pi")) == TOPICS[name].retained


def test_shared_pieces_are_written_by_hubs_and_read_by_everyone_of_the_fleet() -> None:
    for user in ("pi", "nuc", *ROLES):
        assert may(user, "read", address(TopicName.SHARED, ""))
        assert may(user, "write", address(TopicName.SHARED, "")) == (user in ROLES)
        assert not may(user, "read", address(TopicName.SHARED, "", "office"))


def test_no_line_grants_everything() -> None:
    assert not any("#" in line for line in LINES)
    for_all = f"pattern read {topics.filter_for(FLEET, TopicName.SHARED)}"
    assert all("%u" in line or line == for_all for line in LINES if line.startswith("pattern "))
    assert {line.split(" ")[0] for line in LINES} == {"user", "topic", "pattern"}


def test_enrolling_changes_nothing_here() -> None:
    assert [line for line in LINES if line.startswith("user ")] == [
        f"user {name}" for name in (SERVER_USER, *HUB_USERS, REMOVAL_USER)
    ]


def configuration(*, tls: bool, listen: str | None = None, state: Path | None = None) -> list[str]:
    return mosquitto_configuration(
        port=18830, access_list_file=Path("/etc/edgefleet/acl"), user="nobody", tls=FILES if tls else None, host=listen,
        persistence_folder=state,
    ).splitlines()  # fmt: skip


def test_without_tls_it_listens_on_this_machine_only() -> None:
    assert "listener 18830 127.0.0.1" in configuration(tls=False, listen="0.0.0.0")  # noqa: S104 - it is not obeyed
    assert "persistence false" in configuration(tls=False)


def test_with_tls_nobody_gets_in_without_a_certificate_that_names_him() -> None:
    lines = configuration(tls=True)
    for wanted in (
        "listener 18830", "allow_anonymous false", "require_certificate true", "use_identity_as_username true",
        "use_username_as_clientid true", "tls_version tlsv1.2", f"crlfile {FILES.crl_file}", f"cafile {FILES.ca_file}",
    ):  # fmt: skip
        assert wanted in lines
    assert not any("password" in line or "anonymous true" in line for line in lines)


@pytest.mark.parametrize("tls", [False, True])
def test_what_every_configuration_says(tls: bool) -> None:
    lines = configuration(tls=tls, state=Path("/var/lib/edgefleet"))
    settings = [line.split(" ")[0] for line in lines if line and not line.startswith("#")]
    assert len([name for name in settings if name != "log_type"]) == len({*settings} - {"log_type"})
    assert "acl_file /etc/edgefleet/acl" in lines
    assert "set_tcp_nodelay true" in lines
    assert "user nobody" in lines
    assert "use_username_as_clientid true" in lines
    assert "persistence_location /var/lib/edgefleet/" in lines


def test_a_block_and_the_longest_topic_fit_into_a_packet() -> None:
    longest = topics.topic_for("f" * 63, TopicName.BLOCKS, "d" * 63, sha12="0" * 12, piece=999_999_999)
    headers = 1 + 4 + 2 + 2 + 1
    assert 60 * 1024 + len(longest) + headers <= MAX_PACKET_BYTES


def test_a_device_may_write_a_bounded_number_of_topics() -> None:
    writable = [line.split()[2] for line in LINES if line.startswith("pattern write")]
    assert not [pattern for pattern in writable if "+" in pattern or "#" in pattern]
    assert may("pi", "write", address(TopicName.REQUEST, "pi"))
    assert not may("pi", "write", f"{topics.PREFIX}/{FLEET}/req/anything/pi")
