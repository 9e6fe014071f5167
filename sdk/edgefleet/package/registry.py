"""One repository of a container registry, through oras: blobs and manifests by digest, docker's credentials.

Knows nothing of packages: which blobs belong together is `oci`'s business. Source: OCI distribution-spec 1.1.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

from edgefleet.errors import EdgefleetError, InputError, IntegrityError, MissingExtraError, TransportError
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import MAX_SMALL_BYTES
from edgefleet.package.manifest import INDEX_MEDIA_TYPE, MANIFEST_MEDIA_TYPE
from edgefleet.package.reference import Reference

# What is lost of a connection that breaks.
_STEP_BYTES = 64 * 1024
_CONNECT_S, _READ_S = 10.0, 60.0
_ACCEPT = {"Accept": f"{INDEX_MEDIA_TYPE}, {MANIFEST_MEDIA_TYPE}"}


class Registry:
    """The repository of a reference. Every method raises TransportError, or MissingExtraError for the extra `oci`."""

    def __init__(self, reference: Reference, *, plain_http: bool = False) -> None:
        """`plain_http` sends credentials and content unencrypted; a registry on this machine needs no such leave."""
        self._doing = f"talking to the registry {reference.host}"
        self._basic = False
        self._base = f"{'http' if plain_http or reference.loopback else 'https'}://{reference.host}/v2/"
        self._repository = f"{self._base}{reference.repository}"
        with self._translated():
            self._client = self._connect(reference, insecure=self._base.startswith("http://"))

    def has_blob(self, digest: str) -> bool:
        """Whether the repository holds a blob."""
        return self._is_there(f"{self._repository}/blobs/{digest}", {})

    def has_manifest(self, digest: str) -> bool:
        """Whether the repository holds a manifest or an index."""
        return self._is_there(f"{self._repository}/manifests/{digest}", _ACCEPT)

    def put_blob(self, path: Path, digest: str) -> None:
        """Upload a file in one piece, read as it is sent."""
        started = self._request("POST", f"{self._repository}/blobs/uploads/", (202,))
        place = self._absolute(started.headers.get("Location", ""))
        place += f"{'&' if '?' in place else '?'}digest={digest}"
        with path.open("rb") as stream:
            # An empty stream would be sent in pieces, which not every registry takes.
            body = stream if path.stat().st_size else b""
            self._request("PUT", place, (201,), {"Content-Type": "application/octet-stream"}, body)

    def put_manifest(self, target: str, content: bytes, media_type: str) -> None:
        """Upload a manifest or an index under a digest or a tag; raises IntegrityError when it was changed there."""
        url = f"{self._repository}/manifests/{target}"
        answer = self._request("PUT", url, (201,), {"Content-Type": media_type}, content)
        stored = answer.headers.get("Docker-Content-Digest", digest_of(content))
        if stored != digest_of(content):
            raise IntegrityError(self._doing, f"it stored {target} as {stored}", "use another registry")

    def manifest(self, target: str) -> bytes:
        """A manifest or an index by digest or tag; raises InputError where there is none."""
        with self._request("GET", f"{self._repository}/manifests/{target}", (200,), _ACCEPT, stream=True) as answer:
            return b"".join(self._limited(answer, MAX_SMALL_BYTES))

    def blob(self, digest: str, size_bytes: int, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Pieces of a blob and where each belongs, from `start` on, or from 0 where the registry knows no ranges.

        Raises InputError where there is no such blob.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._request("GET", f"{self._repository}/blobs/{digest}", (200, 206), headers, stream=True) as answer:
            place = start if answer.status_code == 206 else 0
            for piece in self._limited(answer, size_bytes - place):
                yield place, piece
                place += len(piece)

    def _limited(self, answer: Any, limit_bytes: int) -> Iterator[bytes]:
        """The body as sent; raises IntegrityError beyond `limit_bytes`."""
        with self._translated():
            left = limit_bytes
            for piece in answer.iter_content(_STEP_BYTES):
                left -= len(piece)
                if left < 0:
                    raise IntegrityError(self._doing, f"it sends more than {limit_bytes} bytes", "pull again")
                yield piece

    def _is_there(self, url: str, headers: Mapping[str, str]) -> bool:
        return bool(self._request("HEAD", url, (200, 404), headers).status_code == 200)

    def _absolute(self, location: str) -> str:
        """Where an upload goes; never from TLS to a place without."""
        place = urljoin(self._base, location)
        if self._base.startswith("https:") and not place.startswith("https:"):
            raise TransportError(self._doing, "it wants the upload without TLS", "use another registry")
        return place

    def _request(
        self,
        method: str,
        url: str,
        wanted: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        *,
        stream: bool = False,
    ) -> Any:
        """One request, with credentials where the registry asks for them, and once more with fresh ones.

        Not oras's own `do_request`: that one sleeps and tries five times whatever went wrong, and sends a file's end
        where the first try has read it already.
        """
        # Where an upload goes is the registry's word: credentials are for the registry alone.
        own = url.startswith(self._base)
        sent = {**(headers or {}), **(self._credentials() if own else {})}
        with self._translated():
            answer = self._client.session.request(method, url, data=body, headers=sent, stream=stream)
            if own and answer.status_code in (401, 403):
                # A token for reading is not one for writing: what was refused is not sent again.
                sent, changed = self._client.auth.authenticate_request(answer, sent, refresh="Authorization" in sent)
                if changed:
                    if body is not None and not isinstance(body, bytes):
                        body.seek(0)
                    answer = self._client.session.request(method, url, data=body, headers=sent, stream=stream)
        if answer.status_code in wanted:
            return answer
        raise self._refusal(answer)

    def _credentials(self) -> dict[str, str]:
        """What the registry was satisfied with before."""
        auth = self._client.auth
        known = getattr(auth, "token", None) or (self._basic and getattr(auth, "_basic_auth", None))
        return dict(auth.get_auth_header()) if known else {}

    def _refusal(self, answer: Any) -> EdgefleetError:
        """What the registry says, in one line."""
        said = _message(answer)
        if answer.status_code == 404:
            return InputError(
                self._doing, f"it has no such package ({said})", "check the repository's name and the tag"
            )
        if answer.status_code in (401, 403):
            return TransportError(
                self._doing, f"it denies access ({said})", "log in with `docker login`, or ask for it"
            )
        return TransportError(self._doing, f"it answers {answer.status_code} ({said})", "try again later")

    def _connect(self, reference: Reference, *, insecure: bool) -> Any:
        import requests  # noqa: PLC0415 - comes with oras, which only pushing and pulling need
        from oras.client import OrasClient  # noqa: PLC0415

        class Patient(requests.adapters.HTTPAdapter):
            """oras sets no time limits: a silent registry would hold us for ever."""

            def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
                return super().send(request, *args, **kwargs | {"timeout": (_CONNECT_S, _READ_S)})

        # Of what goes wrong we tell ourselves, in one line.
        logging.getLogger("oras.logger").setLevel(logging.CRITICAL)
        asked = requests.get(self._base, timeout=(_CONNECT_S, _READ_S)).headers.get("WWW-Authenticate", "")
        self._basic = asked.lower().startswith("basic")
        client = OrasClient(
            hostname=reference.host, insecure=insecure, auth_backend="basic" if self._basic else "token"
        )
        # Digests are those of the plain bytes.
        client.session.headers["Accept-Encoding"] = "identity"
        client.session.mount("http://", Patient())
        client.session.mount("https://", Patient())
        client.auth.load_configs(client.get_container(f"{reference.host}/{reference.repository}"), _docker_configs())
        if self._basic and not hasattr(client.auth, "_basic_auth"):
            raise TransportError(self._doing, "it asks for a password", f"run: docker login {reference.host}")
        return client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise MissingExtraError(self._doing, str(error.name), "oci") from error
        except EdgefleetError:
            raise
        except (OSError, ValueError, LookupError) as error:
            # requests' own errors are OSErrors; the others are of what oras cannot read.
            raise TransportError(self._doing, _reason(error), "check its name, the network and the login") from error


def _docker_configs() -> list[str]:
    """The docker configuration that DOCKER_CONFIG names; oras itself adds the one in the home folder."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = Path(folder) / "config.json" if folder else None
    return [str(path)] if path is not None and path.is_file() else []


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["errors"][0]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return str(answer.reason)


def _reason(error: Exception) -> str:
    """The innermost reason of a chain that requests and urllib3 wrap several times."""
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return " ".join(str(getattr(inner, "strerror", None) or inner or type(inner).__name__).split())[:200]
