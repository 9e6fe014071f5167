"""The state folder at start: recovered from its slot, fitted to another enrolment, emptied for another device."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgefleet.errors import BusyError
from edgefleet.package.layout import Package
from edgefleet.protocol.messages import ActiveVariant, State
from edgefleet.protocol.signed import Action, Deployment, Desired, PackageVersion
from edgefleet_agent.journal import Enrolment, Refusal
from edgefleet_agent.slots import MANIFEST_FILE, file_name, layers_to_pull
from edgefleet_agent.state_folder import Installed, StateFolder, clock_floor, open_folder, record_installed
from sdk.packages_made import two_variants, write

OWN = Enrolment(fleet="home", device="pi-kitchen", enrolment_id="e1")
INDEX = "sha256:" + "1" * 64
PACKAGE = PackageVersion(package="digits", version="1.0.0", release=3, index_digest=INDEX)
DEPLOYMENT = Deployment(deployment_id="d", fleet="home", serial=9, target=PACKAGE, selector="all", expires=2e9)
DESIRED = Desired(
    fleet="home", device="pi-kitchen", enrolment_id="e1", generation=7, action=Action.INSTALL, valid_until=2e9,
    install_timeout_s=60.0, deployment=DEPLOYMENT,
)  # fmt: skip


class Committed:
    """A state folder with one committed variant, closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        write(folder / "package", two_variants(folder / "inputs"))
        package = Package(folder / "package")
        digest = package.index.manifests[0].digest
        self.active = ActiveVariant(digest=digest, index_digest=INDEX, name="small", runtime="litert", precision="int8")
        state = open_folder(self.folder, OWN)
        self.slot = state.slots.path(digest)
        self.slot.mkdir()
        for layer in layers_to_pull(package.manifest(digest)):
            shutil.copyfile(package.blobs.path(layer.digest), self.slot / file_name(layer))
        (self.slot / MANIFEST_FILE).write_bytes(package.blobs.read(digest, doing="testing"))
        record_installed(state.slots, Installed(enrolment=OWN, desired=DESIRED, active=self.active))
        state.slots.activate(digest)
        state.journal.record(
            state=State.COMMITTED, active=self.active, running=PACKAGE, desired=DESIRED, deployment=DEPLOYMENT,
            connection=4, refusal=Refusal(generation=8, reason="late"),
            commands=("c",),
        )  # fmt: skip
        (self.folder / "spool.sqlite").write_bytes(b"windows")
        (self.folder / "trust").mkdir()
        (self.folder / "trust" / "clock-floor").write_text("1750000000\n")
        state.lock.close()

    def open(self, own: Enrolment = OWN) -> StateFolder:
        state = open_folder(self.folder, own)
        state.lock.close()
        return state


@pytest.fixture(name="committed")
def _committed(tmp_path: Path) -> Committed:
    return Committed(tmp_path)


def test_a_restart_finds_what_was_there_and_says_nothing(committed: Committed) -> None:
    state = committed.open()
    entry = state.journal.entry
    assert (entry.active, entry.desired, entry.connection, state.said) == (committed.active, DESIRED, 4, [])
    assert clock_floor(state.trust_folder) == 1_750_000_000


def test_a_damaged_journal_is_recovered_from_the_current_slot(committed: Committed) -> None:
    (committed.folder / "journal.json").write_bytes(b"\0" * 100)
    state = committed.open()
    entry = state.journal.entry
    assert (entry.state, entry.active, entry.running) == (State.COMMITTED, committed.active, PACKAGE)
    # What was accepted is still known, so that nothing older is accepted again.
    assert (entry.desired, entry.deployment) == (DESIRED, DEPLOYMENT)
    assert [kind for kind, _ in state.said] == ["damage", "recovered"]
    again = committed.open()
    assert (again.journal.entry, again.said) == (entry, [])


@pytest.mark.parametrize("how", ["model", "manifest", "installed", "link", "no link"])
def test_nothing_unverified_is_recovered(committed: Committed, how: str) -> None:
    (committed.folder / "journal.json").write_bytes(b"")
    spoilt = {"model": "small.bin", "manifest": MANIFEST_FILE, "installed": ".installed.json"}
    if how in spoilt:
        path = committed.slot / spoilt[how]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif how == "link":
        shutil.rmtree(committed.slot)
    else:
        (committed.folder / "current").unlink()
    state = committed.open()
    entry = state.journal.entry
    assert (entry.state, entry.active, entry.desired) == (State.NO_MODEL, None, None)
    assert str(entry.reason).startswith("the journal could not be read")
    assert next(kind for kind, _ in state.said) == "damage"
    assert all(len(text.splitlines()) == 1 for _, text in state.said)


def test_a_new_enrolment_keeps_the_variant_and_the_order_of_decisions_only(committed: Committed) -> None:
    state = committed.open(OWN.model_copy(update={"enrolment_id": "e2"}))
    entry = state.journal.entry
    assert (entry.state, entry.active, entry.running) == (State.COMMITTED, committed.active, PACKAGE)
    assert entry.deployment == DEPLOYMENT
    assert (entry.desired, entry.refusal, entry.commands) == (None, None, ())
    assert entry.enrolment.enrolment_id == "e2"
    assert entry.connection == 4
    assert committed.slot.exists()
    assert [kind for kind, _ in state.said] == ["enrolled_again"]


def test_a_new_enrolment_beside_a_damaged_journal_keeps_the_variant_too(committed: Committed) -> None:
    (committed.folder / "journal.json").write_bytes(b"{")
    entry = committed.open(OWN.model_copy(update={"enrolment_id": "e2"})).journal.entry
    assert (entry.state, entry.active, entry.desired) == (State.COMMITTED, committed.active, None)


@pytest.mark.parametrize("change", [{"device": "nuc"}, {"fleet": "office"}])
def test_another_devices_folder_is_begun_anew(committed: Committed, change: dict[str, str]) -> None:
    state = committed.open(OWN.model_copy(update=change))
    entry = state.journal.entry
    assert (entry.state, entry.active, entry.desired, entry.deployment) == (State.IDLE, None, None, None)
    assert not committed.slot.exists()
    assert not state.spool_file.exists()
    assert not (committed.folder / "current").is_symlink()
    # What is known of another fleet's keys would only be in the way; the same fleet's stays.
    assert state.trust_folder.exists() == ("device" in change)
    assert [kind for kind, _ in state.said] == ["begun_anew"]


def test_one_agent_per_folder(committed: Committed) -> None:
    state = open_folder(committed.folder, OWN)
    with pytest.raises(BusyError, match="another agent is running"):
        open_folder(committed.folder, OWN)
    state.lock.close()
    committed.open()
