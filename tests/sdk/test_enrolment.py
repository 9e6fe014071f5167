"""Enrolment, renewal and the identity folder: who becomes part of the fleet, and what the device gets."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from edgefleet import identity
from edgefleet.errors import EdgefleetError, InputError, StorageError, TrustError
from edgefleet.server import removal
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.enroll_cli import app
from edgefleet.server.store import Store
from edgefleet.trust import batch, issued, pki
from edgefleet.trust.certificates import make_key_and_csr, read_certificate
from edgefleet.trust.enrolment import Enrolled, enroll, flag_reason, renew
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.setup import init

NOW = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
DAY_S = 86400.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init("home", KeyFolder(tmp_path / "keys"), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Store:
    return Store(data / STORE_FILE)


def add(data: Path, store: Store, device: str = "pi", *, now: float = NOW, again: bool = False) -> Enrolled:
    return enroll(data, store, device, host="broker.lan", port=8883, now=now, again=again)


# The identity folder -----------------------------------------------------------------------------------


def test_an_enrolled_device_knows_who_it_is_and_how_to_prove_it(data: Path, store: Store, tmp_path: Path) -> None:
    enrolled = add(data, store)
    enrolled.write(tmp_path / "identity")
    own = identity.load(tmp_path / "identity")
    assert (own.fleet, own.device, own.enrolment_id) == ("home", "pi", enrolled.enrolment_id)
    assert (own.host, own.port, own.tls) == ("broker.lan", 8883, True)
    assert own.not_after == enrolled.not_after == NOW + 365 * DAY_S
    facts = read_certificate(own.certificate_file.read_bytes())
    assert (facts.device, facts.enrolment_id) == ("pi", own.enrolment_id)
    key = serialization.load_pem_private_key(own.key_file.read_bytes(), None)
    chain = x509.load_pem_x509_certificates(own.certificate_file.read_bytes())
    assert key.public_key() == chain[0].public_key()
    root = x509.load_pem_x509_certificate(own.ca_file.read_bytes())
    chain[1].verify_directly_issued_by(root)
    assert own.root_file.read_bytes() == (data / "trust" / "metadata" / "1.root.json").read_bytes()
    assert stat.S_IMODE(own.key_file.stat().st_mode) == 0o600
    row = store.enrolment("pi")
    assert row is not None
    assert (row.enrolment_id, row.serial_number, row.not_after) == (
        own.enrolment_id, facts.serial_number, own.not_after,
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["identity.json", "device.key", "device.crt", "ca.crt", "root.json"])
def test_a_folder_that_is_not_whole_says_so(data: Path, store: Store, tmp_path: Path, missing: str) -> None:
    add(data, store).write(tmp_path / "identity")
    (tmp_path / "identity" / missing).unlink()
    with pytest.raises(InputError, match="edgefleet enroll"):
        identity.load(tmp_path / "identity")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"fleet":"home","device":"pi"}',
        '{"fleet":"home","device":"../pi","enrolment_id":"0123456789abcdef","broker":{"host":"x","port":1,"tls":true}}',
        '{"fleet":"home","device":"pi","enrolment_id":"a/b","broker":{"host":"x","port":1,"tls":true}}',
        '{"fleet":"home","device":"pi","enrolment_id":"0123456789abcdef","broker":{"host":"","port":1,"tls":true}}',
        '{"fleet":"home","device":"pi","enrolment_id":"0123456789abcdef","broker":{"host":"x","port":0,"tls":true}}',
    ],
)  # fmt: skip
def test_a_damaged_identity_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(InputError, match=r"identity\.json") as caught:
        identity.load(tmp_path)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_make_an_identity_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("identity")
    (folder / "identity.json").write_bytes(content)
    with pytest.raises(InputError):
        identity.load(folder)


def test_a_renewal_replaces_key_and_certificate_together(data: Path, store: Store, tmp_path: Path) -> None:
    enrolled = add(data, store)
    enrolled.write(tmp_path / "identity")
    own = identity.load(tmp_path / "identity")
    key, csr = make_key_and_csr("pi")
    identity.write_renewed(own, key, renew(data, store, "pi", csr, NOW + 310 * DAY_S))
    assert own.key_file == own.certificate_file
    assert stat.S_IMODE(own.key_file.stat().st_mode) == 0o600
    assert own.not_after == NOW + 675 * DAY_S
    loaded = serialization.load_pem_private_key(own.key_file.read_bytes(), None)
    assert loaded.public_key() == x509.load_pem_x509_certificates(own.certificate_file.read_bytes())[0].public_key()
    # A new enrolment in the same folder counts, not the old one's renewal.
    add(data, store, again=True).write(tmp_path / "identity")
    again = identity.load(tmp_path / "identity")
    assert again.key_file.name == "device.key"
    assert read_certificate(again.certificate_file.read_bytes()).enrolment_id == again.enrolment_id


def test_it_is_renewed_from_60_days_before_its_end() -> None:
    end = NOW + 365 * DAY_S
    assert not identity.needs_renewal(end, end - 60 * DAY_S - 1)
    assert identity.needs_renewal(end, end - 60 * DAY_S)
    assert identity.needs_renewal(end, end + DAY_S)


def test_a_disk_that_refuses_is_named(data: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--again"):
        add(data, store).write(tmp_path / "file" / "identity")


# Enrolment ---------------------------------------------------------------------------------------------


def test_a_name_is_enrolled_once_unless_it_is_asked_for_again(data: Path, store: Store) -> None:
    first = add(data, store)
    with pytest.raises(InputError, match="--again"):
        add(data, store)
    assert issued.revoked_numbers(data / "pki") == set()
    second = add(data, store, again=True)
    assert second.enrolment_id != first.enrolment_id
    assert issued.revoked_numbers(data / "pki") == {first.serial_number}


def test_a_removed_device_is_enrolled_like_a_new_one(data: Path, store: Store) -> None:
    add(data, store)
    store.revoke_enrolment("pi", NOW)
    add(data, store)
    row = store.enrolment("pi")
    assert row is not None
    assert row.revoked_at is None


@pytest.mark.parametrize("device", ["Pi", "edgefleet-server", "", "a/b"])
def test_bad_names_and_foreign_requests_leave_nothing_behind(data: Path, store: Store, device: str) -> None:
    before = (data / "pki" / "issued.jsonl").read_bytes()
    with pytest.raises(InputError, match="device name"):
        add(data, store, device)
    with pytest.raises(TrustError, match="it is for 'nuc'"):
        enroll(data, store, "pi", host="x", port=1, now=NOW, csr_pem=make_key_and_csr("nuc")[1])
    with pytest.raises(InputError, match="without TLS"):
        enroll(data, store, "pi", host="broker.lan", port=1, now=NOW, tls=False)
    assert store.enrolments() == []
    assert (data / "pki" / "issued.jsonl").read_bytes() == before


def test_a_request_that_is_refused_revokes_nothing(data: Path, store: Store) -> None:
    add(data, store)
    with pytest.raises(TrustError):
        enroll(data, store, "pi", host="x", port=1, now=NOW, again=True, csr_pem=b"no request")
    with pytest.raises(TrustError, match="ended"):
        add(data, store, now=NOW + 11 * 365 * DAY_S, again=True)
    assert issued.revoked_numbers(data / "pki") == set()


def test_a_key_made_on_the_device_never_leaves_it(data: Path, store: Store) -> None:
    key, csr = make_key_and_csr("pi")
    enrolled = enroll(data, store, "pi", host="broker.lan", port=8883, now=NOW, csr_pem=csr)
    assert "device.key" not in enrolled.files
    assert not any(b"PRIVATE KEY" in content for content in enrolled.files.values())
    assert not any(key in path.read_bytes() for path in data.rglob("*") if path.is_file())


# Renewal -----------------------------------------------------------------------------------------------


def test_a_renewal_keeps_the_enrolment_and_the_old_certificate(data: Path, store: Store) -> None:
    enrolled = add(data, store)
    chain = renew(data, store, "pi", make_key_and_csr("pi")[1], NOW + DAY_S)
    facts = read_certificate(chain)
    assert (facts.enrolment_id, facts.not_after) == (enrolled.enrolment_id, NOW + 366 * DAY_S)
    assert issued.revoked_numbers(data / "pki") == set()
    row = store.enrolment("pi")
    assert row is not None
    assert (row.serial_number, row.not_after, row.enrolled_at) == (facts.serial_number, facts.not_after, NOW)


def test_no_renewal_for_strangers_the_removed_and_under_anothers_name(data: Path, store: Store) -> None:
    add(data, store)
    csr = make_key_and_csr("pi")[1]
    with pytest.raises(TrustError, match="not enrolled"):
        renew(data, store, "nuc", make_key_and_csr("nuc")[1], NOW)
    with pytest.raises(TrustError, match="it is for 'nuc'"):
        renew(data, store, "pi", make_key_and_csr("nuc")[1], NOW)
    store.revoke_enrolment("pi", NOW)
    with pytest.raises(TrustError, match="removed"):
        renew(data, store, "pi", csr, NOW)


def test_a_device_that_asks_again_and_again_gets_few_certificates_a_day(data: Path, store: Store) -> None:
    add(data, store)
    csr = make_key_and_csr("pi")[1]
    for second in range(2):
        renew(data, store, "pi", csr, NOW + 1 + second)
    with pytest.raises(TrustError, match="within a day"):
        renew(data, store, "pi", csr, NOW + 4)
    renew(data, store, "pi", csr, NOW + DAY_S + 4)
    # A server whose clock was ahead for a while refuses nobody afterwards.
    renew(data, store, "pi", csr, NOW - 400 * DAY_S)


# Two machines under one name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "told", "flagged"),
    [
        ("10000000abcd", "10000000abce", True),
        ("10000000abcd", "10000000abcd", False),
        ("00000000abcd", "ABCD\0", False),
        (None, "10000000abcd", False),
        ("10000000abcd", None, False),
        ("10000000abcd", "", False),
    ],
)
def test_two_serial_numbers_under_one_identity_are_flagged(
    data: Path, store: Store, known: str | None, told: str | None, flagged: bool
) -> None:
    enroll(data, store, "pi", host="broker.lan", port=8883, now=NOW, hardware_serial=known)
    row = store.enrolment("pi")
    assert row is not None
    reason = flag_reason(row, told)
    assert (reason is not None) == flagged
    assert reason is None or (str(known) in reason and str(told) in reason)


# Many at once, and the command --------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_batch_enrols_each_good_row_and_names_each_bad_one(data: Path, tmp_path: Path) -> None:
    text = "\ufeffdevice, hardware_serial\r\na-1,1234\r\n\r\nB 2,\r\na-1\r\na-3,1,2\r\na-4\r\n"
    (tmp_path / "devices.csv").write_text(text)
    done = run(
        "--batch", tmp_path / "devices.csv", "--data", data, "--broker", "broker.lan:8883", "-o", tmp_path / "all"
    )
    assert [line.split(":")[0] for line in done.output.splitlines()] == [
        "line 2, a-1", "line 4, B 2", "line 5, a-1", "line 6, a-3,1,2", "line 7, a-4",
    ]  # fmt: skip
    assert isinstance(done.exception, InputError)
    assert "3 of 5" in str(done.exception)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a-1", "a-4"]
    assert {identity.load(tmp_path / "all" / name).device for name in ("a-1", "a-4")} == {"a-1", "a-4"}
    rows = {row.device: row.hardware_serial for row in Store(data / STORE_FILE).enrolments()}
    assert rows == {"a-1": "1234", "a-4": None}


@pytest.mark.parametrize("text", ["", "device\n", "name\npi\n", "device,serial\npi,1\n", "pi\nnuc\n"])
def test_a_list_with_another_header_enrols_nobody(text: str) -> None:
    with pytest.raises(InputError, match="list of devices"):
        batch.read_rows(text)


@given(st.text(max_size=200))
def test_no_text_makes_the_list_fail_otherwise(text: str) -> None:
    for candidate in (text, "device\n" + text):
        try:
            rows = batch.read_rows(candidate)
        except EdgefleetError:
            continue
        assert [row.number for row in rows] == sorted({row.number for row in rows})


def test_a_key_made_on_the_device_becomes_an_identity_by_its_request(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "device"
    assert run("--make-csr", "pi", "-o", there).exit_code == 0
    assert isinstance(run("--make-csr", "pi", "-o", there).exception, InputError)
    here = tmp_path / "files"
    done = run("pi", "--csr", there / "device.csr", "--data", data, "--broker", "broker.lan:8883", "-o", here)
    assert done.exception is None
    for path in here.iterdir():
        path.rename(there / path.name)
    own = identity.load(there)
    key = serialization.load_pem_private_key(own.key_file.read_bytes(), None)
    assert key.public_key() == x509.load_pem_x509_certificates(own.certificate_file.read_bytes())[0].public_key()


def test_an_identity_is_not_written_over(data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--broker", "broker.lan:8883", "-o", tmp_path / "identity")
    assert run("pi", *common).exception is None
    before = (tmp_path / "identity" / "device.crt").read_bytes()
    assert isinstance(run("nuc", *common).exception, InputError)
    assert (tmp_path / "identity" / "device.crt").read_bytes() == before
    assert Store(data / STORE_FILE).enrolment("nuc") is None


@pytest.mark.parametrize("again", [False, True])
def test_where_nothing_can_be_written_nobody_is_enrolled_and_nothing_revoked(
    data: Path, tmp_path: Path, *, again: bool
) -> None:
    common = ("--data", data, "--broker", "broker.lan:8883", "-o")
    if again:
        assert run("pi", *common, tmp_path / "identity").exception is None
    before = issued.issued(data / "pki", "pi"), Store(data / STORE_FILE).enrolment("pi")
    (tmp_path / "file").write_text("")
    (tmp_path / "list.csv").write_text("device\npi\n")
    options = ("--again",) if again else ()
    done = run("pi", *common, tmp_path / "file" / "identity", *options)
    assert isinstance(done.exception, StorageError)
    assert "file is no folder" in str(done.exception)
    assert (
        "file is no folder" in run("--batch", tmp_path / "list.csv", *common, tmp_path / "file" / "x", *options).output
    )
    assert (issued.issued(data / "pki", "pi"), Store(data / STORE_FILE).enrolment("pi")) == before
    assert issued.revoked_numbers(data / "pki") == set()
    assert isinstance(run("--make-csr", "pi", "-o", tmp_path / "file" / "x").exception, StorageError)


def test_of_two_commands_that_enrol_one_name_at_once_one_wins(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue_device, winner = pki.issue_device, list[Enrolled]()

    def slow(*arguments: Any) -> bytes:
        chain = issue_device(*arguments)
        if not winner:
            winner.append(Enrolled("", "", "", 0.0, {}))
            winner[0] = add(data, store)
        return chain

    monkeypatch.setattr(pki, "issue_device", slow)
    with pytest.raises(InputError, match="a device of this name is enrolled"):
        add(data, store)
    row = store.enrolment("pi")
    assert row is not None
    assert row.serial_number == winner[0].serial_number
    lost = {entry.serial_number for entry in issued.issued(data / "pki", "pi")} - {row.serial_number}
    assert issued.revoked_numbers(data / "pki") == lost


def test_no_key_is_written_over_or_left_without_its_certificate(data: Path, tmp_path: Path) -> None:
    for name in ("pi", "other"):
        assert run("--make-csr", "pi", "-o", tmp_path / name).exception is None
    key = (tmp_path / "pi" / "device.key").read_bytes()
    common = ("--data", data, "--broker", "broker.lan:8883", "-o", tmp_path / "pi")
    for arguments in (("pi",), ("pi", "--csr", tmp_path / "other" / "device.csr")):
        done = run(*arguments, *common)
        assert isinstance(done.exception, InputError)
        assert "key" in str(done.exception)
    assert Store(data / STORE_FILE).enrolment("pi") is None
    assert run("pi", "--csr", tmp_path / "pi" / "device.csr", *common).exception is None
    assert (tmp_path / "pi" / "device.key").read_bytes() == key


def test_a_folder_that_is_no_servers_stays_as_it_is(tmp_path: Path) -> None:
    done = run("pi", "--data", tmp_path, "--broker", "broker.lan:8883", "-o", tmp_path / "identity")
    assert isinstance(done.exception, InputError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("pi",), ("pi", "--make-csr", "--csr", __file__), ("pi", "--batch", __file__, "--broker", "x:1")],
)
def test_options_that_make_no_sense_together_are_usage_errors(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*arguments, "-o", tmp_path / "x").exit_code == 2


# Renewals beside a removal or a new enrolment -----------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["removed", "enrolled again"])
def test_a_renewal_that_a_removal_overtakes_is_worth_nothing(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """The certificate would be issued after everything of that name was revoked."""
    add(data, store)
    real, made, escaped = pki.issue_device, list[Enrolled](), list[str]()

    def overtaken(*args: object) -> bytes:
        monkeypatch.setattr(pki, "issue_device", real)
        if meanwhile == "removed":
            store.revoke_enrolment("pi", NOW)
            pki.revoke(data, "pi", NOW)
        else:
            made.append(add(data, store, again=True))
        chain = real(*args)  # type: ignore[arg-type]
        escaped.append(read_certificate(chain).serial_number)
        return chain

    monkeypatch.setattr(pki, "issue_device", overtaken)
    with pytest.raises(TrustError, match=r"removed|enrolled anew"):
        renew(data, store, "pi", make_key_and_csr("pi")[1], NOW)
    assert escaped[0] in issued.revoked_numbers(data / "pki")
    row = store.enrolment("pi")
    assert row is not None
    if meanwhile == "enrolled again":
        assert (row.enrolment_id, row.serial_number) == (made[0].enrolment_id, made[0].serial_number)
        assert made[0].serial_number not in issued.revoked_numbers(data / "pki")


@pytest.mark.parametrize("name", ["broker", "all"])
def test_a_name_that_means_something_else_is_no_devices(data: Path, store: Store, name: str) -> None:
    """`all` would be deployed to with every device; revoking `broker` would revoke the broker's certificate."""
    with pytest.raises(InputError, match="choose another"):
        add(data, store, name)


def test_what_an_open_session_had_renewed_in_the_new_enrolments_name_is_revoked(data: Path, store: Store) -> None:
    """The request's topic says who asks, not which of his certificates he came in with."""
    add(data, store)
    add(data, store, "nuc")
    again = add(data, store, again=True)
    stolen = read_certificate(renew(data, store, "pi", make_key_and_csr("pi")[1], NOW + 1)).serial_number
    kept = {"pi": again.serial_number}
    assert removal.revoke_others(data, kept, NOW + 2) == ["pi"]
    assert removal.revoke_others(data, kept, NOW + 2) == []
    revoked = issued.revoked_numbers(data / "pki")
    assert stolen in revoked
    assert again.serial_number not in revoked
    row = store.enrolment("nuc")
    assert row is not None
    assert row.serial_number not in revoked
