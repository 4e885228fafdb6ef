"""The rehearsal's marketplace behind any API: offers, rentals, machines, a pretend balance."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.errors import CourseError
from helpers.rehearsal import model, offers
from helpers.rehearsal.faults import NOW, Faults
from helpers.settings import Settings

START_CREDIT_USD = 5.0  # the smallest top-up of a real account
HOURS_PER_MONTH = 730
_CUDA_ERROR = (
    "Error response from daemon: OCI runtime create failed: nvidia-container-cli: "
    "requirement error: unsatisfied condition: cuda>=13.0"
)


@dataclass(kw_only=True)
class Rental:
    """One rented machine, as it is kept on disk.

    ``status`` walks as on the real market: None (contract made), ``loading``, ``running``,
    ``exited``; ``intended`` is what was asked for: ``running`` or ``stopped``. Prices are dollars
    an hour; ``gpu_usd`` and ``disk_usd`` what the two meters have counted.
    """

    id: int
    offer_id: int
    label: str | None
    image: str
    env: dict[str, str]
    onstart: str | None
    args: list[str] | None
    runtype: str
    disk_gb: float
    gpu_usd_per_hour: float
    disk_usd_per_hour: float
    interruptible: bool = False
    template_hash: str | None = None
    intended: str = "running"
    status: str | None = None
    message: str = ""
    created: float = field(default_factory=time.time)
    started: float = field(default_factory=time.time)
    gpu_usd: float = 0.0
    disk_usd: float = 0.0
    ssh_port: int | None = None
    api_key: str = field(default_factory=lambda: secrets.token_hex(32))


class Market:
    """Offers, rentals and money; every rental that should run is a process of this one.

    Args:
        settings: where state is kept (``rehearsal_home``) and which model is served.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = settings.rehearsal_home
        self.file = self.home / "state.json"
        self.offers = offers.read()
        self.faults = Faults()
        self.url = ""  # where it answers, once it does: a machine's switch reaches it there
        # Unix sockets need short paths, so they do not live under the reader's state folder.
        self.sockets = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self.connections: dict[int, int] = {}
        self._tasks: dict[int, asyncio.Task] = {}
        self._ending: set[asyncio.Task] = set()
        self._metered = time.time()
        state = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.credit: float = state.get("credit", START_CREDIT_USD)
        self.ssh_keys: dict[int, str] = {int(k): v for k, v in state.get("ssh_keys", {}).items()}
        self.templates: list[dict] = state.get("templates", [])
        self.charges: list[dict] = state.get("charges", [])
        self.next_id: int = state.get("next_id", 7001)
        self.rentals = {r["id"]: Rental(**r) for r in state.get("rentals", [])}

    # -- state and money -------------------------------------------------------------------

    def save(self) -> None:
        """Write the state so that a crash leaves the old or the new one, never half of it."""
        state = {
            "credit": self.credit,
            "ssh_keys": self.ssh_keys,
            "templates": self.templates,
            "charges": self.charges,
            "next_id": self.next_id,
            "rentals": [asdict(r) for r in self.rentals.values()],
        }
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1))
        part.chmod(0o600)
        part.replace(self.file)

    def new_id(self) -> int:
        """A number never given before."""
        self.next_id += 1
        return self.next_id - 1

    def meter(self) -> None:
        """Bill the seconds since the last call: GPU while running, disk from first to last."""
        now = time.time()
        hours, self._metered = (now - self._metered) / 3600, now
        for rental in self.rentals.values():
            gpu = rental.gpu_usd_per_hour * hours if rental.status == "running" else 0.0
            disk = rental.disk_usd_per_hour * hours
            rental.gpu_usd += gpu
            rental.disk_usd += disk
            self.credit -= gpu + disk
        if self.credit <= 0:
            for rental in self.rentals.values():
                if rental.intended == "running":
                    self.stop(rental.id, "stopped: credit is used up")

    # -- offers ----------------------------------------------------------------------------

    def free_offers(self) -> list[dict]:
        """Offers that nobody has rented."""
        taken = {rental.offer_id for rental in self.rentals.values()}
        return [offer for offer in self.offers.values() if offer["id"] not in taken]

    # -- rentals ---------------------------------------------------------------------------

    def rent(self, offer_id: int, **contract) -> Rental:
        """Make the contract and begin to load the machine.

        Raises:
            KeyError: when the offer is not, or no longer, there.
        """
        offer = {o["id"]: o for o in self.free_offers()}[offer_id]
        self.meter()
        rental = Rental(
            id=self.new_id(),
            offer_id=offer_id,
            disk_usd_per_hour=offer["storage_cost"] * contract["disk_gb"] / HOURS_PER_MONTH,
            **contract,
        )
        self.rentals[rental.id] = rental
        folder = self.folder(rental.id)
        folder.mkdir(parents=True, mode=0o700)
        self.write_keys(rental.id, list(self.ssh_keys.values()))
        self.run(rental)
        self.save()
        return rental

    def folder(self, rental_id: int) -> Path:
        """The machine's own folder."""
        return self.home / "instances" / str(rental_id)

    def write_keys(self, rental_id: int, keys: list[str]) -> None:
        """Set who may log in."""
        file = self.folder(rental_id) / "authorized_keys"
        file.write_text("".join(f"{key.strip()}\n" for key in keys))

    def run(self, rental: Rental) -> None:
        """Start the machine's process (again)."""
        rental.intended, rental.status, rental.started = "running", None, time.time()
        self._tasks[rental.id] = asyncio.create_task(self._live(rental))

    def stop(self, rental_id: int, message: str = "stopped") -> None:
        """Stop the machine; its disk stays, and stays billed."""
        rental = self.rentals[rental_id]
        self._kill(rental_id)
        rental.intended, rental.status, rental.message = "stopped", "exited", message
        rental.ssh_port = None
        self.save()

    def destroy(self, rental_id: int) -> None:
        """End the contract: the machine and its disk are gone, both meters stop.

        Raises:
            KeyError: when there is no such machine.
        """
        self.meter()
        self._kill(rental_id)
        rental = self.rentals.pop(rental_id)
        self.charges.append(
            {
                "start": rental.created,
                "end": time.time(),
                "type": "instance",
                "source": f"instance-{rental.id}",
                "amount": rental.gpu_usd + rental.disk_usd,
                "metadata": {"label": rental.label},
                "items": [
                    {"type": "gpu", "amount": rental.gpu_usd},
                    {"type": "disk", "amount": rental.disk_usd},
                ],
            }
        )
        shutil.rmtree(self.folder(rental_id), ignore_errors=True)
        self.save()

    async def resume(self) -> None:
        """After a crash of the marketplace: boot what was running, as a host does."""
        for rental in self.rentals.values():
            if rental.intended == "running":
                self.run(rental)

    async def close(self) -> None:
        """End every rental and every process."""
        for rental_id in list(self.rentals):
            self.destroy(rental_id)
        await asyncio.gather(*self._ending, return_exceptions=True)
        self.save()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def provoke(self, fault: str) -> None:
        """Arm a fault, or let it happen now."""
        if fault not in NOW:
            self.faults.armed[fault] += 1
            return
        for rental in [r for r in self.rentals.values() if r.status == "running"]:
            if fault == "tunnel_drop":
                self.processes[rental.id].stdin.write(b"drop\n")
            elif fault == "host_key":
                self.stop(rental.id)
                (self.folder(rental.id) / "host_key").unlink()
                self.run(rental)
            elif fault == "host_lost":
                self._kill(rental.id)
                rental.status, rental.message, rental.ssh_port = "offline", "host lost", None
            elif rental.interruptible:
                self.stop(rental.id, "outbid: somebody bids more")
                rental.intended = "running"  # the market stopped it, not the renter
        self.save()

    # -- machines --------------------------------------------------------------------------

    def _kill(self, rental_id: int) -> None:
        self.connections.pop(rental_id, None)
        if task := self._tasks.pop(rental_id, None):
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if process := self.processes.pop(rental_id, None):
            _kill_group(process.pid)
        shutil.rmtree(self.sockets / str(rental_id), ignore_errors=True)

    async def _live(self, rental: Rental) -> None:
        """One life of a machine: contract, loading, running, exited."""
        folder = self.folder(rental.id)
        await asyncio.sleep(0.3)
        rental.status = "loading"
        rental.message = f"{rental.image}: in the rehearsal no image is pulled"
        if self.faults.take("stuck"):
            rental.message = f"{rental.image}: Pulling fs layer"
            return
        if self.faults.take("image_failure"):
            rental.status, rental.message = "created", _CUDA_ERROR
            return
        settings = self.settings
        try:
            path = await asyncio.to_thread(model.path, settings)
        except CourseError as error:  # it was there when the rehearsal started
            rental.status, rental.message = "created", error.what
            return
        sockets = self.sockets / str(rental.id)
        sockets.mkdir(mode=0o700, exist_ok=True)
        for fault in ("model_failure", "out_of_memory"):
            if self.faults.take(fault):
                rental.env["REHEARSAL_FAULT"] = fault
        machine = {
            "args": rental.args,
            "onstart": rental.onstart,
            "env": _machine_env(rental, self.url),
            "ssh_after_s": 10 if self.faults.take("ssh_late") else 0,
            "model": str(path),
            "vllm_env": str(settings.vllm_env.absolute()) if settings.engine == "vllm" else "",
            "sockets": str(sockets),
        }
        (folder / "machine.json").write_text(json.dumps(machine))
        with (folder / "daemon.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "helpers.rehearsal.instance", str(folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a process group of its own, killed as one
            )
        self.processes[rental.id] = process
        try:
            async for line in process.stdout:
                event = json.loads(line)
                if "ssh_port" in event:
                    rental.ssh_port = event["ssh_port"]
                    self.meter()
                    rental.status = "running"
                    rental.message = f"success, running {rental.image}/ssh"
                    self.save()
                self.connections[rental.id] = event.get("connections", 0)
            await process.wait()
            # Nobody stopped it: it died. The group may still hold what it had started.
            self.meter()
            rental.status, rental.ssh_port = "exited", None
            rental.message = f"machine ended by itself (exit status {process.returncode})"
            self.processes.pop(rental.id, None)
            self.connections.pop(rental.id, None)
            self.save()
        finally:
            _kill_group(process.pid)
            await process.wait()


def _machine_env(rental: Rental, url: str) -> dict[str, str]:
    """What a container finds in its environment besides what the renter asked for."""
    asked = {k: v for k, v in rental.env.items() if not k.startswith("-")}
    return {
        **asked,
        "CONTAINER_ID": str(rental.id),
        "CONTAINER_API_KEY": rental.api_key,
        "VAST_CONTAINERLABEL": f"C.{rental.id}",
        "PUBLIC_IPADDR": "127.0.0.1",
        "RUNPOD_POD_ID": str(rental.id),
        "RUNPOD_API_KEY": rental.api_key,
        # Where the machine finds the provider: on a real market its usual address.
        "VAST_URL": url,
        "RUNPOD_URL": url,
    }


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # gone already (macOS says "not permitted" of a group of zombies)


def is_public_key(text: object) -> bool:
    """Is it one line of an OpenSSH public key file?"""
    words = text.split() if isinstance(text, str) and "\n" not in text.strip() else []
    return len(words) >= 2 and words[0].startswith(("ssh-", "ecdsa-", "sk-"))
