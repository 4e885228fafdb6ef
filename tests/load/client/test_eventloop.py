"""The load generator's event loop does what asyncio's does, and times finer."""

import asyncio
import select
import socket
import threading
import time

import pytest

from helpers.load.client.eventloop import LagProbe, Loop, new_loop

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")


@pytest.fixture
def loop():
    """One, closed afterwards."""
    made = new_loop(lean=True)
    assert isinstance(made, Loop)
    yield made
    made.close()


def test_readers_come_and_go(loop):
    """Each byte calls its reader with its arguments, until it is removed; numbers come again."""
    for _ in range(3):  # the same descriptors each time
        ours, theirs = socket.socketpair()
        seen = []

        def read(name, ours=ours, seen=seen):
            seen.append((name, ours.recv(9)))

        async def talk(ours=ours, theirs=theirs, read=read):
            loop.add_reader(ours, read, "first")
            theirs.send(b"a")
            await asyncio.sleep(0.01)
            loop.add_reader(ours, read, "second")  # takes the first one's place
            theirs.send(b"b")
            await asyncio.sleep(0.01)
            assert loop.remove_reader(ours) and not loop.remove_reader(ours)
            theirs.send(b"c")
            await asyncio.sleep(0.01)

        loop.run_until_complete(talk())
        assert seen == [("first", b"a"), ("second", b"b")]
        ours.close()
        theirs.close()


def test_a_reader_that_ends_a_future_wakes_its_task(loop):
    """Nothing else happens and no timer is near: the task goes on at once all the same."""
    ours, theirs = socket.socketpair()
    waiter = loop.create_future()

    def read():
        waiter.set_result(ours.recv(9))
        return True

    loop.add_reader(ours, read)
    threading.Timer(0.05, theirs.send, (b"x",)).start()
    began = time.monotonic()
    assert loop.run_until_complete(asyncio.wait_for(waiter, 20)) == b"x"
    assert time.monotonic() - began < 5
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


def test_other_threads_subprocesses_and_servers_work(loop):
    """What asyncio does with its own selector still comes through."""

    async def main():
        word = await asyncio.to_thread(lambda: "thread")
        server = await asyncio.start_server(
            lambda reader, writer: (writer.write(b"served"), writer.close()), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        served = await reader.read()
        writer.close()
        server.close()
        return word, served

    assert loop.run_until_complete(main()) == ("thread", b"served")


def test_a_schedule_is_kept_within_the_millisecond(loop):
    """epoll's clock ticks in milliseconds; a request due in between must not wait for the tick."""

    async def late() -> float:
        due = loop.time() + 0.0024
        await asyncio.sleep(0.0024)
        return loop.time() - due

    lates = sorted(loop.run_until_complete(late()) for _ in range(40))
    assert 0 <= lates[10] < 0.0006


def test_a_busy_reader_does_not_keep_timers_waiting(loop):
    """A socket that can always be read leaves the loop its turn."""
    ours, theirs = socket.socketpair()
    theirs.send(b"never read")
    loop.add_reader(ours, lambda: None)
    began = time.monotonic()
    loop.run_until_complete(asyncio.sleep(0.05))
    assert time.monotonic() - began < 2
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


def test_a_reader_may_remove_another(loop):
    """Two sockets are readable at once and the first one's reader removes the second."""
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def read(number):
        called.append(number)
        loop.remove_reader(pairs[0][0])
        loop.remove_reader(pairs[1][0])

    async def main():
        for number, (ours, theirs) in enumerate(pairs):
            theirs.send(b"x")
            loop.add_reader(ours, read, number)
        await asyncio.sleep(0.02)

    loop.run_until_complete(main())
    assert len(called) == 1
    for pair in pairs:
        for one in pair:
            one.close()


def test_the_lag_probe_sees_a_blocked_loop(loop):
    """A loop that is busy for 50 ms stamps late by as much, and says so."""
    lags = []

    async def main():
        probe = LagProbe(loop, lags)
        probe.send()
        await asyncio.sleep(0.01)
        probe.send()
        time.sleep(0.05)
        await asyncio.sleep(0.01)
        probe.close()

    loop.run_until_complete(main())
    assert lags[0] < 0.04 and lags[1] >= 0.05
