"""The general transport: the same interface as ``helpers.load.client.wire`` on aiohttp, for TLS and proxies."""

import asyncio
from time import perf_counter as clock

import aiohttp

from helpers.load.client.wire import Exchange, Interrupted


class GeneralTransport:
    """Requests to any server that aiohttp reaches; see ``helpers.load.client.wire.PlainTransport``."""

    def __init__(self, base_url: str, headers: dict[str, str], timeout_s: float) -> None:
        self.root, self.headers, self.timeout_s = base_url.rstrip("/"), headers, timeout_s
        self.session: aiohttp.ClientSession | None = None

    def prepare(self, path: str, body: bytes | None = None, session: str = "") -> tuple:
        """Return method, address, body and fields of a request."""
        fields = {"X-Session-ID": session} if session else {}
        return "GET" if body is None else "POST", self.root + path, body, fields

    async def warm(self, connections: int) -> None:
        """Open connections ahead of the first requests by asking for the model list."""
        request = self.prepare("/models")
        for start in range(0, connections, 64):
            count = min(64, connections - start)
            await asyncio.gather(*(self.fetch(request) for _ in range(count)))

    async def fetch(self, request: tuple) -> Exchange:
        """Send a prepared request and return the whole exchange; failures are in it, not raised."""
        if self.session is None:
            self.session = aiohttp.ClientSession(
                headers={"Content-Type": "application/json", **self.headers},
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                read_bufsize=2**20,
                trust_env=True,
            )
        method, url, body, fields = request
        exchange = Exchange()
        exchange.framed = False
        exchange.sent = clock()
        try:
            async with self.session.request(method, url, data=body, headers=fields) as answer:
                exchange.status = answer.status
                exchange.headers = {name.lower(): value for name, value in answer.headers.items()}
                async for data in answer.content.iter_any():
                    exchange.times.append(clock())
                    exchange.reads.append(data)
            exchange.end = exchange.times[-1] if exchange.times else clock()
        except asyncio.CancelledError:
            exchange.fail("interrupted", "the run was stopped")
            raise Interrupted(exchange) from None
        except TimeoutError:
            exchange.fail("timeout", f"no end in {self.timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            exchange.fail("refused" if refused else "unreachable", str(error))
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
            exchange.fail("closed early", str(error))
        except (aiohttp.ClientOSError, OSError) as error:
            exchange.fail("reset", str(error))
        except aiohttp.ClientError as error:
            exchange.fail("malformed", str(error))
        return exchange

    async def close(self) -> None:
        """Close the connections."""
        if self.session is not None:
            await self.session.close()
