"""One life of a rented machine, as the marketplace sees it: from its boot until it ends."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from helpers.rehearsal.faults import ANSWERS

if TYPE_CHECKING:
    from helpers.rehearsal.market import Market, Rental


class Machine:
    """A process of the rehearsal that plays a rented machine (``instance.py``).

    Args:
        market: whose books its state goes into.
        rental: the contract.
        cores: numbers of the CPU cores that are its own.
    """

    def __init__(self, market: "Market", rental: "Rental", cores: list[int]) -> None:
        self.market, self.rental, self.cores = market, rental, cores
        self.connections = 0  # SSH logins, now
        self._process: asyncio.subprocess.Process | None = None
        self.life = asyncio.create_task(self._live())

    def end(self) -> None:
        """Kill it and everything that it has started."""
        self.life.cancel()
        if self._process:
            _kill_group(self._process.pid)

    def drop_connections(self) -> None:
        """Cut every SSH connection to it."""
        if self._process and self._process.stdin:
            self._process.stdin.write(b"drop\n")

    async def _live(self) -> None:
        """Contract, loading, running, exited, with the bad luck that is armed."""
        market, rental, take = self.market, self.rental, self.market.faults.take
        await asyncio.sleep(0.3)
        market.note(rental, "loading", f"{rental.image}: in the rehearsal no image is pulled")
        if take("stuck"):
            market.note(rental, "loading", f"{rental.image}: Pulling fs layer")
            return
        if take("image_failure"):
            market.note(rental, "created", ANSWERS["image_failure"])
            return
        folder = market.folder(rental.id)
        (folder / "machine.json").write_text(json.dumps(self._config()))
        with (folder / "daemon.log").open("ab") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "helpers.rehearsal.instance", str(folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a process group of its own, killed as one
            )
        try:
            while process.stdout and (line := await process.stdout.readline()):
                event = json.loads(line)
                if port := event.get("ssh_port"):
                    market.note(rental, "running", f"success, running {rental.image}/ssh", port)
                self.connections = event.get("connections", 0)
            # Nobody stopped it: it died.
            status = await process.wait()
            market.note(rental, "exited", f"machine ended by itself (exit status {status})")
        finally:
            self.connections = 0
            _kill_group(process.pid)  # it may still hold what the machine had started
            await process.wait()

    def _config(self) -> dict[str, Any]:
        """What ``instance.py`` has to know, and what a container finds in its environment."""
        market, rental, settings = self.market, self.rental, self.market.settings
        sockets = market.sockets / str(rental.id)
        sockets.mkdir(exist_ok=True)
        own, key = str(rental.id), rental.api_key
        gpu = "GPU {}: {runpod_id} ({gpu_ram} MiB)\\n"  # as `nvidia-smi -L` tells it
        offer = market.offers[rental.offer_id]
        env = {
            **rental.env,
            **{"CONTAINER_ID": own, "CONTAINER_API_KEY": key, "VAST_URL": market.url},
            **{"RUNPOD_POD_ID": own, "RUNPOD_API_KEY": key, "RUNPOD_URL": market.url},
            "REHEARSAL_CORES": str(len(self.cores)),
            "REHEARSAL_MODEL": str(market.model),
            "REHEARSAL_GPUS": "".join(gpu.format(n, **offer) for n in range(offer["num_gpus"])),
            "REHEARSAL_VLLM_ENV": str(settings.vllm_env.absolute()),
            "REHEARSAL_ENGINE": settings.engine,
            "LOAD_UNIX_SOCKETS": str(sockets),
        }
        for fault in ("model_failure", "out_of_memory"):
            if market.faults.take(fault):
                env["REHEARSAL_FAULT"] = ANSWERS[fault]
        late = 10 if market.faults.take("ssh_late") else 0
        return {"onstart": rental.onstart, "env": env, "cores": self.cores, "ssh_after_s": late}


def _kill_group(pid: int) -> None:
    # Gone already; macOS says "not permitted" of a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
