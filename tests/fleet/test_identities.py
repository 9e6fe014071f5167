"""Identities of real agents: removed while connected, enrolled again, renewed over the wire, expired."""

from __future__ import annotations

import subprocess
import time

import pytest

from edgefleet import identity
from edgefleet.errors import InputError
from edgefleet.protocol.messages import State
from edgefleet.trust import enrolment
from edgefleet.trust.certificates import read_certificate
from edgefleet_demo.processes import EDGEFLEET
from fleet_lab import Lab, LabOpener, write_lab_package
from patience import PATIENCE_S

DAY_S = 86400.0
pytestmark = pytest.mark.service


def enrol_at(lab: Lab, name: str, when: float) -> identity.DeviceIdentity:
    """An identity whose certificate was made at another time."""
    enrolled = enrolment.enroll(lab.data, lab.store, name, host="127.0.0.1", port=lab.broker.port, now=when)
    enrolled.write(lab.home(name) / "identity")
    return identity.load(lab.home(name) / "identity")


def log_of(lab: Lab, name: str) -> str:
    return (lab.folder / "logs" / f"{name}.log").read_text()


def test_a_removed_agent_is_put_off_says_why_and_another_one_stays(lab: Lab) -> None:
    leaver = lab.start_agent("leaver")
    lab.start_agent("stayer")
    lab.wait_for_devices("leaver", "stayer")
    package = write_lab_package(lab.folder / "package")
    assert set(lab.wait_for_outcomes(lab.deploy(package)).values()) == {State.COMMITTED}

    command = [*EDGEFLEET, "fleet", "remove", "leaver", "--data", str(lab.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "still to do" not in done.stderr

    lab.wait(lambda: "revoked" in log_of(lab, "leaver"), "the agent says that its certificate was revoked")
    digest = lab.device("stayer").digest
    assert digest is not None
    windows = lab.store.telemetry("stayer", digest).windows
    lab.wait(lambda: lab.store.telemetry("stayer", digest).windows > windows, "the other one goes on reporting")
    assert leaver.exit_code is None  # It goes on inferring: a removal takes the fleet away, not the device.
    assert "leaver" not in lab.deploy(write_lab_package(lab.folder / "next", version="2.0.0", release=2))
    assert lab.store.desired("leaver") is None

    # Enrolled anew, in the same folder, it is a member again, and does what is wanted of it now.
    lab.enrol("leaver", again=True)
    leaver.stop()
    lab.start_agent("leaver")
    lab.wait(lambda: lab.device("leaver").online, "it is back")
    third = write_lab_package(lab.folder / "third", version="3.0.0", release=3)
    assert lab.wait_for_outcomes(lab.deploy(third, "leaver")) == {"leaver": State.COMMITTED}


def test_a_certificate_is_renewed_over_the_wire_before_it_ends(lab: Lab) -> None:
    own = enrol_at(lab, "old", time.time() - 320 * DAY_S)
    first = own.not_after
    lab.start_agent("old")
    lab.wait(lambda: own.not_after > first, "a new certificate")
    assert own.key_file.name == identity.RENEWED_FILE
    assert own.not_after > time.time() + 364 * DAY_S
    facts = read_certificate(own.certificate_file.read_bytes())
    assert (facts.device, facts.enrolment_id) == ("old", own.enrolment_id)
    row = lab.store.enrolment("old")
    assert row is not None
    assert (row.serial_number, row.not_after) == (facts.serial_number, facts.not_after)
    # With the new key it takes part as before.
    assert lab.wait_for_outcomes(lab.deploy(write_lab_package(lab.folder / "package"))) == {"old": State.COMMITTED}


def test_an_agent_with_an_expired_certificate_says_so_in_one_line(lab: Lab) -> None:
    enrol_at(lab, "late", time.time() - 400 * DAY_S)
    lab.start_agent("late")
    lab.wait(lambda: "expired" in log_of(lab, "late"), "the agent says what is wrong")
    (line, *_) = [line for line in log_of(lab, "late").splitlines() if "expired" in line]
    assert "certificate" in line
    assert lab.store.device("late") is None
    assert "Traceback" not in log_of(lab, "late")


def test_without_certificates_a_removed_agent_is_told_nothing_more(lab_opener: LabOpener) -> None:
    """On loopback nobody can be kept from coming back under a name; the server goes by its store."""
    lab = lab_opener(tls=False)
    lab.start_agent("leaver")
    lab.wait_for_devices("leaver")
    generations = lab.deploy(write_lab_package(lab.folder / "package"))
    assert lab.wait_for_outcomes(generations) == {"leaver": State.COMMITTED}
    command = [*EDGEFLEET, "fleet", "remove", "leaver", "--no-tls", "--data", str(lab.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    lab.wait(lambda: log_of(lab, "leaver").count("connected to the broker") > 1, "the agent was put off and came back")
    assert lab.store.desired("leaver") is None
    with pytest.raises(InputError):
        lab.deploy(write_lab_package(lab.folder / "next", version="2.0.0", release=2))
