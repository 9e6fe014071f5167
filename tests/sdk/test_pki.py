"""The fleet's certificates: what stands in them, who gets one, and what is revoked; read back with X.509 and TLS."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.errors import InputError, StorageError, TrustError
from edgefleet.identity import certificate_end
from edgefleet.protocol.topics import SERVER_USER
from edgefleet.trust import issued, pki
from edgefleet.trust.certificates import NOT_BEFORE, check_csr, host_name, make_key_and_csr, read_certificate

FLEET = "home"
NOW = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
DAY_S = 86400.0
ENROLMENT = "0123456789abcdef"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", FLEET, now=NOW)
    return tmp_path / "data"


def issue(data: Path, device: str = "pi", now: float = NOW) -> bytes:
    return pki.issue_device(data, make_key_and_csr(device)[1], FLEET, device, ENROLMENT, now)


def load(data: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((data / "pki" / name).read_bytes())


def crl(data: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((data / "pki" / "crl.pem").read_bytes())


# What stands in them -----------------------------------------------------------------------------------


def test_openssl_takes_the_chains_strictly_and_for_their_purpose_only(
    data: Path, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(shutil.which("openssl") is not None, "openssl (a system package)")
    folder = data / "pki"
    (tmp_path / "pi.crt").write_bytes(issue(data))
    leaves = {
        tmp_path / "pi.crt": {"sslclient"},
        folder / "broker.crt": {"sslserver"},
        folder / f"{SERVER_USER}.crt": {"sslserver", "sslclient"},
        folder / "edgefleet-hub-1.crt": {"sslclient"},
    }
    for leaf, purposes in leaves.items():
        for purpose in ("sslclient", "sslserver"):
            command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", str(folder / "crl.pem")]
            command += ["-CAfile", str(folder / "root-ca.crt"), "-untrusted", str(folder / "issuing-ca.crt")]
            done = subprocess.run([*command, "-purpose", purpose, str(leaf)], capture_output=True, check=False)
            assert (done.returncode == 0) == (purpose in purposes), (leaf.name, purpose, done.stderr)


def test_the_root_signs_issuing_authorities_and_these_sign_no_further_ones(data: Path) -> None:
    lengths = {"root-ca.crt": 1, "issuing-ca.crt": 0}
    for name, length in lengths.items():
        certificate = load(data, name)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert usage.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, length)
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature


def test_every_certificate_begins_before_any_clock_that_was_ever_set(data: Path) -> None:
    names = ["root-ca.crt", "issuing-ca.crt", "broker.crt", f"{SERVER_USER}.crt", "edgefleet-hub-1.crt"]
    certificates = [load(data, name) for name in names] + [x509.load_pem_x509_certificate(issue(data))]
    assert {certificate.not_valid_before_utc for certificate in certificates} == {NOT_BEFORE}
    assert crl(data).last_update_utc == NOT_BEFORE


def test_a_device_certificate_names_device_fleet_and_enrolment_and_lasts_a_year(data: Path) -> None:
    facts = read_certificate(issue(data))
    assert (facts.common_name, facts.device, facts.fleet, facts.enrolment_id) == ("pi", "pi", FLEET, ENROLMENT)
    assert facts.not_after == NOW + 365 * DAY_S
    chain = x509.load_pem_x509_certificates(issue(data))
    assert [certificate.subject for certificate in chain[1:]] == [load(data, "issuing-ca.crt").subject]
    chain[0].verify_directly_issued_by(chain[1])
    chain[1].verify_directly_issued_by(load(data, "root-ca.crt"))


def test_longest_names_fit_into_a_certificate(tmp_path: Path) -> None:
    name = "f" * 63
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", name, now=NOW)
    chain = pki.issue_device(tmp_path / "data", make_key_and_csr(name)[1], name, name, "f" * 64, NOW)
    assert read_certificate(chain).fleet == name


def test_the_broker_is_a_server_for_its_hosts_only(tmp_path: Path) -> None:
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", FLEET, ("broker.lan", "192.168.1.7", "::1"), now=NOW)
    folder = tmp_path / "data" / "pki"
    for host, good in {
        "broker.lan": True,
        "192.168.1.7": True,
        "::1": True,
        "broker": False,
        "10.0.0.1": False,
    }.items():
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "broker.crt", folder / "broker.key")
        client = ssl.create_default_context(cafile=str(folder / "root-ca.crt"))
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        there = server.wrap_bio(to_server, to_client, server_side=True)
        here = client.wrap_bio(to_client, to_server, server_hostname=host)
        with suppress(ssl.SSLWantReadError):
            here.do_handshake()
        with suppress(ssl.SSLWantReadError):
            there.do_handshake()
        if good:
            here.do_handshake()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                here.do_handshake()


@pytest.mark.parametrize("host", ["", " ", "a b", "-x", "x-", "a..b", "ü.de", "1.2.3.4/24", "*", "x" * 254, "a\n"])
def test_bad_hosts_are_refused(host: str) -> None:
    with pytest.raises(InputError, match="host"):
        host_name(host)


# Files -------------------------------------------------------------------------------------------------


def test_private_keys_are_for_their_owner_only_and_the_roots_stays_with_the_operator(data: Path) -> None:
    keys = [*(data / "pki").glob("*.key"), data / "pki" / "issued.jsonl", data.parent / "keys" / "root-ca.key"]
    assert len(keys) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE((data / "pki").stat().st_mode) == 0o700
    assert not (data / "pki" / "root-ca.key").exists()


def test_the_roots_key_is_encrypted_where_there_is_a_passphrase(tmp_path: Path) -> None:
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", FLEET, now=NOW, passphrase=b"secret")
    assert b"ENCRYPTED" in (tmp_path / "keys" / "root-ca.key").read_bytes()
    for wrong in (None, b"other"):
        with pytest.raises(TrustError, match="passphrase"):
            pki.replace_issuing(tmp_path / "keys", tmp_path / "data", FLEET, now=NOW, passphrase=wrong)
    pki.replace_issuing(tmp_path / "keys", tmp_path / "data", FLEET, now=NOW, passphrase=b"secret")


def test_a_second_creation_touches_nothing(data: Path) -> None:
    before = {path: path.read_bytes() for path in (data / "pki").iterdir()}
    with pytest.raises(InputError, match="there already"):
        pki.create_fleet_pki(data.parent / "other", data, FLEET)
    with pytest.raises(InputError, match="there already"):
        pki.create_fleet_pki(data.parent / "keys", data.parent / "elsewhere", FLEET)
    assert {path: path.read_bytes() for path in (data / "pki").iterdir()} == before
    assert not (data.parent / "other").exists()
    assert not (data.parent / "elsewhere").exists()


def test_a_clock_before_2020_makes_no_certificates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clock says 1970-01-01"):
        pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", FLEET, now=60.0)
    assert not (tmp_path / "data" / "pki").exists()


# Who gets one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [SERVER_USER, "edgefleet-hub-1", "edgefleet-removal", "Pi", "a/b", "", "+"])
def test_no_device_gets_a_name_of_the_servers_or_one_that_fits_no_topic(data: Path, device: str) -> None:
    with pytest.raises(InputError, match="device name"):
        pki.issue_device(data, make_key_and_csr("pi")[1], FLEET, device, ENROLMENT, NOW)


def request(key: object, names: list[str]) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def test_a_request_decides_nothing_but_the_key(data: Path) -> None:
    csr = request(ec.generate_private_key(ec.SECP384R1()), ["pi"])
    certificate = x509.load_pem_x509_certificate(pki.issue_device(data, csr, FLEET, "pi", ENROLMENT, NOW))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"urn:edgefleet:{FLEET}:pi:{ENROLMENT}"]
    assert certificate.public_key() == x509.load_pem_x509_csr(csr).public_key()


def test_requests_for_others_and_with_weak_keys_are_refused() -> None:
    good = ec.generate_private_key(ec.SECP256R1())
    check_csr(request(rsa.generate_private_key(65537, 2048), ["pi"]), "pi")
    for names in (["nuc"], [], ["pi", "nuc"], ["pi", "pi"]):
        with pytest.raises(TrustError, match="it is for"):
            check_csr(request(good, names), "pi")
    weak = [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP224R1())]  # noqa: S505
    for key in [*weak, ed25519.Ed25519PrivateKey.generate()]:
        with pytest.raises(TrustError, match="its key is neither"):
            check_csr(request(key, ["pi"]), "pi")


def test_a_request_that_another_key_signed_is_refused() -> None:
    pem = request(ec.generate_private_key(ec.SECP256R1()), ["pi"])
    other = x509.load_pem_x509_csr(request(ec.generate_private_key(ec.SECP256R1()), ["pi"]))
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    mine = x509.load_pem_x509_csr(pem).public_key().public_bytes(*point)
    at = der.index(mine)
    der[at : at + len(mine)] = other.public_key().public_bytes(*point)
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(TrustError, match="not signed by the key"):
        check_csr(forged, "pi")


@given(st.binary(max_size=400))
def test_no_bytes_make_the_readers_fail_otherwise(content: bytes) -> None:
    framed = b"-----BEGIN CERTIFICATE REQUEST-----\n" + content + b"\n-----END CERTIFICATE REQUEST-----\n"
    for hostile in (content, framed):
        with pytest.raises(TrustError):
            check_csr(hostile, "pi")
        with pytest.raises(TrustError):
            read_certificate(hostile.replace(b"CERTIFICATE REQUEST", b"CERTIFICATE"))


# The end of a certificate, without cryptography ---------------------------------------------------------


def test_the_end_of_a_certificate_is_read_as_cryptography_reads_it(data: Path) -> None:
    for days in (0, 1, 3000):
        chain = issue(data, now=NOW + days * DAY_S)
        assert certificate_end(chain.decode()) == read_certificate(chain).not_after
    # From 2050 on a date has four digits of its year (RFC 5280, section 4.1.2.5).
    pki.create_fleet_pki(data.parent / "k", data.parent / "late", FLEET, now=NOW + 20 * 365 * DAY_S)
    root = (data.parent / "late" / "pki" / "root-ca.crt").read_text()
    assert certificate_end(root) == NOW + 40 * 365 * DAY_S


@given(st.binary(max_size=200))
def test_the_end_of_no_certificate_is_an_error(content: bytes) -> None:
    pem = ssl.DER_cert_to_PEM_cert(content)
    with pytest.raises((ValueError, IndexError)):
        certificate_end(pem)


def test_no_certificate_outlives_its_authority(data: Path) -> None:
    end = NOW + 3650 * DAY_S
    assert read_certificate(issue(data, now=end - DAY_S)).not_after == end
    with pytest.raises(TrustError, match="ended on 2036"):
        issue(data, now=end)


# Revoking ----------------------------------------------------------------------------------------------


def test_an_empty_list_is_there_from_the_beginning_and_lasts_as_long_as_its_authority(data: Path) -> None:
    assert list(crl(data)) == []
    assert crl(data).next_update_utc == load(data, "issuing-ca.crt").not_valid_after_utc
    assert crl(data).is_signature_valid(load(data, "issuing-ca.crt").public_key())  # type: ignore[arg-type]


def test_revoking_means_every_certificate_of_the_device_and_no_other(data: Path) -> None:
    mine = [read_certificate(issue(data)).serial_number for _ in range(2)]
    other = read_certificate(issue(data, "nuc")).serial_number
    assert pki.revoke(data, "pi", NOW) == 2
    assert issued.revoked_numbers(data / "pki") == set(mine)
    assert pki.revoke(data, "pi", NOW) == 0
    assert pki.revoke(data, "nuc", NOW) == 1
    assert issued.revoked_numbers(data / "pki") == {*mine, other}
    assert crl(data).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3


def test_what_ended_long_ago_leaves_the_list(data: Path) -> None:
    old = read_certificate(issue(data)).serial_number
    pki.revoke(data, "pi", NOW)
    later = NOW + 4 * 365 * DAY_S
    new = read_certificate(issue(data, now=later)).serial_number
    pki.revoke(data, "pi", later)
    assert old not in issued.revoked_numbers(data / "pki")
    assert issued.revoked_numbers(data / "pki") == {new}


def test_a_line_that_a_power_cut_tore_hides_no_other(data: Path) -> None:
    first = read_certificate(issue(data)).serial_number
    path = data / "pki" / "issued.jsonl"
    path.write_bytes(path.read_bytes() + b'{"name":"pi","serial')
    second = read_certificate(issue(data)).serial_number
    assert pki.revoke(data, "pi", NOW) == 2
    assert issued.revoked_numbers(data / "pki") == {first, second}


def test_a_stolen_issuing_key_ends_with_a_new_authority(data: Path) -> None:
    before = (data / "pki" / "issuing-ca.crt").read_bytes()
    pki.revoke(data, "pi", NOW)
    pki.replace_issuing(data.parent / "keys", data, FLEET, now=NOW)
    assert before not in (data / "pki" / "ca-chain.crt").read_bytes()
    assert before not in (data / "pki" / "broker.crt").read_bytes()
    assert crl(data).issuer == load(data, "issuing-ca.crt").subject
    assert list(crl(data)) == []
    load(data, "issuing-ca.crt").verify_directly_issued_by(load(data, "root-ca.crt"))
    chain = x509.load_pem_x509_certificates(issue(data))
    chain[0].verify_directly_issued_by(load(data, "issuing-ca.crt"))
    names = {load(data, "issuing-ca.crt").subject.rfc4514_string()}
    pki.replace_issuing(data.parent / "keys", data, FLEET, now=NOW)
    names.add(load(data, "issuing-ca.crt").subject.rfc4514_string())
    assert len(names) == 2


@pytest.mark.parametrize("left", ["without its certificate", "with a new key"])
def test_a_rotation_that_was_cut_off_is_given_again(data: Path, left: str) -> None:
    certificate = data / "pki" / "issuing-ca.crt"
    before = certificate.read_bytes()
    if left == "without its certificate":
        certificate.unlink()
    else:
        pki.replace_issuing(data.parent / "keys", data, FLEET, now=NOW)
        certificate.write_bytes(before)
        with pytest.raises(TrustError, match="a rotation was cut off; run: edgefleet keys rotate issuing"):
            issue(data)
    pki.replace_issuing(data.parent / "keys", data, FLEET, now=NOW)
    x509.load_pem_x509_certificates(issue(data))[0].verify_directly_issued_by(load(data, "issuing-ca.crt"))
    load(data, "issuing-ca.crt").verify_directly_issued_by(load(data, "root-ca.crt"))


def test_the_key_of_another_fleet_makes_no_authority_here(data: Path) -> None:
    pki.create_fleet_pki(data.parent / "k", data.parent / "d", "other", now=NOW)
    with pytest.raises(TrustError, match="not the key of"):
        pki.replace_issuing(data.parent / "k", data, FLEET, now=NOW)


# The server's own, and what ends when ------------------------------------------------------------------


def test_the_servers_own_certificates_are_renewed_from_60_days_before_their_end(data: Path) -> None:
    certificate, key = pki.ensure_service(data, SERVER_USER, NOW)
    first = certificate.read_bytes()
    assert pki.ensure_service(data, SERVER_USER, NOW + 669 * DAY_S) == (certificate, key)
    assert certificate.read_bytes() == first
    pki.ensure_service(data, SERVER_USER, NOW + 670 * DAY_S)
    assert read_certificate(certificate.read_bytes()).not_after == NOW + (670 + 730) * DAY_S
    ssl.create_default_context().load_cert_chain(certificate, key)


def test_a_further_hub_gets_its_certificate_when_it_is_first_started(data: Path) -> None:
    certificate, key = pki.ensure_service(data, "edgefleet-hub-8", NOW)
    assert read_certificate(certificate.read_bytes()).common_name == "edgefleet-hub-8"
    ssl.create_default_context().load_cert_chain(certificate, key)
    with pytest.raises(InputError, match="no process of the server's"):
        pki.ensure_service(data, "edgefleet-hub-9", NOW)


def test_a_key_that_a_power_cut_left_without_its_certificate_is_made_good(data: Path) -> None:
    certificate, key = pki.ensure_service(data, SERVER_USER, NOW)
    key.write_bytes(make_key_and_csr("x")[0])
    pki.ensure_service(data, SERVER_USER, NOW)
    ssl.create_default_context().load_cert_chain(certificate, key)


def test_a_revoked_certificate_of_the_servers_own_is_made_anew(data: Path) -> None:
    certificate, _ = pki.ensure_service(data, "edgefleet-hub-1", NOW)
    first = certificate.read_bytes()
    assert pki.revoke(data, "edgefleet-hub-1", NOW) == 1
    pki.ensure_service(data, "edgefleet-hub-1", NOW)
    assert certificate.read_bytes() != first


def test_what_the_disk_refuses_is_one_line_that_names_the_file(data: Path) -> None:
    (data / "pki" / "issued.jsonl").unlink()
    (data / "pki" / "issued.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"issued\.jsonl"):
        issue(data)


@pytest.mark.parametrize("name", ["crl.pem", "issuing-ca.crt", "issuing-ca.key", "broker.crt", "broker.key"])
def test_a_damaged_file_is_one_line_that_names_it(data: Path, name: str) -> None:
    (data / "pki" / name).write_text("x")

    def everything() -> None:
        pki.expiries(data)
        pki.ensure_service(data, "broker", NOW)
        issue(data)

    with pytest.raises(TrustError, match=f"reading {data / 'pki' / name}: it is damaged; restore"):
        everything()
    (data / "pki" / name).unlink()
    if name in ("crl.pem", "issuing-ca.key"):
        with pytest.raises(StorageError, match=f"{name}: No such file or directory; restore .* from a backup"):
            everything()


def test_new_hosts_mean_a_new_certificate_and_the_same_ones_do_not(data: Path) -> None:
    certificate, _ = pki.ensure_service(data, "broker", NOW, ["broker.lan"])
    first = certificate.read_bytes()
    pki.ensure_service(data, "broker", NOW, ["broker.lan"])
    assert certificate.read_bytes() == first
    pki.ensure_service(data, "broker", NOW, ["broker.lan", "10.0.0.1"])
    assert certificate.read_bytes() != first


def test_everything_that_ends_is_listed(data: Path) -> None:
    days = {what: (end - NOW) / DAY_S for what, end in pki.expiries(data)}
    assert days == {
        "root authority": 7300, "issuing authority": 3650, "revocation list": 3650, "certificate of broker": 730,
        f"certificate of {SERVER_USER}": 730, "certificate of edgefleet-hub-1": 730,
    }  # fmt: skip


def test_a_folder_without_certificates_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="edgefleet keys init"):
        pki.expiries(tmp_path)
