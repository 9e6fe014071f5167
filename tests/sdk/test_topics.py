"""The topic table, and what the broker's access list makes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgefleet.errors import InputError
from edgefleet.protocol import topics
from edgefleet.protocol.access import access_list, mosquitto_configuration
from edgefleet.protocol.topics import SERVER_USER, TOPICS, Role, TopicName

FLEET = "home"
ADDRESS_FIELDS = {TopicName.BLOCKS: {"sha12": "0123456789ab", "piece": 17}}
NAMES = st.from_regex(re.compile(topics.NAME_PATTERN, re.ASCII), fullmatch=True)


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7, for patterns without `#`."""
    levels, parts = pattern.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(a in ("+", b) for a, b in zip(levels, parts, strict=True))


@pytest.mark.parametrize("name", TopicName)
def test_every_row_is_formatted_and_parsed_again(name: TopicName) -> None:
    fields = ADDRESS_FIELDS.get(name, {})
    topic = topics.topic_for(FLEET, name, "pi-5", **fields)  # type: ignore[arg-type]
    assert topic.startswith("edgefleet/1/home/")
    assert topics.parse(FLEET, topic) == topics.Address(name, "pi-5", **fields)  # type: ignore[arg-type]
    assert topics.parse("office", topic) is None
    assert topics.parse(FLEET, topic + "/x") is None
    assert topics.parse(FLEET, topic + "\n") is None
    assert topics.parse(FLEET, "/" + topic) is None


@pytest.mark.parametrize("name", TopicName)
def test_no_topic_has_more_than_seven_slashes(name: TopicName) -> None:
    topic = topics.topic_for("f" * 63, name, "d" * 63, sha12="0" * 12, piece=999_999_999)
    assert topic.count("/") <= 7
    assert len(topic.encode()) <= 256  # AWS IoT Core's other limit


@pytest.mark.parametrize("name", TopicName)
def test_filters_take_the_devices_own_topic_only(name: TopicName) -> None:
    mine = topics.topic_for(FLEET, name, "pi", sha12="0" * 12)
    other = topics.topic_for(FLEET, name, "nuc", sha12="0" * 12)
    own, everyone = topics.filter_for(FLEET, name, "pi"), topics.filter_for(FLEET, name)
    assert matches(own, mine)
    assert not matches(own, other)
    assert matches(everyone, mine)
    assert matches(everyone, other)
    assert "pi" not in everyone.split("/")


def test_each_role_reads_what_the_other_writes() -> None:
    for role in Role:
        read = topics.filters_read_by(role, FLEET, "pi")
        assert read == [(topics.filter_for(FLEET, n, "pi"), row.qos) for n, row in TOPICS.items() if row.writer != role]
    assert {row.writer for row in TOPICS.values()} == set(Role)
    assert all(row.writer is not row.reader for row in TOPICS.values())


def test_no_two_filters_of_one_reader_overlap() -> None:
    for name in TopicName:
        topic = topics.topic_for(FLEET, name, "pi", sha12="0" * 12)
        assert [n for n in TopicName if matches(topics.filter_for(FLEET, n), topic)] == [name]


def test_what_the_design_promises_of_each_row() -> None:
    assert {name for name, row in TOPICS.items() if row.retained} == {
        TopicName.DESIRED, TopicName.ONLINE, TopicName.STATE, TopicName.FACTS,
    }  # fmt: skip
    assert {name for name, row in TOPICS.items() if row.qos == 0} == {TopicName.REPLY, TopicName.BLOCKS}


@pytest.mark.parametrize(
    "name", ["", "-pi", "Pi", "pi_5", "pi/5", "+", "#", "pi\n", " pi", "p" * 64, "ä", "pi.local", "٣"]
)
def test_bad_names_are_refused_everywhere(name: str) -> None:
    with pytest.raises(InputError, match="device name"):
        topics.check_name("device", name)
    assert topics.parse(FLEET, f"edgefleet/1/home/d/{name}/state") is None
    assert topics.parse(FLEET, f"edgefleet/1/home/req/0/{name}") is None


@pytest.mark.parametrize(
    "rest",
    [
        "d/pi/b/0123456789AB/1", "d/pi/b/0123456789a/1", "d/pi/b/0123456789ab/", "d/pi/b/0123456789ab/-1",
        "d/pi/b/0123456789ab/1234567890", "req/x/pi", "req//pi", "d/pi", "d/pi/unknown", "",
    ],
)  # fmt: skip
def test_topics_beside_the_table_are_ignored(rest: str) -> None:
    assert topics.parse(FLEET, f"edgefleet/1/home/{rest}") is None


@settings(deadline=None)
@given(
    NAMES,
    NAMES,
    st.sampled_from(TopicName),
    st.integers(0, 999_999_999),
    st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
)
def test_round_trip_for_any_names(fleet: str, device: str, name: TopicName, piece: int, sha12: str) -> None:
    assert topics.check_name("device", device) == device
    address = topics.parse(fleet, topics.topic_for(fleet, name, device, sha12=sha12, piece=piece))
    assert address is not None
    assert (address.name, address.device) == (name, device)
    if name is TopicName.BLOCKS:
        assert (address.sha12, address.piece) == (sha12, piece)


@settings(deadline=None)
@given(st.text())
@example("edgefleet/1/home/d/pi/state\0")
def test_parse_never_raises(topic: str) -> None:
    assert topics.parse(FLEET, topic) is None or topic.startswith("edgefleet/1/home/")


def test_requests_go_to_a_shard_there_is() -> None:
    assert {topics.shard_of(f"device-{number}") for number in range(100)} <= set(range(topics.SHARDS))


def test_short_digest() -> None:
    assert topics.short_digest("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"


# The access list --------------------------------------------------------------------------------------


def may(lines: list[str], user: str, verb: str, topic: str) -> bool:
    """What mosquitto grants: the user's own `topic` lines, and every `pattern` line with %u replaced."""
    current: str | None = None
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "user":
            current = rest
            continue
        granted, _, pattern = rest.partition(" ")
        mine = current == user if kind == "topic" else True
        if mine and granted in (verb, "readwrite") and matches(pattern.replace("%u", user), topic):
            return True
    return False


@pytest.mark.parametrize("name", TopicName)
def test_a_device_touches_its_own_topics_in_the_tables_direction_only(name: TopicName) -> None:
    lines = [line for line in access_list(FLEET).splitlines() if line]
    row = TOPICS[name]
    mine = topics.topic_for(FLEET, name, "pi", sha12="0" * 12)
    other = topics.topic_for(FLEET, name, "nuc", sha12="0" * 12)
    foreign = topics.topic_for("office", name, "pi", sha12="0" * 12)
    assert may(lines, "pi", "write", mine) == (row.writer is Role.DEVICE)
    assert may(lines, "pi", "read", mine) == (row.reader is Role.DEVICE)
    for topic in (other, foreign):
        assert not may(lines, "pi", "write", topic)
        assert not may(lines, "pi", "read", topic)
    for topic in (mine, other):
        assert may(lines, SERVER_USER, "write", topic) == (row.writer is Role.SERVER)
        assert may(lines, SERVER_USER, "read", topic) == (row.reader is Role.SERVER)
    assert not may(lines, SERVER_USER, "write", foreign)


def test_patterns_stand_below_no_user() -> None:
    lines = access_list(FLEET).splitlines()
    assert lines[0] == f"user {SERVER_USER}"
    assert all(line.startswith("topic ") for line in lines[1 : lines.index("")])
    assert all(line.startswith("pattern ") and "%u" in line for line in lines[lines.index("") + 1 :])


def test_no_device_may_take_the_servers_name() -> None:
    """The access list goes by the user name: a device of that name would be the server."""
    for kind in ("device", "fleet"):
        with pytest.raises(InputError, match=f"{kind} name"):
            topics.check_name(kind, SERVER_USER)
    assert topics.check_name("device", f"{SERVER_USER}-2") == f"{SERVER_USER}-2"


def test_the_configuration_listens_on_this_machine_only() -> None:
    text = mosquitto_configuration(port=18830, access_list_file=Path("/tmp/acl"), user="nobody")  # noqa: S108
    assert "listener 18830 127.0.0.1" in text.splitlines()
    assert "acl_file /tmp/acl" in text.splitlines()
    assert "set_tcp_nodelay true" in text.splitlines()
