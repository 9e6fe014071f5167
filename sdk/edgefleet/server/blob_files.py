"""Blobs as they are being sent: the few files in use stay open, and one that was withdrawn is noticed at once.

Which piece is read is the hub's rule.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import IO

from edgefleet.package.layout import BlobStore
from edgefleet.server.hub_work import Piece

OPEN_BLOBS = 16


class OpenBlobs:
    """Reads pieces; a file that was replaced is opened anew."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()

    def read(self, piece: Piece) -> bytes:
        """The piece's bytes; raises OSError when the blob is gone, or is shorter than it was."""
        stream = self._open.pop(piece.digest, None)
        # An open file outlives its name: without a look at the links a withdrawn blob would still be sent.
        if stream is not None and os.fstat(stream.fileno()).st_nlink == 0:
            stream.close()
            stream = None
        if stream is None:
            stream = self._blobs.path(piece.digest).open("rb", buffering=0)
        self._open[piece.digest] = stream
        if len(self._open) > OPEN_BLOBS:
            self._open.popitem(last=False)[1].close()
        content = os.pread(stream.fileno(), piece.size, piece.offset)
        if len(content) < piece.size:
            raise OSError(f"{piece.digest} is shorter than it was")
        return content
