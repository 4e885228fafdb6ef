"""An error or the stop button at any line of a rental: nothing is rented that is not counted."""

import asyncio
import contextlib
import sys
import threading
from pathlib import Path

import asyncssh
import pytest

from helpers import rent
from helpers.rehearsal import market as market_module
from helpers.rehearsal.server import Rehearsal
from helpers.rent import guard
from helpers.rent.ledger import Ledger
from helpers.serve import ServingSpec

OURS = str(Path(rent.__file__).parent)


class Door(asyncssh.SSHServer):
    """Lets everybody in."""

    def begin_auth(self, username: str) -> bool:
        return False


class Paper:
    """A machine that runs as soon as it is rented, and is no process: all share one SSH server."""

    port, connections = 0, 0

    def __init__(self, market, rental, cores):
        self.cores, self.life = cores, asyncio.sleep(0)
        market.note(rental, "running", "success", self.port)

    def end(self):
        self.life.close()


class InThread(Rehearsal):
    """The marketplace in a thread of this process."""

    async def serve(self):
        self.loop = asyncio.get_running_loop()
        self.loop.add_signal_handler = lambda *_: None  # only a main thread has them
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        door = await asyncssh.create_server(
            Door, "127.0.0.1", 0, server_host_keys=[host_key],
            process_factory=lambda process: process.exit(0),
        )  # fmt: skip
        Paper.port = door.get_port()
        await super().serve()
        door.close()


@pytest.fixture(scope="module")
def paper(settings, tmp_path_factory):
    """Settings of a marketplace without machines and engines, and with no end of credit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market_module, "Machine", Paper)
        home = tmp_path_factory.mktemp("paper")
        mine = settings.model_copy(update={"rehearsal_home": home, "budget_usd": 1e9})
        server = InThread(mine)
        server.market.books.credit = 1e9
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        while not (home / "server.json").exists():
            thread.join(0.05)
        yield mine
        server.loop.call_soon_threadsafe(server.finished.set)
        thread.join()


class Walk:
    """Follows a rental from the search on, and raises at the first visit to the n-th line."""

    def __init__(self, provider, stop_at: int, error: BaseException):
        self.provider, self.stop_at, self.error = provider, stop_at, error
        self.seen: set[tuple[str, int]] = set()
        self.searched = False

    def __enter__(self):
        search = type(self.provider).offers

        def offers(wanted):
            found = search(self.provider, wanted)
            self.searched = True
            return found

        self.provider.offers = offers
        sys.settrace(self)

    def __exit__(self, *_):
        sys.settrace(None)
        del self.provider.offers

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and self.searched and place not in self.seen:
            self.seen.add(place)
            if len(self.seen) == self.stop_at:
                raise self.error
        return self


@pytest.mark.parametrize("name", ["rehearsal", "rehearsal-runpod"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_stopped_at_any_line_nothing_is_rented_uncounted(paper, name, kind, capsys):
    """The machine that nobody knows of is the one that costs: not one line may leave it."""
    mine = paper.model_copy(update={"provider": name})
    provider = rent.connect(mine)
    provider.poll_s = 0.001
    ledger, lines, left = Ledger(mine, name), 0, 0
    while True:
        walk = Walk(provider, lines + 1, kind("stopped"))
        with contextlib.suppress(kind), walk:
            guard.rent(provider, ServingSpec(), "walk", mine, progress=lambda line: None)
        rented = {machine.label for machine in provider.everything()}
        counted = {label for label, row in ledger.read().items() if row["ended"] is None}
        assert rented <= counted, f"stopped at {lines + 1}"
        if len(walk.seen) <= lines:
            break
        left += bool(rented)
        if rented:
            guard.end(mine)
            assert provider.everything() == []
        lines += 1
    guard.end(mine)
    assert provider.everything() == [] and lines > 60
    with capsys.disabled():
        print(f"\n{name}, {kind.__name__}: {lines} lines walked, after {left} a machine was left")
