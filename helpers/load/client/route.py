"""How a server is reached: over TCP or a Unix socket, plain or with TLS, straight or by a proxy."""

import asyncio
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from helpers.endpoint import proxy_for, without_password

PROXY_S = 30  # for each step of the way through a proxy
Protocol = TypeVar("Protocol", bound=asyncio.Protocol)


class Route:
    """The way to one server.

    Proxies are those of the environment (``HTTPS_PROXY``, ``NO_PROXY``), but never to loopback.
    Where ``LOAD_UNIX_SOCKETS`` names a folder with a ``PORT.sock``, the server of that port is
    reached through it.

    Args:
        base_url: root of the API, e.g. ``http://127.0.0.1:8000/v1``.
        ca_file: see ``Endpoint``.
    """

    def __init__(self, base_url: str, ca_file: str = "") -> None:
        url = urlsplit(base_url)
        secure = url.scheme == "https"
        self.host, self.port = url.hostname or "", url.port or (443 if secure else 80)
        self.tls = ssl.create_default_context(cafile=ca_file or None) if secure else None
        self.address = (self.host, self.port)
        self.unix = Path(os.environ.get("LOAD_UNIX_SOCKETS", "/nowhere"), f"{self.port}.sock")
        self.proxy = urlsplit("" if self.unix.exists() else proxy_for(base_url))

    async def open(self, protocol: Callable[[], Protocol]) -> Protocol:
        """Return a protocol that is connected.

        Raises:
            OSError: there is no way, in words that say why.
        """
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self.tls, "server_hostname": self.host if self.tls else None}
        if self.unix.exists():
            return (await loop.create_unix_connection(protocol, str(self.unix)))[1]
        if self.proxy.netloc:
            sock = await asyncio.to_thread(self._tunnel)
            return (await loop.create_connection(protocol, sock=sock, **tls))[1]
        transport, made = await loop.create_connection(protocol, *self.address, **tls)
        self.address = transport.get_extra_info("peername")[:2]  # asked of no name server again
        return made

    def _tunnel(self) -> socket.socket:
        """Have the proxy connect to the server."""
        proxy = HTTPConnection(self.proxy.hostname or "", self.proxy.port, timeout=PROXY_S)
        fields = {"Host": f"{self.host}:{self.port}"}
        if self.proxy.username:
            words = f"{unquote(self.proxy.username)}:{unquote(self.proxy.password or '')}"
            fields["Proxy-Authorization"] = f"Basic {b64encode(words.encode()).decode()}"
        proxy.set_tunnel(self.host, self.port, fields)
        try:
            proxy.connect()
        except (OSError, HTTPException) as error:
            shown = without_password(self.proxy.geturl())
            raise OSError(f"the proxy {shown}: {error}") from None
        proxy.sock.setblocking(False)
        return proxy.sock
