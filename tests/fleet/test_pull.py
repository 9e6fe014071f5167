"""Pulling through faults: killed agents, killed brokers, damaged bytes. Real processes, real broker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgefleet import spans
from edgefleet_demo.broker import BrokerKind
from fleet_lab import Lab, LabOpener, server_command, write_lab_package
from flipping_proxy import FlippingProxy

LARGE = 32_768  # hidden units: 9.7 MB of weights
SLOW_MB_PER_S = 6.0


def verified(lab: Lab, name: str) -> float:
    """Fraction of the variant that the device has verified."""
    row = lab.device(name)
    return (row.verified_bytes or 0) / row.total_bytes if row.total_bytes else 0.0


@pytest.mark.parametrize("kind", list(BrokerKind))
def test_a_device_pulls_infers_and_reports(lab_opener: LabOpener, kind: BrokerKind, tmp_path: Path) -> None:
    lab = lab_opener(kind)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    package = write_lab_package(tmp_path / "p", hidden=2000)
    assert lab.wait_for_outcomes(lab.deploy(package)) == {"pi-1": "committed"}
    row = lab.device("pi-1")
    assert row.index_digest == package.digest
    assert row.digest == package.index.manifests[0].digest
    assert row.verified_bytes == row.total_bytes
    digest = str(row.digest)
    lab.wait(lambda: lab.store.telemetry("pi-1", digest).span.count >= spans.MIN_RUNS[0.9], "enough for percentiles")
    seen = lab.store.telemetry("pi-1", digest)
    assert seen.inferences > 0
    assert seen.labelled == seen.inferences
    assert (spans.percentile(seen.span.inference, 0.9).value or 0) > 0
    energy = seen.span.energy
    assert energy is not None
    assert (energy.source, energy.scope) == ("estimated", "package")
    assert 0 < energy.low_j <= energy.joules <= energy.high_j
    (row,) = lab.store._db.execute("SELECT * FROM telemetry ORDER BY seq DESC LIMIT 1").fetchall()
    assert 10e6 < row["agent_bytes"] < 200e6
    assert 10e6 < row["worker_bytes"] < 500e6
    assert 0 < row["cpu_share"] < 4
    assert abs(row["wall_s"] - time.time()) < 60
    assert row["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (outputs,) = lab.store._db.execute("SELECT count(DISTINCT name) FROM tensors WHERE side = 'output'").fetchone()
    assert outputs == 1
    assert lab.device("pi-1").online


def test_agent_killed_at_half_pulls_the_rest_only(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    generations = lab.deploy(write_lab_package(tmp_path / "p", hidden=LARGE))
    lab.wait(lambda: verified(lab, "pi-1") >= 0.5, "half of the pull")
    agent.kill()
    assert lab.store.outcome("pi-1", generations["pi-1"]) is None, "the kill came too late to show anything"
    lab.start_agent("pi-1")
    assert lab.wait_for_outcomes(generations) == {"pi-1": "committed"}
    row = lab.device("pi-1")
    assert row.total_bytes is not None
    # Counted by the sender, so that what the killed process received and forgot is in it.
    assert row.total_bytes <= lab.settled_sent_bytes("pi-1") <= 1.05 * row.total_bytes
    assert row.bad_blocks == 0


def test_broker_killed_in_the_middle_every_device_finishes(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    names = ("pi-1", "pi-2", "pi-3")
    for name in names:
        lab.start_agent(name)
    lab.wait_for_devices(*names)
    generations = lab.deploy(write_lab_package(tmp_path / "p", hidden=LARGE))
    lab.wait(lambda: any(verified(lab, name) > 0.2 for name in names), "a fifth of a pull")
    lab.broker_process.kill()
    assert all(lab.store.outcome(name, generations[name]) is None for name in names)
    lab.broker_process = lab.broker.start(lab.group)
    assert lab.wait_for_outcomes(generations) == dict.fromkeys(names, "committed")


def test_server_killed_in_the_middle_the_device_finishes(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    generations = lab.deploy(write_lab_package(tmp_path / "p", hidden=LARGE))
    lab.wait(lambda: verified(lab, "pi-1") > 0.2, "a fifth of the pull")
    lab.server.kill()
    lab.start_server()
    assert lab.wait_for_outcomes(generations) == {"pi-1": "committed"}


def test_a_flipped_bit_is_counted_and_asked_for_again(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(tls=False)  # TLS would end the connection: this is the digests' own work
    with FlippingProxy(lab.broker.port, flip_publishes={3, 5}) as proxy:
        lab.start_agent("pi-1", port=proxy.port)
        lab.wait_for_devices("pi-1")
        generations = lab.deploy(write_lab_package(tmp_path / "p", hidden=4000))
        assert lab.wait_for_outcomes(generations) == {"pi-1": "committed"}
        assert proxy.flipped == 2
    row = lab.device("pi-1")
    assert row.bad_blocks == 2
    lab.wait(lambda: [kind for kind, _ in lab.store.events("pi-1")].count("block_rejected") == 2, "the events")


def test_a_blob_damaged_on_the_server_is_never_loaded(lab: Lab, tmp_path: Path) -> None:
    package = write_lab_package(tmp_path / "p", hidden=4000)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    generations = lab.deploy(package, "pi-1")
    # Before the agent can have asked for it: the deployment is recorded, the model blob is swapped at once.
    model = max((lab.data / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert lab.wait_for_outcomes(generations) == {"pi-1": "no_model"}
    row = lab.device("pi-1")
    assert "came damaged again and again" in str(row.reason)
    assert row.bad_blocks >= 5
    assert row.digest is None


def test_what_three_devices_wait_for_leaves_the_hub_once(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener()
    lab.server.stop()
    command = [*server_command(lab.data, lab.broker, 3.0), "--shared-delivery"]
    lab.server = lab.group.start("server", command)
    names = ("pi-1", "pi-2", "pi-3")
    for name in names:
        lab.start_agent(name)
    lab.wait_for_devices(*names)
    generations = lab.deploy(write_lab_package(tmp_path / "p", hidden=LARGE))
    assert lab.wait_for_outcomes(generations) == dict.fromkeys(names, "committed")
    total = lab.device("pi-1").total_bytes
    assert total is not None
    # Each alone would be 3; who begins late gets the beginning alone.
    assert sum(lab.settled_sent_bytes(name) for name in names) < 2.2 * total
    assert all(lab.device(name).bad_blocks == 0 for name in names)
