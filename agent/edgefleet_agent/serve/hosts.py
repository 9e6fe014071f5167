"""Who may be meant by a request's Host, and whether it comes from a web page. Pure.

A page that a browser has loaded can make a name of its own point to this machine (DNS rebinding) and then read our
answers as its own. Such a request carries that name in Host; an address, or a name of ours, cannot be forged so.
Pages that merely post here carry Origin. There is no page that should.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from http import HTTPStatus

from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.head import Head

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(:[0-9]{0,5})?", re.ASCII)


def check(head: Head, names: Collection[str]) -> None:
    """Raise RefusedError unless the request is meant for this machine; `names` are its own, in lower case."""
    if "origin" in head.fields:
        raise RefusedError(HTTPStatus.FORBIDDEN, "requests of web pages (with an Origin field) are not served")
    match = _AUTHORITY.fullmatch(head.host)
    if match is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the Host field is not NAME or NAME:PORT")
    name = match[1].lower().removesuffix(".")
    # HTTP/1.0 has no Host; a browser always sends one.
    is_nameless = not name and head.version == "1.0"
    if not (is_nameless or name in names or _is_address(name)):
        reason = f"this server is not {match[1]!r}; use its address, or add the name to [serve] names"
        raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, reason)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
