"""A slow, long or lossy line: two TUN devices, one of them in a network namespace, joined by one small process.

Needs root and /dev/net/tun; netem is not in every kernel. The loss is drawn from a seed, per packet and direction.
The process ends, and takes the devices and the namespace with it, when its owner ends or its time is over.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
PACKET_BYTES = 1500
LIFETIME_S = 900.0
STOP_AFTER_S = 5.0
NEAR, FAR = "10.213.77.1", "10.213.77.2"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the line does to each direction; the delay is one way, so a round trip takes twice as long."""

    delay_s: float
    rate_bytes_per_s: float
    loss: float = 0.0
    """Share of the packets that are dropped, 0 to 1."""
    queue_s: float = 0.25
    """Packets that would wait longer than this before the line are dropped, as a router's buffer drops them."""
    seed: int = 1


@dataclass(slots=True)
class _Direction:
    """Packets on their way from one device to the other, in order."""

    source: int
    target: int
    shape: Shape
    chance: random.Random
    free_at: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, now: float, *, is_cut: bool) -> None:
        packet = os.read(self.source, PACKET_BYTES + 100)
        begins = max(now, self.free_at)
        if is_cut or self.chance.random() < self.shape.loss or begins - now > self.shape.queue_s:
            return
        self.free_at = begins + len(packet) / self.shape.rate_bytes_per_s
        self.waiting.append((self.free_at + self.shape.delay_s, packet))

    def give(self, now: float) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            os.write(self.target, self.waiting.popleft()[1])


class Link:
    """The line, from `NEAR` on this host to `FAR` in a namespace; a context manager."""

    def __init__(self, shape: Shape, lifetime_s: float = LIFETIME_S) -> None:
        """Nothing is made before the block begins."""
        self._shape = shape
        self._lifetime_s = lifetime_s
        self._process: subprocess.Popen[bytes] | None = None
        self.namespace = f"edgefleet-{os.getpid()}"

    def inside(self, *command: str) -> list[str]:
        """A command line that runs at the far end."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut(self) -> None:
        """From now on every packet is lost, and neither end is told."""
        self._say(b"c")

    def restore(self) -> None:
        """The line carries again."""
        self._say(b"r")

    def __enter__(self) -> Self:
        shape = self._shape
        numbers = [shape.delay_s, shape.rate_bytes_per_s, shape.loss, shape.queue_s, shape.seed, self._lifetime_s]
        command = [sys.executable, __file__, self.namespace, *map(str, numbers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._process.stdout is None or self._process.stdout.readline() != b"ready\n":
            self._stop()
            raise RuntimeError("no line could be made: it needs root, ip(8) and /dev/net/tun")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _say(self, word: bytes) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the line is not open")
        self._process.stdin.write(word)
        self._process.stdin.flush()

    def _stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(STOP_AFTER_S)


def _open_tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _carry(near: int, far: int, shape: Shape, lifetime_s: float) -> None:
    """Move packets until the owner closes our input or the time is over."""
    there = _Direction(near, far, shape, random.Random(shape.seed))  # noqa: S311 - a lossy line, not a secret
    back = _Direction(far, near, shape, random.Random(shape.seed + 1))  # noqa: S311
    ends = time.monotonic() + lifetime_s
    is_cut = False
    while (now := time.monotonic()) < ends:
        due = [each.waiting[0][0] for each in (there, back) if each.waiting]
        ready, _, _ = select.select([0, near, far], [], [], max(0.0, min([*due, ends]) - now))
        if 0 in ready:
            if not (word := os.read(0, 1)):
                return
            is_cut = word == b"c"
        now = time.monotonic()
        for each in (there, back):
            if each.source in ready:
                each.take(now, is_cut=is_cut)
            each.give(now)


def main(namespace: str, *numbers: str) -> None:
    """The process: devices and namespace are made here, so that they go with it."""
    delay_s, rate, loss, queue_s, seed, lifetime_s = map(float, numbers)
    near_name, far_name = f"ef{os.getpid()}n", f"ef{os.getpid()}f"
    near, far = _open_tun(near_name), _open_tun(far_name)
    _ip("netns", "add", namespace)
    try:
        _ip("link", "set", far_name, "netns", namespace)
        _ip("address", "add", NEAR, "peer", FAR, "dev", near_name)
        _ip("link", "set", near_name, "mtu", str(PACKET_BYTES), "up")
        _ip("-n", namespace, "address", "add", FAR, "peer", NEAR, "dev", far_name)
        _ip("-n", namespace, "link", "set", far_name, "mtu", str(PACKET_BYTES), "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        print("ready", flush=True)
        _carry(near, far, Shape(delay_s, rate, loss, queue_s, int(seed)), lifetime_s)
    finally:
        os.close(far)
        _ip("netns", "delete", namespace)


if __name__ == "__main__":
    main(*sys.argv[1:])
