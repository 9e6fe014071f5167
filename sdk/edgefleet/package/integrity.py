"""Whether a package on disk is whole: every blob's digest and size, and the block digests of every variant.

Does not look at signatures: who made the package is the trust room's question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edgefleet.errors import InputError, IntegrityError
from edgefleet.package import digest as digests
from edgefleet.package.manifest import Descriptor, Index, Layer, Manifest

_REMEDY = "write the package again"


def check(
    path_of: Callable[[str], Path], entry: Descriptor, index: Index, manifests: Iterable[Manifest], doing: str
) -> None:
    """Re-hash the index that `entry` names and all below it, and compare sizes and block digests with what is said.

    Raises InputError for a missing blob, IntegrityError for one that does not match.
    """
    found = list(manifests)
    items = [entry, *index.manifests, *(item for one in found for item in (one.config, *one.layers))]
    sizes = {digest: _hashed_size(path_of(digest), digest, doing) for digest in dict.fromkeys(i.digest for i in items)}
    for item in items:
        if sizes[item.digest] != item.size:
            said = f"blob {item.digest[:19]}… has {sizes[item.digest]} bytes, its descriptor says {item.size}"
            raise IntegrityError(doing, said, _REMEDY)
    for manifest in found:
        _check_blocks(path_of, manifest, doing)


def _hashed_size(path: Path, digest: str, doing: str) -> int:
    """Size in bytes of a blob that matches its digest."""
    try:
        whole = digests.digest_of_file(path) == digest
        size_bytes = path.stat().st_size
    except OSError as error:
        found = f"blob {digest[:19]}… cannot be read ({error.strerror})"
        raise InputError(doing, found, _REMEDY) from error
    if not whole:
        raise IntegrityError(doing, f"blob {digest[:19]}… is damaged", _REMEDY)
    return size_bytes


def _check_blocks(path_of: Callable[[str], Path], manifest: Manifest, doing: str) -> None:
    """A device checks each block against this list: a wrong one would end every download."""
    others = [layer for layer in manifest.layers if layer.media_type != Layer.BLOCKS]
    lists = [layer.digest for layer in manifest.layers if layer.media_type == Layer.BLOCKS]
    blocks = b"".join(raw for layer in others for raw in digests.block_digests(path_of(layer.digest)))
    if lists != [digests.digest_of(blocks)]:
        raise IntegrityError(doing, "a variant's block digests do not match its layers", _REMEDY)
