"""The process behind :func:`helpers.rent.ssh.tunnel`: a port of an instance, forwarded for good.

It reads its task, a line of JSON, from standard input and ends when that is closed. It writes a
line whenever something happens: ``up``, or ``down:`` and the reason. It is started by its path, so
that it loads nothing of the course.
"""

import asyncio
import json
import os
import sys
import threading
from typing import Any

import asyncssh

HERE = "127.0.0.1"
WAIT_S = 1.0  # between two attempts to connect


async def _forward(login: dict[str, Any], local_port: int, remote_port: int) -> None:
    """Connect, forward, and connect again whenever the line drops.

    Args:
        login: arguments of ``asyncssh.connect``.
        local_port: where to listen on 127.0.0.1; always the same, so an endpoint stays valid.
        remote_port: where to on the instance's own 127.0.0.1.
    """
    while True:
        try:
            async with asyncssh.connect(**login, keepalive_interval=5, config=None) as connection:
                await connection.forward_local_port(HERE, local_port, HERE, remote_port)
                print("up", flush=True)
                await connection.wait_closed()
                print("down: the connection was lost", flush=True)
        except (OSError, asyncssh.Error) as error:
            print(f"down: {type(error).__name__}: {error}", flush=True)
        await asyncio.sleep(WAIT_S)


def _end_with_the_opener() -> None:
    sys.stdin.read()  # returns when the opener closes its end, or dies
    os._exit(0)


if __name__ == "__main__":
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_opener, daemon=True).start()
    asyncio.run(_forward(**task))
