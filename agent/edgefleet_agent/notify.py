"""What the service manager is told: ready, alive, stopping, and one line of status (sd_notify(3), by hand).

Outside a service nothing is said. It never raises: a manager that does not listen ends no agent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

# The manager kills a service that is silent for the whole interval; half of it is what sd_watchdog_enabled(3) advises.
PET_SHARE = 0.5


class Notifier:
    """The line to the service manager that started this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` holds NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID where a manager listens."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._petted_at = float("-inf")
        self._status = ""
        self.pet_every_s = _pet_every_s(environment)
        """Seconds between signs of life; None: nobody watches."""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that hangs must not hold the loop up.
            self._socket.setblocking(False)

    def ready(self) -> None:
        """The start is over: the loop turns."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; said when it changes."""
        line = text.partition("\n")[0]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def pet(self, now: float) -> None:
        """The loop turned; `now` is monotonic."""
        if self.pet_every_s is not None and now - self._petted_at >= self.pet_every_s:
            self._petted_at = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            # A leading @ stands for the zero byte of an abstract address.
            address = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
            with suppress(OSError):
                self._socket.sendto(message.encode(), address)


def watched(
    stop: Callable[[], bool],
    notifier: Notifier,
    each_turn: Callable[[float], str],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], bool]:
    """`stop`, asked once a turn, that tells the manager that the loop turns: a loop that hangs is never petted.

    `each_turn` gets the monotonic time and returns the line of status.
    """
    begun: list[bool] = []

    def turn() -> bool:
        now = clock()
        if not begun:
            begun.append(True)
            notifier.ready()
        notifier.pet(now)
        notifier.status(each_turn(now))
        if ended := stop():
            notifier.stopping()
        return ended

    return turn


def _pet_every_s(environment: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, where that is meant for this process."""
    interval, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not interval.isdecimal() or int(interval) == 0 or (process and process != str(os.getpid())):
        return None
    return int(interval) / 1e6 * PET_SHARE
