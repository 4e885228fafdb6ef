"""The process behind :func:`helpers.rent.ssh.tunnel`; it is told its task on standard input."""

import asyncio
import json
import sys

import asyncssh

KEEPALIVE_S, KEEPALIVE_MISSED = 5, 3
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0


def _tell(event: str, **more) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


async def _forward(task: dict) -> None:
    """Connect, forward, and connect again when the line drops, for ever."""
    local_port, wait = 0, FIRST_WAIT_S
    while True:
        try:
            async with asyncssh.connect(
                task["host"],
                task["port"],
                username=task["user"],
                client_keys=[task["key"]],
                passphrase=task["passphrase"],
                known_hosts=task["known_hosts"],
                host_key_alias=task["alias"],
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVE_MISSED,
                config=None,
            ) as connection:
                listener = await connection.forward_local_port(
                    "127.0.0.1", local_port, "127.0.0.1", task["remote_port"]
                )
                # The same port again after a drop: the endpoint keeps its address.
                local_port, wait = listener.get_port(), FIRST_WAIT_S
                _tell("up", local_port=local_port)
                await connection.wait_closed()
                _tell("down", reason="the connection was lost")
        except (OSError, asyncssh.Error) as error:
            _tell("down", reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    work = asyncio.create_task(_forward(json.loads(await reader.readline())))
    await reader.read()  # ends when the opener closes its end or dies
    work.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
