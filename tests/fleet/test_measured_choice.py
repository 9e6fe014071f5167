"""A variant measured on the device in several settings, and what the next device of the same hardware makes of it."""

from __future__ import annotations

from pathlib import Path

from edgefleet.protocol.decisions import DECISION_EVENT, DecisionRecord
from fleet_lab import Lab, write_lab_package

SELECTION = "threads = [1, 2]\nfinal_s = 1.0\n"


def test_what_one_device_measures_spares_the_next_of_its_kind(lab: Lab, tmp_path: Path) -> None:
    lab.start_agent("pi-1", selection=SELECTION)
    lab.wait_for_devices("pi-1")
    package = write_lab_package(tmp_path / "package")
    assert lab.wait_for_outcomes(lab.deploy(package, "pi-1")) == {"pi-1": "committed"}
    lab.wait(lambda: DECISION_EVENT in dict(lab.store.events("pi-1")), "the decision in the store")
    record = DecisionRecord.decode(dict(lab.store.events("pi-1"))[DECISION_EVENT].encode())
    assert {one.threads for one in record.candidates} == {1, 2}
    assert (record.chosen, record.index_digest) == (lab.device("pi-1").digest, package.digest)
    assert all(one.runs >= 64 for one in record.candidates)

    lab.start_agent("pi-2", selection=SELECTION)
    lab.wait_for_devices("pi-2")
    assert lab.wait_for_outcomes(lab.deploy(package, "pi-2")) == {"pi-2": "committed"}
    lab.wait(lambda: "committed" in dict(lab.store.events("pi-2")), "the events of pi-2")
    kinds = [kind for kind, _ in lab.store.events("pi-2")]
    # Throttled is what no machine for tests is; where it were, nobody takes it over.
    assert ("prior_taken_over" in kinds) is (record.complete and not record.throttled_share)
    assert (DECISION_EVENT in kinds) is ("prior_taken_over" not in kinds)
