"""nginx over a folder, and a device that pulls one file from it as it would from us: sha256, write, fsync.

The yardstick of `transport_speed.py`. Run as a program it is the device: it says `ready`, waits for a line, pulls, and
prints one JSON line.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

READ_BYTES = 60 * 1024
LISTENS_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """PEM files of the server: chain and key."""

    certificate: Path
    key: Path


class Nginx:
    """One nginx with one worker, on a free port of `host`; a context manager."""

    def __init__(self, folder: Path, files: Path, host: str, tls: ServerFiles | None) -> None:
        """`files` is served; configuration and temporary files go to `folder`."""
        self._folder = folder
        self._files = files
        self._host = host
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise RuntimeError("nginx (a system package) is not installed")
        self._folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server((self._host, 0)) as probe:
            self.port = probe.getsockname()[1]
        configuration = self._folder / "nginx.conf"
        configuration.write_text(self._configuration())
        self._process = subprocess.Popen([program, "-p", str(self._folder), "-c", str(configuration)])
        deadline = time.monotonic() + LISTENS_AFTER_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((self._host, self.port)) == 0:
                    return self
            time.sleep(0.02)
        raise RuntimeError("nginx did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _configuration(self) -> str:
        secure = ""
        if self._tls is not None:
            secure = f"ssl_certificate {self._tls.certificate}; ssl_certificate_key {self._tls.key};"
        paths = " ".join(
            f"{kind}_temp_path {self._folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""
            daemon off; worker_processes 1; pid {self._folder}/nginx.pid; error_log stderr error; {user}
            events {{ worker_connections 1024; }}
            http {{
              access_log off; sendfile on; tcp_nopush on; {paths}
              server {{ listen {self._host}:{self.port} {"ssl" if secure else ""}; {secure} root {self._files}; }}
            }}
            """


def pull(host: str, port: int, name: str, target: Path, ca_file: str | None, seconds_limit: float) -> dict[str, object]:
    """GET one file; returns bytes, seconds from the request to the end of the fsync, and the digest."""
    began = time.perf_counter()
    if ca_file is None:
        client = http.client.HTTPConnection(host, port, timeout=seconds_limit)
    else:
        context = ssl.create_default_context(cafile=ca_file)
        context.check_hostname = False
        client = http.client.HTTPSConnection(host, port, timeout=seconds_limit, context=context)
    client.connect()
    connected = time.perf_counter()
    client.request("GET", f"/{name}")
    response = client.getresponse()
    digest, size = hashlib.sha256(), 0
    with target.open("wb", buffering=0) as stream:
        while chunk := response.read(READ_BYTES):
            digest.update(chunk)
            size += stream.write(chunk)
        os.fsync(stream.fileno())
    ended = time.perf_counter()
    client.close()
    return {
        "bytes": size,
        "seconds": ended - connected,
        "connect_s": connected - began,
        "digest": f"sha256:{digest.hexdigest()}",
    }


def main(plan: dict[str, str]) -> None:
    """The device process."""
    print("ready", flush=True)
    sys.stdin.readline()
    target = Path(plan["target"])
    result = pull(plan["host"], int(plan["port"]), plan["name"], target, plan.get("ca_file"), 600.0)
    target.unlink()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
