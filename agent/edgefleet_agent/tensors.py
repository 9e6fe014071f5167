"""Tensors in memory that two processes share: a memfd which both map, and where in it each tensor lies.

It holds no numpy, and says nothing of when the memory may be written: who asks and who answers take turns.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable

ALIGNMENT_BYTES = 64
"""Of every tensor: the widest vector registers in use."""
HEADER_BYTES = ALIGNMENT_BYTES
"""Before the first tensor: how long the last inference took, in seconds, as a double; and `Region.lent`."""
FIRST_BYTES = 64 * 1024
MAX_BYTES = 1024**3

Place = tuple[str, str, tuple[int, ...], int, int]
"""Name, numpy's name of the type, shape, offset and size in bytes."""


def aligned(offset: int) -> int:
    """The next offset at which a tensor may begin."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], start: int = HEADER_BYTES
) -> tuple[list[Place], int]:
    """Where tensors (name, type, shape, size in bytes) go, one after the other from `start`, and where they end."""
    places: list[Place] = []
    end = start
    for name, dtype, shape, size_bytes in tensors:
        offset = aligned(end)
        end = offset + size_bytes
        places.append((name, dtype, shape, offset, size_bytes))
    return places, end


_SECONDS = struct.Struct("<d")
_LENT = struct.Struct("<qq")
_LENT_OFFSET = _SECONDS.size


class Region:
    """The shared memory as one process sees it."""

    def __init__(self, descriptor: int) -> None:
        """Map what another process made; the descriptor belongs to this object then. Raises OSError."""
        self._descriptor = descriptor
        self._map()

    @classmethod
    def make(cls) -> Region:
        """Memory of its own, which a process that is started may inherit; raises OSError."""
        descriptor = os.memfd_create("edgefleet-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, FIRST_BYTES)
            # Were it made smaller by the one, the other would die of SIGBUS.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def fileno(self) -> int:
        """The memfd."""
        return self._descriptor

    def reserve(self, size_bytes: int) -> bool:
        """Have at least so much mapped, growing the memory where needed; whether `view` is another one now.

        Raises ValueError above `MAX_BYTES`, OSError when the kernel refuses.
        """
        if size_bytes <= len(self.view):
            return False
        if size_bytes > MAX_BYTES:
            raise ValueError(f"{size_bytes} bytes of tensors, {MAX_BYTES} are allowed")
        if os.fstat(self._descriptor).st_size < size_bytes:
            os.ftruncate(self._descriptor, max(size_bytes, 2 * len(self.view)))
        self._map()
        return True

    @property
    def inference_s(self) -> float:
        """How long the last inference took."""
        seconds: float = _SECONDS.unpack_from(self.view)[0]
        return seconds

    @inference_s.setter
    def inference_s(self, seconds: float) -> None:
        _SECONDS.pack_into(self.view, 0, seconds)

    @property
    def lent(self) -> tuple[int, int]:
        """(number of the lent client whose request the worker is at, 0 for none; how many such requests there were).

        What a worker cannot say any more when it hangs or has died.
        """
        client, requests = _LENT.unpack_from(self.view, _LENT_OFFSET)
        return client, requests

    @lent.setter
    def lent(self, client_requests: tuple[int, int]) -> None:
        _LENT.pack_into(self.view, _LENT_OFFSET, *client_requests)

    def _map(self) -> None:
        size_bytes = os.fstat(self._descriptor).st_size
        # The map itself goes away with the last view of it.
        self.view = memoryview(mmap.mmap(self._descriptor, size_bytes))
        """All of it, writable."""

    def close(self) -> None:
        """Give the memory up; views that are still held stay usable."""
        self.view.release()
        os.close(self._descriptor)
