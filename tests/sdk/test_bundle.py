"""Bundles: one file, the same bytes for the same content, verified offline, and nothing of a stranger's unpacked."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet import offline
from edgefleet.errors import EdgefleetError, InputError, IntegrityError, StorageError, TrustError
from edgefleet.package.bundle import open_bundle, trust_files, write_bundle
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import Package
from edgefleet.protocol.signed import Deployment, PackageVersion
from edgefleet.trust.deployments import sign_deployment
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.online import load_online, metadata_folder
from edgefleet.trust.repository import Repository
from edgefleet.trust.setup import init
from sdk.packages_made import spec, two_variants, variant, write

NOW = 1_800_000_000.0
DAY_S = 86_400.0
FILES = {"1.root.json": b'{"root": 1}', "timestamp.json": b'{"timestamp": 1}'}


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Package:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return Package(tmp_path / "package")


@pytest.fixture(name="temporary")
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; each test may look at what stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# One file ---------------------------------------------------------------------------------------------


def test_what_was_bundled_is_opened_again(made: Package, tmp_path: Path, temporary: Path) -> None:
    write_bundle(tmp_path / "x.bundle", made, FILES, b"letter")
    with open_bundle(tmp_path / "x.bundle") as bundle:
        assert bundle.package.digest == made.digest
        assert bundle.trust_files == FILES
        assert bundle.deployment == b"letter"
        assert list(temporary.iterdir())
    assert list(temporary.iterdir()) == []


def test_a_folder_of_ones_own_stays(made: Package, tmp_path: Path) -> None:
    write_bundle(tmp_path / "x.bundle", made, FILES)
    (tmp_path / "place").mkdir()
    with open_bundle(tmp_path / "x.bundle", tmp_path / "place") as bundle:
        assert bundle.deployment is None
    Package(tmp_path / "place").verify()


def test_the_same_content_gives_the_same_bytes(made: Package, tmp_path: Path) -> None:
    write(tmp_path / "again", two_variants(tmp_path / "other inputs"))
    write_bundle(tmp_path / "a", made, FILES, b"letter")
    write_bundle(tmp_path / "b", Package(tmp_path / "again"), dict(reversed(FILES.items())), b"letter")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bundle_is_a_plain_tar_without_owner_and_date(made: Package, tmp_path: Path) -> None:
    write_bundle(tmp_path / "x.bundle", made, FILES)
    with tarfile.open(tmp_path / "x.bundle", "r:") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:4]] == [
        "oci-layout",
        "index.json",
        "trust/1.root.json",
        "trust/timestamp.json",
    ]
    assert {member.name for member in members[4:]} == {
        f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in made.digests()
    }
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


@pytest.mark.service
def test_skopeo_reads_a_bundle_as_an_archive(made: Package, tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    need(shutil.which("skopeo") is not None, "skopeo")
    write_bundle(tmp_path / "x.bundle", made, FILES)
    command = ["skopeo", "inspect", "--raw", f"oci-archive:{tmp_path / 'x.bundle'}:1.2.0"]
    assert digest_of(subprocess.run(command, check=True, capture_output=True).stdout) == made.digest


def test_a_taken_name_and_a_damaged_package_write_nothing(made: Package, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(InputError, match="already there"):
        write_bundle(tmp_path / "mine", made, FILES)
    made.blobs.path(made.digests()[-1]).write_bytes(b"x")
    with pytest.raises(IntegrityError):
        write_bundle(tmp_path / "out" / "x.bundle", made, FILES)
    assert (tmp_path / "mine").read_text() == "keep"
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses_is_named(made: Package, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_bundle(tmp_path / "file" / "x.bundle", made, FILES)
    write_bundle(tmp_path / "x.bundle", made, FILES)
    with pytest.raises(StorageError):
        open_bundle(tmp_path / "x.bundle", tmp_path / "file")


# Strangers' files -------------------------------------------------------------------------------------


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def added(*members: tuple[tarfile.TarInfo, bytes]) -> Callable[[bytes], bytes]:
    """A bundle with more members before its first one."""

    def change(content: bytes) -> bytes:
        stream = io.BytesIO()
        for member, body in members:
            stream.write(member.tobuf(tarfile.GNU_FORMAT))
            stream.write(body + b"\0" * (-len(body) % 512))
        return stream.getvalue() + content

    return change


def without(name: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=stream, mode="w:") as new:
            for member in old:
                if member.name != name:
                    new.addfile(member, old.extractfile(member))
        return stream.getvalue()

    return change


BLOB = "blobs/sha256/" + "0" * 64
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "parent": (added((info("trust/../../evil.json", 1), b"x")), r"a file 'trust/\.\./\.\./evil\.json'"),
    "absolute": (added((info("/tmp/evil", 1), b"x")), "a file '/tmp/evil'"),  # noqa: S108 - it is refused
    "below a file": (added((info("index.json/x", 1), b"x")), "a file 'index.json/x'"),
    "other name": (added((info("blobs/sha256/abc", 1), b"x")), "a file 'blobs/sha256/abc'"),
    "long name": (added((info("trust/" + "a" * 500 + ".json", 1), b"x")), "no plain file"),
    "escape": (added((info("trust/\x1b[2J.json", 1), b"x")), r"a file 'trust/\\x1b\[2J.json'"),
    "symlink": (added((info("index.json", kind=tarfile.SYMTYPE, link="/etc/passwd"), b"")), "no plain file"),
    "hard link": (added((info(BLOB, kind=tarfile.LNKTYPE, link="/etc/passwd"), b"")), "no plain file"),
    "folder": (added((info("blobs", kind=tarfile.DIRTYPE), b"")), "no plain file"),
    "device": (added((info(BLOB, kind=tarfile.CHRTYPE), b"")), "no plain file"),
    "sparse": (added((info(BLOB, 1, kind=tarfile.GNUTYPE_SPARSE), b"x")), "no plain file"),
    "pax": (added((info("index.json", 1, kind=tarfile.XHDTYPE), b"x")), "no plain file"),
    "twice": (added((info("index.json", 2), b"{}")), "'index.json' twice"),
    "larger than the file": (added((info(BLOB, 2**40), b"")), "cut off in 'blobs/sha256/0000"),
    "negative": (added((info(BLOB, -512), b"")), "of -512 bytes"),
    "large metadata": (added((info("trust/a.json", 2**22 + 1), b"x" * (2**22 + 1))), "of 4194305 bytes"),
    "stray blob": (added((info(BLOB, 1), b"x")), "does not name blobs/sha256/"),
    "no end": (lambda content: content[:-1024], "cut off"),
    "half": (lambda content: content[: len(content) // 2], "cut off.*copy it again"),
    "empty": (lambda _content: b"", "cut off"),
    "behind its end": (lambda content: content + b"x", "behind its end"),
    "long end": (lambda content: content + b"\0" * 20_000, "behind its end"),
    "no tar": (lambda content: b"x" * len(content), "not a bundle"),
    "gzip": (lambda content: b"\x1f\x8b\x08" + content, "not a bundle|cut off"),
    "no index": (without("index.json"), "no index.json"),
    "no metadata": (without("trust/timestamp.json"), "no trust/timestamp.json"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_file_is_refused_in_one_line(made: Package, tmp_path: Path, temporary: Path, case: str) -> None:
    change, found = HOSTILE[case]
    write_bundle(tmp_path / "x.bundle", made, FILES)
    (tmp_path / "x.bundle").write_bytes(change((tmp_path / "x.bundle").read_bytes()))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=found) as caught:
        open_bundle(tmp_path / "x.bundle")
    assert str(caught.value).isprintable()
    assert list(temporary.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", [3, 150, 700, 100_000, -20_000], ids=["name", "sum", "filling", "blob", "last blob"])
def test_a_flipped_bit_is_found(made: Package, tmp_path: Path, temporary: Path, place: int) -> None:
    write_bundle(tmp_path / "x.bundle", made, FILES)
    content = bytearray((tmp_path / "x.bundle").read_bytes())
    content[place] ^= 1
    (tmp_path / "x.bundle").write_bytes(content)
    with pytest.raises(EdgefleetError) as caught:
        open_bundle(tmp_path / "x.bundle")
    assert str(caught.value).startswith(f"opening the bundle {tmp_path / 'x.bundle'}: "), "not the temporary folder"
    assert list(temporary.iterdir()) == []


def test_no_damage_gets_through_or_out(tmp_path: Path, temporary: Path) -> None:
    """Bytes changed and blocks moved, with header sums put right: an error for people, or the same package."""
    write(tmp_path / "package", [variant(tmp_path / "inputs", spec(), 100)])
    package = Package(tmp_path / "package")
    write_bundle(tmp_path / "x.bundle", package, FILES)
    whole = (tmp_path / "x.bundle").read_bytes()
    chance = random.Random(5)
    refusals: list[str] = []
    for _ in range(200):
        content = bytearray(whole)
        place = chance.randrange(len(content))
        if chance.random() < 0.5:
            content[place] = chance.randrange(256)
        else:
            moved = chance.randrange(0, len(content), 512)
            content[place // 512 * 512 : place // 512 * 512] = content[moved : moved + 512 * chance.randrange(1, 4)]
        for start in range(0, len(content) - 511, 512):
            if content[start + 257 : start + 262] == b"ustar":
                content[start + 148 : start + 156] = b" " * 8
                content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
        (tmp_path / "changed").write_bytes(content)
        try:
            with open_bundle(tmp_path / "changed") as bundle:
                assert bundle.package.digest == package.digest
        except EdgefleetError as error:
            refusals.append(str(error))
        assert list(temporary.iterdir()) == []
    assert len(refusals) > 150
    assert all(refusal.isprintable() for refusal in refusals)


def test_a_missing_blob_is_found(made: Package, tmp_path: Path, temporary: Path) -> None:
    write_bundle(tmp_path / "x.bundle", made, FILES)
    victim = f"blobs/sha256/{made.digests()[-1].removeprefix('sha256:')}"
    (tmp_path / "x.bundle").write_bytes(without(victim)((tmp_path / "x.bundle").read_bytes()))
    with pytest.raises(InputError, match="cannot be read"):
        open_bundle(tmp_path / "x.bundle")
    assert list(temporary.iterdir()) == []


def test_nothing_there_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_bundle(tmp_path / "nothing")


# Who vouches for it -----------------------------------------------------------------------------------


class Home:
    """A fleet with one published package."""

    def __init__(self, folder: Path, package: Package, now: float | None = NOW) -> None:
        self.keys, self.data = KeyFolder(folder / "keys"), folder / "data"
        init("home", self.keys, self.data, now=now)
        self.metadata = metadata_folder(self.data)
        self.version = PackageVersion(
            package=package.name, version=package.version, release=package.release, index_digest=package.digest
        )
        repository = Repository(self.metadata)
        index = package.blobs.read(package.digest, doing="publishing")
        repository.add_target(self.version, index, self.keys.signer("release"), now)
        repository.publish(load_online(self.data), now)

    def deployment(self, key: str = "operator-default", **changed: Any) -> bytes:
        fields = {
            "deployment_id": "d1",
            "fleet": "home",
            "serial": 1,
            "target": self.version,
            "selector": "all",
            "expires": NOW + DAY_S,
            **changed,
        }
        return sign_deployment(Deployment(**fields), self.keys.signer(key)).encode()


@pytest.fixture(name="home", scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Package]:
    folder = tmp_path_factory.mktemp("home")
    write(folder / "package", two_variants(folder / "inputs"))
    package = Package(folder / "package")
    return Home(folder, package), package


def checked(
    home: tuple[Home, Package], path: Path, root: bytes | None = None, now: float = NOW, **changed: Any
) -> offline.Vouched:
    fleet, package = home
    write_bundle(path, package, changed.get("trust", trust_files(fleet.metadata)), changed.get("deployment"))
    with open_bundle(path) as bundle:
        return offline.check(bundle, root or (fleet.metadata / "1.root.json").read_bytes(), now)


def test_a_bundle_carries_what_a_device_needs_to_believe_it(home: tuple[Home, Package], tmp_path: Path) -> None:
    fleet, _ = home
    vouched = checked(home, tmp_path / "x.bundle", deployment=fleet.deployment())
    assert vouched.version == fleet.version
    assert vouched.deployment is not None
    assert vouched.deployment.deployment_id == "d1"
    assert checked(home, tmp_path / "y.bundle").deployment is None


def test_the_metadata_in_it_is_the_newest_of_each_role_and_every_root(home: tuple[Home, Package]) -> None:
    names = trust_files(home[0].metadata)
    roles = sorted(name.removesuffix(".json").rpartition(".")[2] for name in names)
    assert roles == ["packages", "root", "snapshot", "targets", "timestamp"]
    signed = json.loads(next(names[name] for name in names if "packages" in name))["signed"]
    assert list(signed["targets"]) == ["packages/made@1.2.0"]


def test_the_root_of_another_fleet_refuses_it(home: tuple[Home, Package], tmp_path: Path) -> None:
    other = Home(tmp_path / "other", home[1])
    with pytest.raises(TrustError):
        checked(home, tmp_path / "x.bundle", root=(other.metadata / "1.root.json").read_bytes())


def test_metadata_that_expired_on_the_way_is_refused(home: tuple[Home, Package], tmp_path: Path) -> None:
    assert checked(home, tmp_path / "x.bundle", now=NOW + 6 * DAY_S).version == home[0].version
    with pytest.raises(TrustError, match="expired"):
        checked(home, tmp_path / "y.bundle", now=NOW + 8 * DAY_S)


def test_what_nobody_published_is_refused(home: tuple[Home, Package], tmp_path: Path) -> None:
    variants = two_variants(tmp_path / "inputs")
    write(tmp_path / "next", variants, version="1.3.0")
    with pytest.raises(TrustError, match="no release key signed this version"):
        checked((home[0], Package(tmp_path / "next")), tmp_path / "x.bundle")
    variants[0].model_files[0].write_bytes(b"another model")
    write(tmp_path / "other", variants)
    with pytest.raises(TrustError, match="the release key signed"):
        checked((home[0], Package(tmp_path / "other")), tmp_path / "y.bundle")


@pytest.mark.parametrize("role", ["root", "targets", "packages", "snapshot", "timestamp"])
def test_changed_metadata_is_refused(home: tuple[Home, Package], tmp_path: Path, role: str) -> None:
    trust = trust_files(home[0].metadata)
    name = next(name for name in trust if role in name)
    parsed = json.loads(trust[name])
    parsed["signed"]["expires"] = "2099-01-01T00:00:00Z"
    root = trust["1.root.json"]
    trust[name] = json.dumps(parsed).encode()
    with pytest.raises(TrustError):
        checked(home, tmp_path / "x.bundle", root=trust["1.root.json"] if name == "1.root.json" else root, trust=trust)


def test_deployments_that_no_operator_signed_for_it_are_refused(home: tuple[Home, Package], tmp_path: Path) -> None:
    fleet, _ = home
    other = fleet.version.model_copy(update={"version": "9"})
    for place, (letter, found) in enumerate(
        [
            (fleet.deployment("release"), "sign"),
            (fleet.deployment(target=other), "it is for made 9"),
            (fleet.deployment(expires=NOW - 1), "expired"),
            (b"{}", "not well formed"),
            (b"\xff", "not well formed"),
        ]
    ):
        with pytest.raises(TrustError, match=found):
            checked(home, tmp_path / f"{place}.bundle", deployment=letter)


def test_a_folder_without_metadata_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"timestamp\.json cannot be read"):
        trust_files(tmp_path)
    for text in ("", "{}", "[]", '{"signed": {"meta": {"snapshot.json": {"version": "../x"}}}}'):
        (tmp_path / "timestamp.json").write_text(text)
        with pytest.raises(InputError, match="name the folder DATA/trust/metadata"):
            trust_files(tmp_path)
