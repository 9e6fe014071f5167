"""Disk work beside the loop: one job at a time in a thread of its own, awaited through a file descriptor.

Hashing and fsync let the interpreter go, so the loop runs on meanwhile. What a job does is the caller's business.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
Cancelled = Callable[[], bool]


class Work(Generic[Result]):
    """A job that was started; `result` when it is `finished`."""

    def __init__(self, turn: threading.Lock, job: Callable[[Cancelled], Result]) -> None:
        """Start it. Jobs with the same `turn` run one after the other; `job` asks its argument whether to stop."""
        self._ours, self._theirs = socket.socketpair()
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(turn, job), name="disk-work", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Becomes readable when the job has ended."""
        return self._ours.fileno()

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    def result(self) -> Result:
        """What the job returned; raises what it raised. Once, when `finished`."""
        self._thread.join()
        self._ours.close()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def cancel(self) -> None:
        """Tell the job to stop, and do not wait for it; its result is nobody's."""
        self._cancelled.set()
        self._ours.close()

    def _run(self, turn: threading.Lock, job: Callable[[Cancelled], Result]) -> None:
        try:
            with turn:
                # Cancelled while it waited: nobody expects what it would leave on the disk.
                if not self._cancelled.is_set():
                    self._result.append(job(self._cancelled.is_set))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error
        finally:
            self._done.set()
            # The loop wakes by the end of the stream.
            self._theirs.close()
