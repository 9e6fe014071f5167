"""What ends an installation: every error of a step as one reason that the device reports.

It decides nothing; a reason is the same for the same error.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from edgefleet.errors import StorageError
from edgefleet_agent.choosing import ChoiceError
from edgefleet_agent.preparation import NoRoomError
from edgefleet_agent.self_test import SelfTestError
from edgefleet_agent.slots import SlotDamagedError
from edgefleet_agent.transfer import TransferError

_FULL = (errno.ENOSPC, errno.EDQUOT)

# What goes before the text of an error of ours.
_SAID_OF: dict[type[Exception], str] = {
    NoRoomError: "insufficient_storage: ",
    SelfTestError: "self-test: ",
    SlotDamagedError: "verification: ",
    TransferError: "",
    ChoiceError: "",
}

log = logging.getLogger("edgefleet.agent")


class InstallError(Exception):
    """The installation cannot go on; the text is the reason that the device reports."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise InstallError for whatever is raised inside: a package or a disk must not end the agent, or the running
    variant would end with it. `what` is being installed.
    """
    try:
        yield
    except InstallError:
        raise
    except tuple(_SAID_OF) as error:
        raise InstallError(f"{_SAID_OF[type(error)]}{error}") from error
    except OSError as error:
        raise InstallError(f"{_kind(error)}: {error.strerror or error}") from error
    except StorageError as error:
        raise InstallError(f"{_kind(error.__cause__)}: {error}") from error
    except ValueError as error:
        raise InstallError(f"invalid package: {str(error).splitlines()[0]}") from error
    except Exception as error:
        log.exception("installing %s", what)
        raise InstallError(f"internal: {type(error).__name__}: {error}") from error


def _kind(error: BaseException | None) -> str:
    full = isinstance(error, OSError) and error.errno in _FULL
    return "insufficient_storage" if full else "storage_failed"
