"""Every parser of bytes that somebody else wrote: what it may raise, and valid input to begin from.

The Hypothesis tests and the coverage-guided fuzzer read the table; it says nothing of the values that come out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgefleet import identity, selection
from edgefleet.errors import EdgefleetError
from edgefleet.package import manifest as model
from edgefleet.package.bundle import open_bundle, write_bundle
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import Package
from edgefleet.protocol import decisions, messages, signed, topics
from edgefleet.protocol.record import Message, MessageError
from edgefleet_agent import settings as agent_settings
from edgefleet_agent import slots, trust_frames
from edgefleet_agent.journal import Enrolment, Entry
from edgefleet_agent.trust_frames import Kind
from faults.scripted import write_bytes_package
from sdk.wire_examples import DECISION, PRIOR

MAX_REASON_CHARS = 2000
A_DIGEST = "sha256:" + "1" * 64


@dataclass(frozen=True, slots=True)
class Target:
    """One parser, the exceptions that it promises, and inputs that it takes."""

    parse: Callable[[bytes], object]
    raises: type[Exception]
    examples: tuple[bytes, ...]
    one_line: bool = True
    """The text of its error is shown to a person as it is."""


def check(target: Target, data: bytes) -> str | None:
    """Parse; returns what breaks the promise in words, or None. Any other exception than the promised one leaves."""
    try:
        target.parse(data)
    except target.raises as error:
        text = str(error)
        if target.one_line and ("\n" in text or "\r" in text or len(text) > MAX_REASON_CHARS):
            return f"an error of {len(text)} characters and {len(text.splitlines())} lines: {text[:200]!r}"
    return None


# Valid input -----------------------------------------------------------------------------------------

_SIGNATURES = (signed.Signature(keyid="a" * 64, sig=b"s" * 64),)


def _envelope(payload: bytes, payload_type: str) -> signed.Envelope:
    return signed.Envelope(payload=payload, payload_type=payload_type, signatures=_SIGNATURES)


def _version(number: int) -> signed.PackageVersion:
    return signed.PackageVersion(package="digits", version=f"1.{number}.0", release=number, index_digest=A_DIGEST)


_DEPLOYMENT = signed.Deployment(
    deployment_id="digits-1.2.0-0a1b2c3d",
    fleet="home",
    serial=1_790_000_000,
    target=_version(2),
    fallback=_version(1),
    selector="pi-kitchen,nuc-cellar",
    expires=1_790_000_000.5,
)
_SIGNED_DESIRED = signed.SignedDesired(
    fleet="home",
    device="pi-kitchen",
    enrolment_id="e1",
    generation=1_790_000_000,
    action=signed.Action.INSTALL,
    valid_until=1_790_000_000.5,
    install_timeout_s=3600.0,
    deployment=_envelope(_DEPLOYMENT.encode(), signed.DEPLOYMENT_TYPE),
)
_COMMAND = signed.Command(
    fleet="home",
    device="pi-kitchen",
    enrolment_id="e1",
    command_id="c-1",
    name=signed.CommandName.REPORT,
    expires=1_790_000_000.5,
)
_ACTIVE = messages.ActiveVariant(digest=A_DIGEST, index_digest=A_DIGEST, name="v", runtime="litert", precision="int8")
_DURATIONS = {"zeros": 1, "keys": [-350, 3], "counts": [120, 79], "total": 0.25}
_WINDOW = messages.Window.model_validate(
    {
        "started": {"boot_id": "b", "monotonic_s": 5.5, "wall_s": 1.5, "clock": "unsynced"},
        "duration_s": 10.5,
        "digest": A_DIGEST,
        "count": 200,
        "errors": 1,
        "latency": dict.fromkeys(("preprocess", "inference", "end_to_end"), _DURATIONS),
        "energy": {"source": "measured", "joules": 36.75, "duration_s": 10.5, "samples": 100, "scope": "package"},
        "thermal": {"temperature_c": 61.5, "reason": "no more is known"},
        "cpu_share": 0.5,
        "memory": {"agent_bytes": 32_000_000, "worker_bytes": None},
        "statistics": {
            "inputs": [{"name": "x", "values": 9, "not_finite": 1, "mean": 0.5, "std": 0.25, "min": 0.0, "max": 1.0}]
        },
        "accuracy": {"correct": 190, "labelled": 200},
    }
)
_SPOOLED = {"enrolment_id": "e1", "spool_id": "s", "boot_id": "b", "seq": 2, "oldest_seq": 1}
_FACTS = {
    "v": 1, "enrolment_id": "e1", "boot_id": "b1", "connection": 3, "agent_version": "0.1.0",
    "profile": "raspberry-pi-5", "simulated": True, "simulated_reason": "the processor is amd64",
    "machine": {
        "architecture": "amd64", "cpu_model": "Some CPU", "cores": 2, "memory_mib": 2048, "board": None,
        "serial": "1", "os": "Größe Linux", "python": "3.11.7", "runtimes": {"onnxruntime": "1.22.0"},
    },
}  # fmt: skip
_VALID: dict[type[Message], tuple[Message, ...]] = {
    messages.Ack: (messages.Ack(spool_id="s", seq=42),),
    decisions.DecisionRecord: (DECISION,),
    decisions.Prior: (PRIOR,),
    messages.DeviceState: (
        messages.DeviceState(
            enrolment_id="e1",
            generation=1_790_000_000,
            state=messages.State.FAILED,
            reason="self-test: it ended",
            active=_ACTIVE,
            progress=messages.Progress(verified_bytes=61440, total_bytes=61441),
        ),
    ),
    messages.Event: (messages.Event(**_SPOOLED, at=1.5, kind="accepted", text="an event"),),
    messages.Facts: (messages.Facts.model_validate(_FACTS),),
    messages.Online: (messages.Online(online=True, enrolment_id="e1", connection=3),),
    messages.Reply: (messages.Reply(req_id="3-1", status=messages.Status.OK, part=1, parts=2, body=b"\0\xff?>"),),
    messages.Request: (
        messages.Request(
            req_id="3-14",
            kind=messages.RequestKind.BLOCKS,
            digest=A_DIGEST,
            blocks=((0, 4), (9, 1)),
            credit_bytes=5 * 61440,
            fresh=True,
        ),
        messages.Request(req_id="3-15", kind=messages.RequestKind.TRUST, name="12.root.json"),
        messages.Request(req_id="3-16", kind=messages.RequestKind.RENEW, body=b"-----BEGIN"),
    ),
    messages.Telemetry: (messages.Telemetry(**_SPOOLED, window=_WINDOW),),
    signed.Command: (_COMMAND,),
    signed.Deployment: (_DEPLOYMENT,),
    signed.Envelope: (_envelope(_SIGNED_DESIRED.encode(), signed.DESIRED_TYPE),),
    signed.SignedDesired: (_SIGNED_DESIRED,),
}


def message_classes() -> set[type[Message]]:
    """Every class that can be decoded from the wire."""
    found: set[type[Message]] = set()
    waiting = [Message]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        found.update(below)
    # Abstract, or never on the wire by itself.
    return {cls for cls in found if not cls.__name__.startswith("_")} - {messages.Spooled, signed.Desired}


# Records of a package --------------------------------------------------------------------------------

_TENSOR = {"name": "x", "dtype": "float32", "shape": [1, 8, 8]}
_SPEC = {
    "schema_version": 1, "name": "onnxruntime-int8", "runtime": "onnxruntime", "precision": "int8",
    "runtime_version": ">=1.20", "model_file": "model.onnx", "inputs": [_TENSOR], "outputs": [_TENSOR],
    "golden": {"samples": 4, "tolerances": {"x": 0.01}}, "architectures": ["amd64"],
}  # fmt: skip
_LAYERS = [
    {"mediaType": kind.value, "digest": A_DIGEST, "size": 100_000, "annotations": {model.FILEPATH_ANNOTATION: name}}
    for kind, name in ((model.Layer.MODEL, "model.onnx"), (model.Layer.BLOCKS, "blocks.sha256"))
]
_CONFIG = {"mediaType": model.CONFIG_MEDIA_TYPE, "digest": A_DIGEST, "size": 3}
_MANIFEST = {"schemaVersion": 2, "mediaType": model.MANIFEST_MEDIA_TYPE, "config": _CONFIG, "layers": _LAYERS}
_VARIANT_NOTES = {
    model.VARIANT_ANNOTATION: "v", model.RUNTIME_ANNOTATION: "litert", model.RUNTIME_VERSION_ANNOTATION: ">=2",
    model.PRECISION_ANNOTATION: "int8", model.BYTES_ANNOTATION: "100",
}  # fmt: skip
_PACKAGE_NOTES = {
    model.TITLE_ANNOTATION: "digits", model.VERSION_ANNOTATION: "1.0.0", model.RELEASE_ANNOTATION: "7",
}  # fmt: skip
_ENTRY = {
    "mediaType": model.MANIFEST_MEDIA_TYPE, "digest": A_DIGEST, "size": 3,
    "platform": {"architecture": "amd64"}, "annotations": _VARIANT_NOTES,
}  # fmt: skip
_INDEX = {
    "schemaVersion": 2, "mediaType": model.INDEX_MEDIA_TYPE, "manifests": [_ENTRY], "annotations": _PACKAGE_NOTES,
}  # fmt: skip


def _bytes(content: object) -> bytes:
    return json.dumps(content).encode()


def _offered(data: bytes) -> object:
    """What the device does with an index."""
    return selection.candidates(model.Index.model_validate_json(data))


def _files(data: bytes) -> object:
    """What the device does with a manifest."""
    manifest = model.Manifest.model_validate_json(data)
    return slots.blocks_layer(manifest), [slots.file_name(layer) for layer in slots.layers_to_pull(manifest)]


_SCRATCH = tempfile.TemporaryDirectory(prefix="edgefleet-parsers-")


def _layout(data: bytes) -> object:
    """The layout's own index.json."""
    folder = Path(_SCRATCH.name)
    (folder / "index.json").write_bytes(data)
    return Package(folder)


def _package(data: bytes) -> object:
    """A package whose index blob is `data`, with every record below it."""
    folder = Path(_SCRATCH.name)
    digest = digest_of(data)
    blob = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    entry = {"mediaType": model.INDEX_MEDIA_TYPE, "digest": digest, "size": len(data)}
    (folder / "index.json").write_bytes(_bytes({"schemaVersion": 2, "manifests": [entry]}))
    try:
        return Package(folder).digests()
    finally:
        blob.unlink()


def _settings(data: bytes) -> object:
    path = Path(_SCRATCH.name) / "agent.toml"
    path.write_bytes(data)
    return agent_settings.load(path)


def _identity(data: bytes) -> object:
    folder = Path(_SCRATCH.name)
    (folder / identity.ROOT_FILE).touch()
    (folder / identity.IDENTITY_FILE).write_bytes(data)
    return identity.load(folder)


def _certificate_end(data: bytes) -> object:
    """The device's own certificate, read without any cryptography."""
    folder = Path(_SCRATCH.name)
    (folder / identity.CERTIFICATE_FILE).write_bytes(data)
    return identity.DeviceIdentity("home", "pi-1", "0" * 16, "127.0.0.1", 1883, tls=True, folder=folder).not_after


def _bundle(data: bytes) -> object:
    path = Path(_SCRATCH.name) / "a.bundle"
    path.write_bytes(data)
    with open_bundle(path) as bundle:
        return bundle.package.digest


def _small_bundle() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        package = write_bytes_package(Path(folder) / "package", model_bytes=100)
        write_bundle(
            Path(folder) / "a.bundle",
            package,
            {"1.root.json": b"{}", "timestamp.json": b"{}"},
            _envelope(b"{}", "x").encode(),
        )
        return (Path(folder) / "a.bundle").read_bytes()


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _desired(data: bytes) -> object:
    return signed.Desired.unwrap(signed.Envelope.decode(data))


def _desired_inside(data: bytes) -> object:
    return signed.Desired.unwrap(_envelope(data, signed.DESIRED_TYPE))


def _deployment_inside(data: bytes) -> object:
    inner = _SIGNED_DESIRED.model_copy(update={"deployment": _envelope(data, signed.DEPLOYMENT_TYPE)})
    return signed.Desired.unwrap(_envelope(inner.encode(), signed.DESIRED_TYPE))


_ENTRY_OF_A_JOURNAL = Entry(
    enrolment=Enrolment(fleet="home", device="pi-kitchen", enrolment_id="e1"),
    desired=signed.Desired.unwrap(_envelope(_SIGNED_DESIRED.encode(), signed.DESIRED_TYPE)),
    deployment=_DEPLOYMENT,
    active=_ACTIVE,
)
_IDENTITY = {
    "fleet": "home", "device": "pi-1", "enrolment_id": "0" * 16,
    "broker": {"host": "127.0.0.1", "port": 1883, "tls": False},
}  # fmt: skip
# Made with openssl once: self-signed, P-256, valid for thirteen years.
_CERTIFICATE = b"""-----BEGIN CERTIFICATE-----
MIIBcjCCARmgAwIBAgIUf6aZ4GlZ8irUF1JBkHsVGoMNLIkwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcGktMTAeFw0yNjExMjEwNTQ4MTBaFw00MDAxMDEwNTQ4MTBa
MA8xDTALBgNVBAMMBHBpLTEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQcqGTY
kBZBqZyKu9SGgp78GFbxBlpVSDfqo/rbj9rxqXwX2Ii/m3XuX4eF9MIiufWdiLNm
c42rhG+eKjkFzVg+o1MwUTAdBgNVHQ4EFgQUvzjwIyNBqCLtGE+C5fL3o4Md0sgw
HwYDVR0jBBgwFoAUvzjwIyNBqCLtGE+C5fL3o4Md0sgwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNHADBEAiBJ8korOBGdGCI9kP1Eh1iW5rCMP5t7gGVFbTRy
kIJd+wIgcPbzWRq9rrKbcTnvVQzV8xrWKw8RFviYsnbcuIxWIBo=
-----END CERTIFICATE-----
"""
_SHIPPED_SETTINGS = Path(agent_settings.__file__).parents[1] / "edgefleet-agent.toml"

TARGETS: dict[str, Target] = {
    **{
        cls.__name__: Target(cls.decode, MessageError, tuple(message.encode() for message in valid))
        for cls, valid in _VALID.items()
    },
    "Desired": Target(
        _desired, MessageError, (_envelope(_SIGNED_DESIRED.encode(), signed.DESIRED_TYPE).encode(),)
    ),
    "Desired, inside": Target(_desired_inside, MessageError, (_SIGNED_DESIRED.encode(),)),
    "Deployment, inside": Target(_deployment_inside, MessageError, (_DEPLOYMENT.encode(),)),
    # pydantic's own error, whose first line the installation reports.
    "Index": Target(_offered, ValueError, (_bytes(_INDEX),), one_line=False),
    "Manifest": Target(_files, ValueError, (_bytes(_MANIFEST),), one_line=False),
    "VariantSpec": Target(model.VariantSpec.model_validate_json, ValidationError, (_bytes(_SPEC),), one_line=False),
    "Journal": Target(Entry.model_validate_json, ValidationError, (_ENTRY_OF_A_JOURNAL.model_dump_json().encode(),),
                      one_line=False),
    "Layout": Target(_layout, EdgefleetError, (_bytes({"schemaVersion": 2, "manifests": [_CONFIG]}),)),
    "Package": Target(_package, EdgefleetError, (_bytes(_INDEX),)),
    "Bundle": Target(_bundle, EdgefleetError, (_small_bundle(),)),
    "Frame": Target(
        lambda data: trust_frames.take(bytearray(data)), trust_frames.FrameError, (trust_frames.pack(Kind.BODY, b"x"),)
    ),
    "Identity": Target(_identity, EdgefleetError, (_bytes(_IDENTITY),)),
    "Certificate": Target(_certificate_end, EdgefleetError, (_CERTIFICATE,)),
    "Settings": Target(_settings, EdgefleetError, (_SHIPPED_SETTINGS.read_bytes(),)),
    "Topic": Target(lambda data: topics.parse("home", _text(data)), MessageError, tuple(
        topics.topic_for("home", name, "pi-1", sha12="0" * 12, piece=3).encode() for name in topics.TOPICS)),
}  # fmt: skip
