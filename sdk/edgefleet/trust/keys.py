"""The operator's folder of private keys: made once, 0600 or encrypted, outside the server's data and outside git.

It holds ed25519 signing keys by name (`root-1`, `targets`, `release`, `operator-NAME`); which key may sign what is the
repository's metadata to say, never a file name's.
"""

from __future__ import annotations

import errno
import getpass
import os
import stat
import sys
from itertools import count
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgefleet import durable
from edgefleet.errors import InputError, StorageError, TrustError

KEYS_VARIABLE: Final = "EDGEFLEET_KEYS"
PASSPHRASE_VARIABLE: Final = "EDGEFLEET_KEYS_PASSPHRASE"  # noqa: S105 - a name
NAME_FIELD: Final = "x-edgefleet-name"
"""Of a public key in the metadata: the name of the private key's file, for people to read."""
NEXT_SUFFIX: Final = ".next"
RETIRED: Final = "retired"
OPERATOR_PREFIX: Final = "operator-"
_ENCRYPTED: Final = b"ENCRYPTED PRIVATE KEY"


class KeyFolder:
    """Private keys by name, in `folder`.

    `passphrase` encrypts what is made (PKCS8) and opens what is encrypted. Without one, keys are made in the clear
    with mode 0600, and a key that is encrypted asks EDGEFLEET_KEYS_PASSPHRASE, else the terminal.
    """

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self.folder = folder
        self.passphrase = passphrase

    def path(self, name: str) -> Path:
        """Where the private key of this name is, or would be."""
        return self.folder / f"{name}.pem"

    def names(self) -> list[str]:
        """Names of the keys that are here, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.pem"))

    def unlock(self) -> bytes | None:
        """The passphrase when a key here is encrypted, asked for when it was not given: then a new key is, too."""
        if self.passphrase is None:
            paths = (*self.folder.glob("*.pem"), *self.folder.glob("*.key"))
            if any(_ENCRYPTED in read_private(path, f"key {path.name}") for path in paths):
                self.passphrase = ask_passphrase()
        return self.passphrase

    def create(self, name: str) -> CryptoSigner:
        """Make a key; raises InputError when there is one of that name."""
        passphrase = self.unlock()
        private = Ed25519PrivateKey.generate()
        encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        make_private_folder(self.folder)
        write_private(
            self.path(name), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), f"key {name}"
        )
        return _signer(private, name)

    def signer(self, name: str) -> CryptoSigner:
        """The key of this name; raises InputError (absent, unreadable by design, passphrase) or TrustError (mode)."""
        pem = read_private(self.path(name), f"key {name}")
        if _ENCRYPTED in pem and self.passphrase is None:
            self.passphrase = ask_passphrase()
        return load_signer(pem, self.passphrase, name, self.path(name))

    def promote(self, name: str) -> None:
        """Put NAME.next in the place of NAME, whose old key goes to `retired/`: after new metadata names the new.

        It changes nothing where there is no NAME.next.
        """
        if not self.path(name + NEXT_SUFFIX).exists():
            return
        if self.path(name).exists():
            self.retire(name)
        self.path(name + NEXT_SUFFIX).rename(self.path(name))
        durable.sync_folder(self.folder)

    def retire(self, name: str) -> None:
        """Move a key that nothing names any more to `retired/`."""
        retired = make_private_folder(self.folder / RETIRED)
        number = next(number for number in count(1) if not (retired / f"{name}.{number}.pem").exists())
        self.path(name).rename(retired / f"{name}.{number}.pem")
        durable.sync_folder(retired)
        durable.sync_folder(self.folder)


def find_keys_folder(fleet: str, option: Path | str | None = None) -> Path:
    """The folder of a fleet's keys: the option, else EDGEFLEET_KEYS, else ~/.config/edgefleet/keys/FLEET."""
    chosen = option or os.environ.get(KEYS_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".config" / "edgefleet" / "keys" / fleet


def check_keys_folder(folder: Path, data: Path | None = None) -> None:
    """Refuse a folder that a server, a backup of its data or a git push would carry away; raises InputError."""
    real = folder.resolve()
    doing = f"choosing {folder} for private keys"
    elsewhere = f"choose another folder with --keys or {KEYS_VARIABLE}"
    if data is not None and (real.is_relative_to(data.resolve()) or data.resolve().is_relative_to(real)):
        raise InputError(doing, f"it lies with the server's data ({data})", elsewhere)
    for parent in (real, *real.parents):
        if (parent / ".git").exists():
            raise InputError(doing, f"it lies in a git working tree ({parent})", elsewhere)


def make_private_folder(folder: Path) -> Path:
    """A folder that its owner alone may enter (0700); raises StorageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"making the folder {folder}", str(error.strerror), "choose another folder") from error
    return folder


def write_private(path: Path, content: bytes, what: str) -> None:
    """Write a new file with mode 0600, whole or not at all.

    Raises InputError when there is one already, StorageError where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            _name_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
    except FileExistsError:
        raise InputError(f"writing the {what}", f"{path} exists already", "move it away first") from None
    except OSError as error:
        raise StorageError(f"writing the {what}", f"{path}: {error.strerror}", "choose another folder") from error


def _name_new(temporary: Path, path: Path) -> None:
    """Give a file its name; a hard link, unlike a rename, never replaces what is there. raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        # FAT, as sticks have it, knows no links.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or path.exists():
            raise
        temporary.rename(path)


def read_private(path: Path, what: str) -> bytes:
    """Content of a private file; raises TrustError when others may read it, InputError when it is not there."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise TrustError(
                f"reading the {what}", f"{path} has mode {mode:04o}: others may read it", f"run: chmod 600 {path}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"reading the {what}", f"there is no {path}", "name the folder of the fleet's keys with --keys"
        ) from None
    except OSError as error:
        raise InputError(f"reading the {what}", f"{path}: {error.strerror}", "let this user read it") from error


def load_signer(pem: bytes, passphrase: bytes | None, name: str, path: Path) -> CryptoSigner:
    """The signer of a PEM private key (ed25519); raises InputError."""
    try:
        private = load_pem_private_key(pem, passphrase if _ENCRYPTED in pem else None)
    except (ValueError, TypeError) as error:
        found = "the passphrase is wrong" if _ENCRYPTED in pem else "it is not a PEM private key"
        raise InputError(f"reading the key {name}", f"{path}: {found}", "check the file and the passphrase") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"reading the key {name}", f"{path} is not an ed25519 key", "give the fleet's own key")
    return _signer(private, name)


def ask_passphrase() -> bytes:
    """The passphrase of the keys, from the environment or the terminal; raises InputError where there is neither."""
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given.encode()
    if not sys.stdin.isatty():
        raise InputError(
            "opening the private keys",
            "they are encrypted and no passphrase was given",
            f"set {PASSPHRASE_VARIABLE} or run it in a terminal",
        )
    return getpass.getpass("Passphrase of the keys: ").encode()


def key_name(key: Key) -> str:
    """Name of a public key's private half, as the metadata tells it."""
    return str(key.unrecognized_fields.get(NAME_FIELD, key.keyid[:8]))


def _signer(private: Ed25519PrivateKey, name: str) -> CryptoSigner:
    public = SSlibKey.from_crypto(private.public_key())
    public.unrecognized_fields[NAME_FIELD] = name.removesuffix(NEXT_SUFFIX)
    return CryptoSigner(private, public)
