"""A server is reached by TLS, by a proxy and through a Unix socket as it is by TCP."""

import asyncio

import pytest
from support.answers import whole

from helpers.load.client.transport import Exchange, Transport


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request."""
    while await reader.readline():
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(b"hello"))


async def fetch(base_url: str) -> Exchange:
    """Two requests on one connection; the last one's exchange."""
    transport = Transport(base_url, {}, 5.0)
    for _ in range(2):
        exchange = await transport.fetch(transport.prepare("/models"))
    await transport.close()
    return exchange


async def test_tls(tls, monkeypatch):
    """A server whose certificate is trusted answers; another one is not asked."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    exchange = await fetch(url)
    assert (exchange.body, exchange.cause, exchange.connect_s) == (b"hello", "", 0)
    monkeypatch.delenv("SSL_CERT_FILE")
    assert (await fetch(url)).cause == "unreachable"
    server.close()


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_proxy_connects_to_the_server(tls, monkeypatch, refuses):
    """It is asked for the server by name and with its own key, and what follows is the server's."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port, asked = server.sockets[0].getsockname()[1], []

    async def pump(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def proxy(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if refuses:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    front = await asyncio.start_server(proxy, "127.0.0.1", 0)
    named = f"http://me:s%40cret@127.0.0.1:{front.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("https_proxy", named)
    monkeypatch.setenv("no_proxy", "")
    exchange = await fetch(f"https://model.example:{port}")
    if refuses:
        assert exchange.cause == "unreachable"
        assert exchange.error.endswith(f"{named[-15:]}: Tunnel connection failed: 403 Forbidden")
        assert "cret" not in exchange.error
    else:
        assert (exchange.body, exchange.cause, len(asked)) == (b"hello", "", 1)
    assert asked[0].startswith(b"CONNECT model.example:%d HTTP/1." % port)
    assert b"Proxy-Authorization: Basic bWU6c0BjcmV0\r\n" in asked[0]
    front.close()
    server.close()


async def test_loopback_is_reached_without_a_proxy(monkeypatch):
    """A tunnel's end above all; and a proxy that is not there is named where one is to be used."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert (await fetch(url)).body == b"hello"
    assert (await fetch("http://model.example")).error.startswith("the proxy http://127.0.0.1:9: ")
    server.close()


async def test_a_port_that_is_a_unix_socket(tmp_path, monkeypatch):
    """Where the environment says so, and only for the ports that are there."""
    server = await asyncio.start_unix_server(answer, tmp_path / "8000.sock")
    monkeypatch.setenv("LOAD_UNIX_SOCKETS", str(tmp_path))
    assert (await fetch("http://127.0.0.1:8000")).body == b"hello"
    assert (await fetch("http://127.0.0.1:9")).cause == "refused"
    server.close()
