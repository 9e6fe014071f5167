"""The messages: golden bytes, and nothing but MessageError for whatever a peer sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgefleet.protocol import messages
from edgefleet.protocol.measurements import Durations, Latency, Statistics, TensorStatistics
from edgefleet.protocol.messages import Online, Reply, Request, RequestKind, Spooled, Status
from edgefleet.protocol.record import Message, MessageError
from edgefleet.protocol.signed import Desired, Envelope, _DesiredFields
from edgefleet.sketch import Sketch
from sdk.wire_examples import (
    BLOB,
    COMMAND,
    DEPLOYMENT,
    DESIRED,
    EXAMPLES,
    WINDOW,
    desired_envelope,
    envelope,
    signed_desired,
    telemetry,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = sorted({type(message) for message in EXAMPLES.values()}, key=lambda cls: cls.__name__)


def subclasses(cls: type[Message]) -> set[type[Message]]:
    found = set(cls.__subclasses__())
    return found.union(*(subclasses(each) for each in found))


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().removesuffix(b"\n")


def test_every_message_class_has_golden_bytes_and_no_golden_file_is_left_over() -> None:
    assert set(CLASSES) == subclasses(Message) - {Spooled, _DesiredFields}
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    message = EXAMPLES[name]
    assert message.encode() == golden(name)
    assert type(message).decode(golden(name)) == message


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_fields_are_ignored(name: str) -> None:
    def with_more(value: Any) -> Any:
        if isinstance(value, dict):
            return {**{key: with_more(each) for key, each in value.items()}, "from_the_future": [1, {"a": None}]}
        return value

    content = json.loads(golden(name))
    if name == "facts":  # machine.runtimes is a mapping of runtimes: unknown keys there are tested below
        runtimes = content["machine"]["runtimes"]
        content = with_more(content)
        content["machine"]["runtimes"] = runtimes
    else:
        content = with_more(content)
    assert type(EXAMPLES[name]).decode(json.dumps(content).encode()) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_major_version_is_refused(name: str, version: object) -> None:
    content = json.loads(golden(name)) | {"v": version}
    with pytest.raises(MessageError, match=rf"^{type(EXAMPLES[name]).__name__}: v: "):
        type(EXAMPLES[name]).decode(json.dumps(content).encode())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_field_without_a_default_is_needed(name: str) -> None:
    cls = type(EXAMPLES[name])
    for field in (info.alias or name for name, info in cls.model_fields.items() if info.is_required()):
        content = json.loads(golden(name))
        del content[field]
        with pytest.raises(MessageError, match=field):
            cls.decode(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("desired", {"device": "../pi"}),
        ("desired", {"device": "pi\n"}),
        ("desired", {"fleet": "Home"}),
        ("desired", {"action": "format-disk"}),
        ("desired", {"generation": -1}),
        ("desired", {"install_timeout_s": 0}),
        ("deployment", {"target": {"package": "../x", "version": "1", "release": 1, "index_digest": BLOB}}),
        ("deployment", {"target": {"package": "x", "version": "1/2", "release": 1, "index_digest": BLOB}}),
        ("deployment", {"target": {"package": "x", "version": "1", "release": 1, "index_digest": "sha256:../etc"}}),
        ("deployment", {"fleet": "Home"}),
        ("command", {"name": "format-disk"}),
        ("command", {"command_id": "c" * 65}),
        ("envelope", {"signatures": []}),
        ("envelope", {"signatures": [{"keyid": "5a" * 32, "sig": "AA=="}] * 17}),
        ("envelope", {"signatures": [{"keyid": "../../key", "sig": "AA=="}]}),
        ("envelope", {"payload": "not base64 !"}),
        ("request_trust", {"name": "../timestamp.json"}),
        ("request_trust", {"name": "/etc/passwd"}),
        ("request_trust", {"name": ".json"}),
        ("request_trust", {"name": "timestamp.json\n"}),
        ("request_trust", {"name": "1.Root.json"}),
        ("request_trust", {"name": None}),
        ("request_renewal", {"body": ""}),
        ("request_renewal", {"body": "QUFB" * 2731}),
        ("request", {"digest": None}),
        ("request", {"kind": "locate", "digest": None}),
        ("device_state", {"state": "exploded"}),
        ("request", {"digest": "sha256:" + "g" * 64}),
        ("request", {"blocks": [[-1, 1]]}),
        ("request", {"blocks": [[0, 0]]}),
        ("request", {"blocks": [[0]]}),
        ("request", {"credit_bytes": 4 * 1024 * 1024 + 1}),
        ("request", {"req_id": "r" * 65}),
        ("reply", {"parts": 0}),
        ("reply", {"body": "not base64 !"}),
        ("event", {"seq": 0}),
        ("event", {"oldest_seq": 0}),
        ("telemetry", {"window": None}),
        ("online", {"connection": -1}),
    ],
)
def test_values_out_of_range_are_refused(name: str, changes: dict[str, object]) -> None:
    content = json.loads(golden(name)) | changes
    with pytest.raises(MessageError):
        type(EXAMPLES[name]).decode(json.dumps(content).encode())


def test_energy_is_measured_or_estimated_and_nothing_else() -> None:
    content = json.loads(golden("telemetry"))
    content["window"]["energy"]["source"] = "guessed"
    with pytest.raises(MessageError):
        messages.Telemetry.decode(json.dumps(content).encode())
    content["window"]["energy"] = {"source": "estimated", "joules": 3.0, "duration_s": 1.0, "scope": "package"}
    with pytest.raises(MessageError, match="low_j"):
        messages.Telemetry.decode(json.dumps(content).encode())


@pytest.mark.parametrize("part", ["preprocess", "inference", "end_to_end"])
@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [100, 99]},
        {"counts": [200]},
        {"keys": [-300], "counts": [200, 0]},
        {"keys": [-300, 0]},
        {"keys": [-30_000, 1]},
        {"zeros": 1},
        {"zeros": -1},
        {"total": -1.0},
        {"keys": [1] * 513, "counts": [1] * 513},
        {"counts": [2**63, 1]},
    ],
)
def test_a_sketch_is_one_and_is_of_all_inferences(part: str, changes: dict[str, object]) -> None:
    content = json.loads(golden("telemetry"))
    whole = {"zeros": 0, "keys": [-300, 5], "counts": [100, 100], "total": 1.0}
    content["window"]["latency"][part] = whole
    assert messages.Telemetry.decode(json.dumps(content).encode()).window.count == 200
    content["window"]["latency"][part] = whole | changes
    with pytest.raises(MessageError, match=r"sketch|inferences|latency"):
        messages.Telemetry.decode(json.dumps(content).encode())


def test_a_window_tells_its_rate_and_its_sketches() -> None:
    window = messages.Telemetry.decode(golden("telemetry")).window
    assert window.achieved_per_s == pytest.approx(200 / 10.5)
    assert window.latency.inference.sketch().quantile(0.9) == pytest.approx(0.00225, rel=0.011)
    assert window.model_copy(update={"duration_s": 0.0}).achieved_per_s == 0.0


def test_the_widest_window_fits_a_packet_that_every_broker_passes() -> None:
    wide = Sketch()
    for exponent in range(-900, 900):
        wide.add(10 ** (exponent / 100), 10**6)
    full = Durations.of(wide)
    tensor = TensorStatistics(
        name="n" * 128, values=2**52, not_finite=2**52, mean=1 / 3, std=1 / 3, min=-1e300 / 3, max=1e300 / 3
    )
    window = WINDOW.model_copy(
        update={
            "count": wide.count,
            "latency": Latency(preprocess=full, inference=full, end_to_end=full),
            "statistics": Statistics(inputs=(tensor,) * 8, outputs=(tensor,) * 8),
        }
    )
    payload = telemetry(2**52, window=window).encode()
    assert messages.Telemetry.decode(payload).window.count == wide.count
    assert len(payload) < 32 * 1024


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("event", "seq"), ("event", "oldest_seq"), ("telemetry", "seq"), ("online", "connection"),
        ("facts", "connection"), ("device_state", "generation"), ("device_state", "pulled_bytes"), ("ack", "seq"),
        ("desired", "generation"), ("telemetry", "oldest_seq"), ("device_state", "bad_blocks"), ("reply", "part"),
        ("deployment", "serial"), ("desired_signed", "generation"), ("device_state", "reused_bytes"),
    ],
)  # fmt: skip
def test_numbers_that_no_store_can_hold_are_refused_at_the_wire(name: str, field: str) -> None:
    """SQLite holds 64-bit integers, JavaScript 53: one device's number must not end the server's transaction."""
    limit = 2**40 if field in {"generation", "serial"} else 2**53
    for value in (limit, 2**63, 10**30):
        content = json.loads(golden(name)) | {field: value}
        with pytest.raises(MessageError, match=field):
            type(EXAMPLES[name]).decode(json.dumps(content).encode())
    content = json.loads(golden(name)) | {field: limit - 1}
    assert getattr(type(EXAMPLES[name]).decode(json.dumps(content).encode()), field) == limit - 1


@pytest.mark.parametrize("pair", [(2**53, 1), (0, 2**53), (-1, 1), (0, 0)])
def test_ranges_that_no_list_can_hold_are_refused_at_the_wire(pair: tuple[int, int]) -> None:
    content = json.loads(golden("request")) | {"blocks": [pair]}
    with pytest.raises(MessageError, match="blocks"):
        Request.decode(json.dumps(content).encode())


def test_a_request_names_so_many_ranges_and_no_more() -> None:
    for count, fine in ((messages.MAX_RANGES, True), (messages.MAX_RANGES + 1, False)):
        content = json.loads(golden("request")) | {"blocks": [[place, 1] for place in range(count)]}
        if fine:
            assert len(Request.decode(json.dumps(content).encode()).blocks) == count
        else:
            with pytest.raises(MessageError, match="blocks"):
                Request.decode(json.dumps(content).encode())


@pytest.mark.parametrize("field", ["cores", "memory_mib"])
def test_a_machines_numbers_are_bounded_too(field: str) -> None:
    content = json.loads(golden("facts"))
    content["machine"][field] = 2**63
    with pytest.raises(MessageError, match=field):
        messages.Facts.decode(json.dumps(content).encode())


@pytest.mark.parametrize(
    "path",
    [
        ("duration_s",), ("started", "wall_s"), ("started", "monotonic_s"), ("latency", "inference", "total"),
        ("energy", "joules"), ("energy", "low_j"), ("energy", "high_j"), ("energy", "duration_s"),
        ("thermal", "temperature_c"), ("cpu_share",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_of_a_window_may_be_none(path: tuple[str, ...], value: float) -> None:
    content = json.loads(golden("telemetry_estimated"))
    inner = content["window"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(MessageError, match=path[-1]):
        messages.Telemetry.decode(json.dumps(content).encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "field"), [("desired", "valid_until"), ("desired", "install_timeout_s"),
                                             ("reply", "retry_after_s"), ("event", "at"), ("command", "expires"),
                                             ("deployment", "expires")])  # fmt: skip
def test_no_time_may_be_none(name: str, field: str, value: float) -> None:
    content = json.loads(golden(name)) | {field: value}
    with pytest.raises(MessageError, match=field):
        type(EXAMPLES[name]).decode(json.dumps(content).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_at_the_wire(value: str) -> None:
    """SQLite stores NaN as NULL: the row would be dropped, and its number would never be acknowledged."""
    for name, number in (
        ("event", b"1750000012.0"),
        ("telemetry", b"36.75"),
        ("telemetry", b"10.5"),
        ("telemetry", b"61.5"),
    ):
        payload = golden(name).replace(number, value.encode())
        assert payload != golden(name)
        with pytest.raises(MessageError):
            type(EXAMPLES[name]).decode(payload)


def test_the_reason_is_one_line_whatever_the_peer_wrote() -> None:
    content = json.loads(golden("facts"))
    content["machine"]["runtimes"] = {f"a\nb{'x' * 20_000}": "1"}
    with pytest.raises(MessageError) as caught:
        messages.Facts.decode(json.dumps(content).encode())
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(CLASSES), st.binary())
@example(Online, b"[" * 100_000)
@example(Online, b'{"online": true, "connection": 1')
@example(Online, b"\xff\xfe")
@example(Reply, b'{"req_id": "\\ud800", "status": "ok"}')
def test_arbitrary_bytes_raise_nothing_but_a_message_error(cls: type[Message], payload: bytes) -> None:
    with pytest.raises(MessageError):
        cls.decode(payload)


@given(st.data())
def test_a_message_with_one_odd_value_raises_nothing_but_a_message_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(EXAMPLES)))
    content = json.loads(golden(name))
    field = data.draw(st.sampled_from(sorted(content)))
    content[field] = data.draw(JSON)
    cls = type(EXAMPLES[name])
    try:
        decoded = cls.decode(json.dumps(content).encode())
    except MessageError as error:
        assert str(error).startswith(f"{cls.__name__}: ")  # noqa: PT017 - either outcome is right
    else:
        assert cls.decode(decoded.encode()).encode() == decoded.encode()


@given(st.binary(max_size=2000))
def test_a_reply_carries_any_bytes(body: bytes) -> None:
    reply = Reply(req_id="1-1", status=Status.OK, body=body)
    assert Reply.decode(reply.encode()).body == body


def test_a_full_part_fits_every_broker() -> None:
    reply = Reply(req_id="9" * 64, status=Status.OK, part=1023, parts=1024, body=b"\xff" * messages.REPLY_PART_BYTES)
    assert len(reply.encode()) < 64 * 1024 - 512


def test_a_full_request_decodes_as_it_was() -> None:
    blocks = tuple((2 * place, 1) for place in range(68))
    request = Request(
        req_id="1-1", kind=RequestKind.BLOCKS, digest=BLOB, blocks=blocks, credit_bytes=messages.MAX_CREDIT_BYTES
    )
    assert Request.decode(request.encode()) == request


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        EXAMPLES["online"].v = 1  # type: ignore[misc]


def test_terminal_states_are_the_ones_that_end_a_generation() -> None:
    in_progress = {
        "idle", "resolving", "selecting", "downloading", "verifying", "self_test", "benchmarking", "activating",
        "probation", "rolling_back",
    }  # fmt: skip
    assert {state.value for state in messages.State if state not in messages.TERMINAL_STATES} == in_progress


# What is signed ---------------------------------------------------------------------------------------


def test_a_desired_state_comes_out_of_its_envelopes_as_it_went_in() -> None:
    assert Desired.unwrap(desired_envelope()) == DESIRED
    assert Desired.unwrap(Envelope.decode(desired_envelope(generation=8).encode())).generation == 8


def test_an_envelope_is_written_as_dsse_writes_it() -> None:
    """github.com/secure-systems-lab/dsse, envelope.md: payload, payloadType, signatures of keyid and sig, base64."""
    content = json.loads(golden("envelope"))
    assert set(content) == {"v", "payload", "payloadType", "signatures"}
    assert set(content["signatures"][0]) == {"keyid", "sig"}


def test_one_kind_of_signed_content_is_never_taken_for_another() -> None:
    command = envelope(COMMAND, "application/vnd.edgefleet.command.v1+json")
    with pytest.raises(MessageError, match="payloadType"):
        Desired.unwrap(command)
    with pytest.raises(MessageError, match="payloadType"):
        Desired.unwrap(envelope(signed_desired(deployment=command), "application/vnd.edgefleet.desired.v1+json"))
    with pytest.raises(MessageError):
        Desired.unwrap(envelope(DEPLOYMENT, "application/vnd.edgefleet.desired.v1+json"))
