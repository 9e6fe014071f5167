"""A device's certificate renewed, and the device enrolled anew, in a fleet of real processes over mutual TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgefleet import identity
from edgefleet_demo.processes import EDGEFLEET
from fleet_lab import Lab, write_lab_package


def next_window(lab: Lab, digest: str) -> None:
    before = lab.store.telemetry("pi-1", digest).windows
    lab.wait(lambda: lab.store.telemetry("pi-1", digest).windows > before, "a new window")


def events(lab: Lab, kind: str) -> list[str]:
    return [text for found, text in lab.store.events("pi-1") if found == kind]


def test_a_renewed_certificate_and_a_new_enrolment_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    first = lab.deploy(write_lab_package(tmp_path / "p"))
    assert lab.wait_for_outcomes(first) == {"pi-1": "committed"}
    digest = str(lab.device("pi-1").digest)
    own = identity.load(lab.home("pi-1") / "identity")

    subprocess.run([*EDGEFLEET, "fleet", "command", "pi-1", "renew", "--data", str(lab.data)], check=True)
    lab.wait(lambda: bool(events(lab, "certificate_renewed")), "the renewal")
    assert own.certificate_file == own.key_file == own.folder / "renewed.pem"
    lab.wait(lambda: lab.device("pi-1").online, "the device online with its new certificate")
    next_window(lab, digest)

    agent.stop()
    lab.enrol("pi-1", again=True)
    lab.start_agent("pi-1")
    # What it ran before it runs on; the server's word to the former enrolment is not taken, its word to this one is.
    next_window(lab, digest)
    lab.wait(lambda: lab.device("pi-1").generation > first["pi-1"], "the answer of the new enrolment")
    lab.wait(lambda: str(lab.device("pi-1").state) == "committed", "the outcome of the new enrolment")
    assert lab.device("pi-1").digest == digest
    assert events(lab, "enrolled_again") == [f"this was the enrolment {own.enrolment_id}"]
    assert lab.device("pi-1").enrolment_id != own.enrolment_id
