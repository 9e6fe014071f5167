"""The folder of private keys: where it may be, who may read it, and that a fleet is founded whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edgefleet.errors import EdgefleetError, InputError, TrustError
from edgefleet.trust import setup
from edgefleet.trust.keys import (
    KEYS_VARIABLE,
    PASSPHRASE_VARIABLE,
    KeyFolder,
    check_keys_folder,
    find_keys_folder,
    read_private,
)
from edgefleet.trust.setup import init, read_fleet
from sdk.trust_lab import NOW, TrustLab


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    made = keys.create("release")
    assert (mode(keys.folder), mode(keys.path("release"))) == (0o700, 0o600)
    assert keys.signer("release").public_key == made.public_key
    assert keys.names() == ["release"]


def test_a_key_is_never_made_twice(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    made = keys.create("release")
    with pytest.raises(InputError, match="exists already"):
        keys.create("release")
    assert keys.signer("release").public_key == made.public_key
    assert [path.name for path in tmp_path.iterdir()] == ["release.pem"], "a half-written file is left"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, bits: int) -> None:
    keys = KeyFolder(tmp_path)
    keys.create("release")
    keys.path("release").chmod(bits)
    with pytest.raises(TrustError, match=rf"mode {bits:04o}: others may read it; run: chmod 600"):
        keys.signer("release")


def test_a_missing_key_and_another_file_are_said(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*release\.pem"):
        keys.signer("release")
    keys.path("release").write_bytes(b"hello")
    keys.path("release").chmod(0o600)
    with pytest.raises(InputError, match="not a PEM private key"):
        keys.signer("release")
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    keys.path("release").write_bytes(pem)
    with pytest.raises(InputError, match="not an ed25519 key"):
        keys.signer("release")


def test_encrypted_keys_open_with_their_passphrase_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = KeyFolder(tmp_path, b"correct horse").create("release")
    assert b"ENCRYPTED" in (tmp_path / "release.pem").read_bytes()
    assert KeyFolder(tmp_path, b"correct horse").signer("release").public_key == made.public_key
    with pytest.raises(InputError, match="the passphrase is wrong"):
        KeyFolder(tmp_path, b"battery staple").signer("release")
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(InputError, match=f"set {PASSPHRASE_VARIABLE}"):
        KeyFolder(tmp_path).signer("release")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    assert KeyFolder(tmp_path).signer("release").public_key == made.public_key


def test_a_new_key_beside_encrypted_ones_is_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KeyFolder(tmp_path, b"correct horse").create("root-1")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    KeyFolder(tmp_path).create("root-2")
    assert b"ENCRYPTED" in (tmp_path / "root-2.pem").read_bytes()


def test_the_folder_is_the_option_else_the_variable_else_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_keys_folder("home") == tmp_path / ".config" / "edgefleet" / "keys" / "home"
    monkeypatch.setenv(KEYS_VARIABLE, "/stick/keys")
    assert find_keys_folder("home") == Path("/stick/keys")
    assert find_keys_folder("home", tmp_path / "mine") == tmp_path / "mine"


@pytest.mark.parametrize("folder", ["data/keys", "data", "data/../data/keys", "link/keys", "."])
def test_keys_do_not_lie_with_the_servers_data(tmp_path: Path, folder: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="lies with the server's data"):
        check_keys_folder(tmp_path / folder, tmp_path / "data")
    check_keys_folder(tmp_path / "keys", tmp_path / "data")


@pytest.mark.parametrize("git", ["folder", "file of a worktree"])
def test_keys_do_not_lie_in_a_git_working_tree(tmp_path: Path, git: str) -> None:
    repository = tmp_path / "project"
    (repository / "deep").mkdir(parents=True)
    if git == "folder":
        (repository / ".git").mkdir()
    else:
        (repository / ".git").write_text("gitdir: elsewhere")
    with pytest.raises(InputError, match="lies in a git working tree"):
        check_keys_folder(repository / "deep" / "keys")


def test_a_folder_in_the_place_of_a_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "release.pem").mkdir(mode=0o700)
    with pytest.raises(InputError, match=r"release\.pem: Is a directory"):
        read_private(tmp_path / "release.pem", "key release")


# --- founding ---


def test_a_fleet_is_founded_with_private_files_private(tmp_path: Path) -> None:
    lab = TrustLab(tmp_path)
    assert lab.keys.names() == ["operator-anna", "operator-ben", "release", "root-1", "root-2", "root-3", "targets"]
    private = [*lab.keys.folder.glob("*.pem"), *lab.data.rglob("*.pem"), *tmp_path.rglob("*.key")]
    assert {mode(path) for path in private if path.name != "crl.pem"} == {0o600}
    assert (read_fleet(lab.data), read_fleet(lab.keys.folder)) == ("home", "home")
    assert sorted(path.name for path in lab.data.iterdir()) == ["fleet.json", "pki", "trust"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "keys"]


def test_a_second_founding_is_refused(tmp_path: Path) -> None:
    lab = TrustLab(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds the fleet home"):
        init("home", lab.keys, lab.data)
    with pytest.raises(InputError, match="holds the fleet home"):
        init("home", KeyFolder(tmp_path / "other-keys"), lab.data)
    with pytest.raises(InputError, match="keys is not empty"):
        init("home", lab.keys, tmp_path / "other-data")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fleet": "Not A Name"}, "fleet name"),
        ({"operators": ()}, "operators must be named"),
        ({"operators": ("anna", "anna")}, "each once"),
        ({"operators": ("../anna",)}, "operator name"),
        ({"root_keys": 2, "root_threshold": 3}, "3 of 2 root keys"),
        ({"root_keys": 10}, "2 of 10 root keys"),
        ({"root_threshold": 0}, "0 of 3 root keys"),
    ],
)
def test_a_founding_that_makes_no_sense_leaves_nothing(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    arguments: dict[str, object] = {"fleet": "home", "keys": KeyFolder(tmp_path / "k"), "data": tmp_path / "d"}
    with pytest.raises(InputError, match=why):
        init(**{**arguments, **changes})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_both_folders_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise EdgefleetError("making certificates", "the disk is full", "free it")

    with monkeypatch.context() as patch:
        patch.setattr(setup, "create_fleet_pki", fails)
        with pytest.raises(EdgefleetError, match="the disk is full"):
            init("home", KeyFolder(tmp_path / "keys"), tmp_path / "data", now=NOW)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    TrustLab(tmp_path)


def test_a_passphrase_covers_every_private_key_of_the_operator(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys", b"correct horse")
    init("home", keys, tmp_path / "data", now=NOW)
    for path in [*keys.folder.glob("*.pem"), *keys.folder.glob("*.key")]:
        assert b"ENCRYPTED" in path.read_bytes(), path
    assert b"ENCRYPTED" not in (tmp_path / "data" / "trust" / "online.pem").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fleet": 3}', '{"fleet": "../x"}'])
def test_a_damaged_name_of_the_fleet_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "fleet.json").write_text(content)
    with pytest.raises(InputError, match="fleet"):
        read_fleet(tmp_path)
