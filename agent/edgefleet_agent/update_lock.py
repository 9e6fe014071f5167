"""The update lock: a file by which an application asks that nothing changes now.

While it is there downloads go on and activation waits. It holds no deadline: whoever makes the file removes it.
"""

from __future__ import annotations

from edgefleet.errors import short_line
from edgefleet_agent.settings import Settings

MAX_REASON_BYTES = 256


def update_locked(settings: Settings) -> str | None:
    """Why nothing may be activated now: the first line of the lock file; None when there is none.

    Never raises: a lock that cannot be read is a lock.
    """
    path = settings.state_folder / settings.update.lock_file
    try:
        with path.open("rb") as stream:
            said = stream.read(MAX_REASON_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    line = said.strip().partition("\n")[0].strip()
    return short_line(line) if line else f"{path} is there"
