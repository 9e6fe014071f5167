"""The topic table, and what the broker's access list makes of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgefleet.errors import InputError
from edgefleet.protocol import topics
from edgefleet.protocol.topics import HUB_USERS, SERVER_USER, TOPICS, Role, TopicName

FLEET = "home"
ADDRESS_FIELDS = {name: {"sha12": "0123456789ab", "piece": 17} for name in (TopicName.BLOCKS, TopicName.SHARED)}
OF_DEVICES = [name for name, row in TOPICS.items() if "{device}" in row.pattern]
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
    assert topics.parse(FLEET, topic) == topics.Address(name, "pi-5" if name in OF_DEVICES else "", **fields)  # type: ignore[arg-type]
    assert topics.parse("office", topic) is None
    assert topics.parse(FLEET, topic + "/x") is None
    assert topics.parse(FLEET, topic + "\n") is None
    assert topics.parse(FLEET, "/" + topic) is None


@pytest.mark.parametrize("name", TopicName)
def test_no_topic_has_more_than_seven_slashes(name: TopicName) -> None:
    topic = topics.topic_for("f" * 63, name, "d" * 63, sha12="0" * 12, piece=999_999_999)
    assert topic.count("/") <= 7
    assert len(topic.encode()) <= 256  # AWS IoT Core's other limit


@pytest.mark.parametrize("name", OF_DEVICES)
def test_filters_take_the_devices_own_topic_only(name: TopicName) -> None:
    mine = topics.topic_for(FLEET, name, "pi", sha12="0" * 12)
    other = topics.topic_for(FLEET, name, "nuc", sha12="0" * 12)
    own, everyone = topics.filter_for(FLEET, name, "pi"), topics.filter_for(FLEET, name)
    assert matches(own, mine)
    assert not matches(own, other)
    assert matches(everyone, mine)
    assert matches(everyone, other)
    assert "pi" not in everyone.split("/")


def test_every_row_has_a_writer_and_another_reader_one_of_them_the_device() -> None:
    for role in Role:
        read = topics.filters_read_by(role, FLEET, "pi")
        rows = [(name, row) for name, row in TOPICS.items() if row.reader is role and row.standing]
        assert read == [(topics.filter_for(FLEET, name, "pi"), row.qos) for name, row in rows]
    assert {row.writer for row in TOPICS.values()} == set(Role)
    assert all((row.writer is Role.DEVICE) != (row.reader is Role.DEVICE) for row in TOPICS.values())


def test_no_two_filters_of_one_reader_overlap() -> None:
    for name in TopicName:
        topic = topics.topic_for(FLEET, name, "pi", sha12="0" * 12)
        assert [n for n in TopicName if matches(topics.filter_for(FLEET, n), topic)] == [name]


def test_what_the_design_promises_of_each_row() -> None:
    assert {name for name, row in TOPICS.items() if row.retained} == {
        TopicName.DESIRED, TopicName.ONLINE, TopicName.STATE, TopicName.FACTS,
    }  # fmt: skip
    assert {name for name, row in TOPICS.items() if row.qos == 0} == {
        TopicName.REPLY, TopicName.BLOCKS, TopicName.SHARED,
    }  # fmt: skip


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
    assert (address.name, address.device) == (name, device if name in OF_DEVICES else "")
    if name in ADDRESS_FIELDS:
        assert (address.sha12, address.piece) == (sha12, piece)


@given(st.text())
@example("edgefleet/1/home/d/pi/state\0")
def test_parse_never_raises(topic: str) -> None:
    assert topics.parse(FLEET, topic) is None or topic.startswith("edgefleet/1/home/")


def test_requests_go_to_a_shard_there_is() -> None:
    assert {topics.shard_of(f"device-{number}") for number in range(100)} <= set(range(topics.SHARDS))


def test_short_digest() -> None:
    assert topics.short_digest("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"


@pytest.mark.parametrize("name", [SERVER_USER, *HUB_USERS, "edgefleet-", "edgefleet-removal"])
def test_no_device_may_take_a_name_of_the_servers(name: str) -> None:
    """The access list goes by the user name: a device of that name would be the server."""
    for kind in ("device", "fleet"):
        with pytest.raises(InputError, match=f"{kind} name"):
            topics.check_name(kind, name)
    assert topics.check_name("device", "edgefleet") == "edgefleet"
