"""amqtt on one loopback port, as a process of its own: `python -m edgefleet_demo.amqtt_broker PORT`.

It stands in where mosquitto is not installed; it checks no access rights.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys


async def serve(port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    from amqtt.broker import Broker  # noqa: PLC0415 - an optional dependency, loaded where it is used

    # Its own defaults are all addresses and the demo plugins: everything is named here.
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await broker.start()
    await ended.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(serve(int(sys.argv[1])))
