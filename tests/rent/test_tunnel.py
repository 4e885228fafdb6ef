"""Tunnels: they carry HTTP, come back after a drop, and leave no process."""

import asyncio
import contextlib
import dataclasses
import functools
import http.server
import threading

import pytest
import requests
from support.sshd import openssh_server
from support.waiting import eventually

from helpers.rent import ssh


@pytest.fixture
def machine(settings, tmp_path):
    """A machine with OpenSSH's own server."""
    with openssh_server(settings, tmp_path) as instance:
        yield instance


def test_tunnel_carries_http(machine, settings, tmp_path):
    """The tunnel process forwards to a port of the far side's loopback."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "hello").write_text("through")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        ssh.wait_login(machine, settings, progress=print)
        with ssh.tunnel(machine, settings, remote_port=web.server_port) as tunnel:
            reply = eventually(lambda: requests.get(f"{tunnel.base_url}/hello", timeout=5))
            assert reply.text == "through"
        web.shutdown()


class Cable:
    """A TCP relay to the machine's SSH port that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.target, self.tasks, self.loop = port, set(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.port = 0
        self.mend()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _relay(self, reader, writer):
        self.tasks.add(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.tasks.add(far_writer)

        async def copy(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async def _listen(self):
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _cut(self):
        self.server.close()
        for writer in self.tasks:
            writer.transport.abort()
        self.tasks.clear()

    def mend(self):
        self._do(self._listen())

    def cut(self):
        self._do(self._cut())

    def remove(self):
        self.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def test_dropped_tunnel_comes_back_on_the_same_port(instance, settings, endpoint):
    """The line drops and returns: the endpoint keeps its address."""
    cable = Cable(instance.ssh_port)
    try:
        behind = dataclasses.replace(instance, ssh_port=cable.port)
        with ssh.tunnel(behind, settings) as tunnel:
            url = f"{tunnel.base_url}/models"
            assert requests.get(url, timeout=5).ok
            cable.cut()
            assert eventually(lambda: not tunnel.up)
            with pytest.raises(requests.ConnectionError):
                requests.get(url, timeout=5)
            cable.mend()
            assert eventually(lambda: tunnel.up)
            assert tunnel.events[0] == tunnel.events[-1] == "up"
            assert any(event.startswith("down: ") for event in tunnel.events)
            assert requests.get(url, timeout=5).ok
    finally:
        cable.remove()


def test_its_endpoint_knows_the_machine(instance, endpoint):
    """Hardware and source come from the instance, model and engine from the server."""
    assert (endpoint.hardware, endpoint.source) == (instance.hardware, instance.provider)
    assert endpoint.model and endpoint.engine == "llama.cpp"


def test_closed_tunnel_leaves_no_process(instance, settings):
    """Leaving the block ends the tunnel's process."""
    with ssh.tunnel(instance, settings) as tunnel:
        assert tunnel.process.poll() is None
    assert tunnel.process.poll() is not None
