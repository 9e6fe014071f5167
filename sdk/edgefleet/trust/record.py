"""The operator's own copy of every root and of the last targets: what a ceremony builds on.

The server's folder may have been changed by whoever broke into it. Without this copy the next ceremony would sign what
he put there. It holds no secrets, and no packages: the release key signs only what it signed before.
"""

from __future__ import annotations

from typing import Final

from tuf.api.metadata import Metadata, Root

from edgefleet.errors import TrustError
from edgefleet.trust.keys import KeyFolder, make_private_folder
from edgefleet.trust.metadata_files import MetadataFiles
from edgefleet.trust.repository import Repository
from edgefleet.trust.roles import ROOT, TARGETS, parsed, verify_role

SIGNED: Final = "signed"
_DOING: Final = "comparing the server's trust metadata with what was signed here"
_REMEDY: Final = "find out who changed the server's folder, then restore it"


class Record:
    """Copies in KEYS/signed."""

    def __init__(self, keys: KeyFolder) -> None:
        self._files = MetadataFiles(make_private_folder(keys.folder / SIGNED))

    def keep(self, repository: Repository) -> None:
        """Copy what is new; after a change, and after `settle` found that the server's metadata follow from ours."""
        files = repository.files
        for version in sorted(files.versions(ROOT)):
            name = files.name(ROOT, version)
            if version not in self._files.versions(ROOT):
                self._files.write(name, files.read(name))
        version = repository.targets().signed.version
        name = files.name(TARGETS, version)
        self._files.write(name, files.read(name))
        self._files.remove_former([TARGETS])

    def settle(self, repository: Repository) -> None:
        """Put back what the server lost (an old backup, a thief), and refuse what does not follow from ours.

        Raises TrustError naming the file.
        """
        files = repository.files
        own = sorted(self._files.versions(ROOT))
        if not own:
            raise TrustError(_DOING, f"{self._files.folder} holds no root", "restore the folder of keys")
        for version in own:
            self._put_back(files, files.name(ROOT, version))
        trusted = self._root(self._files, own[-1])
        for version in sorted(files.versions(ROOT)):
            if version > own[-1]:
                trusted = _follow(trusted, self._root(files, version), files.name(ROOT, version))
        for version in self._files.versions(TARGETS)[:1]:
            self._put_back(files, files.name(TARGETS, version))

    def _put_back(self, files: MetadataFiles, name: str) -> None:
        content = self._files.read(name)
        if not (files.folder / name).exists():
            files.write(name, content)
        elif files.read(name) != content:
            raise TrustError(_DOING, f"{files.folder / name} is not the one that was signed", _REMEDY)

    @staticmethod
    def _root(files: MetadataFiles, version: int) -> Metadata[Root]:
        name = files.name(ROOT, version)
        return parsed(Root, files.read(name), str(files.folder / name))


def _follow(trusted: Metadata[Root], new: Metadata[Root], name: str) -> Metadata[Root]:
    """The next root of a chain (TUF specification, 5.3.4 and 5.3.5)."""
    if new.signed.version != trusted.signed.version + 1:
        raise TrustError(_DOING, f"{name} does not follow root {trusted.signed.version}", _REMEDY)
    verify_role(trusted.signed, ROOT, new, name)
    verify_role(new.signed, ROOT, new, name)
    return new
