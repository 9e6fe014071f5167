"""Asks the Raspberry Pi's firmware: one text command, one text answer, through the mailbox device or `vcgencmd`.

Commands are those of vcgencmd (Raspberry Pi documentation, vcgencmd); what their answers mean is their readers'
business. No subprocess where a mailbox can be opened, and never one more often than every 10 s.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Protocol

from edgefleet_agent.power.sysfs import AbsentError, UnreadableError, unreadable

# Newer kernels open the first, which takes no other tag, to the group video, and keep the second to root.
MAILBOXES = ("dev/vcio_gencmd", "dev/vcio")
VCGENCMD = "usr/bin/vcgencmd"

# _IOWR(100, 0, char *) of the kernel's vcio driver.
REQUEST = 0xC0006400 | struct.calcsize("P") << 16
# size, code, tag, bytes of the value, bytes of the answer, result, text, end tag.
LAYOUT = struct.Struct("=6I1024sI")
GET_GENCMD_RESULT = 0x00030080
TEXT_BYTES = 1024
SUCCESS = 0x80000000

PROCESS_EVERY_S = 10.0
# It takes some milliseconds; the loop waits for it.
TIMEOUT_S = 1.0


class Firmware(Protocol):
    """Answers commands."""

    period_s: float
    """How often it may be asked."""

    def ask(self, command: str) -> str:
        """The answer to `command`; raises UnreadableError, with AbsentError where there is no firmware to ask."""
        ...


class Mailbox:
    """The kernel's property mailbox."""

    period_s = 1.0

    def __init__(self, root: Path) -> None:
        """`root` is where /dev lies."""
        self._paths = [root / name for name in MAILBOXES]

    def ask(self, command: str) -> str:
        """See Firmware."""
        path, descriptor = self.open()
        message = bytearray(
            LAYOUT.pack(LAYOUT.size, 0, GET_GENCMD_RESULT, TEXT_BYTES, 0, 0, command.encode("ascii"), 0)
        )
        try:
            fcntl.ioctl(descriptor, REQUEST, message, True)
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(descriptor)
        _, code, _, _, _, _, text, _ = LAYOUT.unpack(message)
        if code != SUCCESS:
            raise UnreadableError(f"{path} refused {command} (code {code:#x})")
        return _answer(command, text.split(b"\0", 1)[0])

    def open(self) -> tuple[Path, int]:
        """The first device that opens, with its descriptor; raises UnreadableError, AbsentError where none is."""
        refusals: list[UnreadableError] = []
        for path in self._paths:
            try:
                return path, os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except PermissionError:
                refusals.append(UnreadableError(f"permission: {path} opens to its group only, which should be video"))
            except OSError as error:
                refusals.append(unreadable(path, error))
        # What one that is there refuses says more than that the other is not.
        raise next((one for one in refusals if not isinstance(one, AbsentError)), refusals[-1])


class Vcgencmd:
    """The program, for a kernel whose mailboxes cannot be opened from here."""

    period_s = PROCESS_EVERY_S

    def __init__(self, program: Path) -> None:
        """Starts nothing before the first `ask`."""
        self._program = program
        self._started_at: float | None = None

    def ask(self, command: str) -> str:
        """See Firmware; a question that comes too soon after the last one, whatever it was, is refused."""
        now = time.monotonic()
        if self._started_at is not None and now - self._started_at < PROCESS_EVERY_S:
            raise UnreadableError(f"{self._program} is started every {PROCESS_EVERY_S:.0f} s at most")
        self._started_at = now
        try:
            done = subprocess.run([self._program, command], capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise UnreadableError(f"{self._program} did not end in {TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise unreadable(self._program, error) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().partition("\n")[0][:100]
            raise UnreadableError(f"{self._program} failed with {done.returncode} ({said or 'no word'})")
        return _answer(command, done.stdout)


def _answer(command: str, text: bytes) -> str:
    answer = text.decode("utf-8", errors="replace").strip()
    if answer.startswith("error="):
        raise AbsentError(f"the firmware knows no {command}")
    if not answer:
        raise UnreadableError(f"the firmware answered {command} with nothing")
    return answer


def reach(root: Path, command: str) -> tuple[Firmware, str]:
    """The way by which `command` is answered, with the first answer; raises UnreadableError, AbsentError."""
    mailbox = Mailbox(root)
    try:
        os.close(mailbox.open()[1])
    except UnreadableError as closed:
        vcgencmd = Vcgencmd(root / VCGENCMD)
        try:
            return vcgencmd, vcgencmd.ask(command)
        except AbsentError:
            raise closed from None
        except UnreadableError as error:
            raise UnreadableError(f"{closed}; {error}") from error
    return mailbox, mailbox.ask(command)
