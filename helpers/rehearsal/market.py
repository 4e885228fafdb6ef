"""The rehearsal's marketplace behind any API: offers, rentals, a pretend balance."""

import asyncio
import csv
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from helpers import files
from helpers.rehearsal import model
from helpers.rehearsal.faults import FAULTS, Faults
from helpers.rehearsal.machine import Machine
from helpers.rehearsal.web_api import Refusal
from helpers.settings import ASSETS, Settings

START_CREDIT_USD = 5.0  # the smallest top-up of a real account
HOURS_PER_MONTH = 730


class Contract(BaseModel):
    """What a renter asks for, in Vast.ai's words or RunPod's; prices are dollars an hour."""

    model_config = ConfigDict(hide_input_in_errors=True)  # it may hold keys
    label: str | None = Field(None, max_length=256, validation_alias=AliasChoices("label", "name"))
    image: str = Field(min_length=1)
    env: dict[str, str] = {}
    onstart: str = ""
    ports: list[Annotated[str, Field(pattern=r"^\d{1,5}/(http|tcp)$")]] = []
    disk_gb: float = Field(10, ge=1, validation_alias=AliasChoices("disk_gb", "disk"))
    price: float | None = Field(None, ge=0.001, le=128)  # a bid: others may bid more


class Rental(Contract):
    """One rented machine, as it is kept on disk.

    ``status`` walks as on the real market: None (contract made), ``loading``, ``running``,
    ``exited``; ``intended`` is what was asked for: ``running`` or ``stopped``.
    """

    id: int
    offer_id: int
    gpu_usd_per_hour: float
    disk_usd_per_hour: float
    intended: str = "running"
    status: str | None = None
    message: str = ""
    created: float = Field(default_factory=time.time)
    started: float = Field(default_factory=time.time)
    ssh_port: int | None = None
    api_key: str = Field(default_factory=lambda: secrets.token_hex(32), repr=False)


class Books(BaseModel):
    """All that the marketplace keeps on disk."""

    credit: float = START_CREDIT_USD
    public_keys: list[str] = []
    vast_templates: list[dict[str, Any]] = []
    runpod_templates: list[dict[str, Any]] = []
    rentals: dict[str, Rental] = {}  # by their numbers
    # Large, as on Vast.ai, and different in every marketplace: a number means one machine.
    next_id: int = Field(default_factory=lambda: 10_000_000 + secrets.randbelow(80_000_000))

    @field_validator("rentals", mode="before")
    @classmethod
    def _by_number(cls, rentals: Any) -> Any:
        """Before version 0.2 they were kept as a list."""
        return {str(r["id"]): r for r in rentals} if isinstance(rentals, list) else rentals


class Market:
    """Offers, rentals and money; every rental that should run is a process of this one.

    Args:
        settings: where state is kept (``rehearsal_home``) and which model is served.

    Raises:
        CourseError: when the model is not there and cannot be fetched.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = model.path(settings)
        # Numbers of the CPU cores that it may use; macOS does not bind processes to any.
        linux = hasattr(os, "sched_getaffinity")
        self.cores = sorted(os.sched_getaffinity(0)) if linux else range(os.cpu_count() or 1)
        self.offers = _read_offers(len(self.cores))
        self.faults = Faults()
        self.url = ""  # where it answers, once it does: a machine's switch reaches it there
        # Unix sockets need short paths, so they do not live under the reader's state folder.
        self.sockets = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        self.machines: dict[int, Machine] = {}
        self._metered = time.time()
        self._file = settings.rehearsal_home / "state.json"
        text = self._file.read_text() if self._file.exists() else "{}"
        self.books = Books.model_validate_json(text)

    # -- books -----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the books so that a crash leaves the old or the new ones, never half of them."""
        files.replace(self._file, self.books.model_dump_json(indent=1))

    def meter(self) -> None:
        """Bill the seconds since the last call: GPU while running, disk from first to last."""
        now = time.time()
        hours, self._metered = (now - self._metered) / 3600, now
        for rental in self.books.rentals.values():
            gpu = rental.gpu_usd_per_hour if rental.status == "running" else 0.0
            self.books.credit -= (gpu + rental.disk_usd_per_hour) * hours
        if self.books.credit <= 0:
            for rental in self.books.rentals.values():
                if rental.intended == "running":
                    self.stop(rental, "stopped: credit is used up")

    def note(self, rental: Rental, status: str, message: str, ssh_port: int | None = None) -> None:
        """Write down a machine's new state; until now it is billed by the old one."""
        self.meter()
        rental.status, rental.message, rental.ssh_port = status, message, ssh_port
        self.save()

    # -- rentals ---------------------------------------------------------------------------

    def free_offers(self) -> dict[int, dict[str, Any]]:
        """Offers that nobody has rented, by their ids."""
        taken = {rental.offer_id for rental in self.books.rentals.values()}
        return {number: offer for number, offer in self.offers.items() if number not in taken}

    def find(self, number: str) -> Rental:
        """The rental of that number.

        Raises:
            Refusal: when there is none.
        """
        if number not in self.books.rentals:
            raise Refusal(404, "no_such_instance", f"there is no instance {number}")
        return self.books.rentals[number]

    def rent(self, offer_id: int, contract: Contract, gpu_usd: float, disk_usd: float) -> Rental:
        """Make the contract and begin to load the machine.

        Args:
            offer_id: a free offer.
            contract: what to run on it.
            gpu_usd: price of the GPU, dollars an hour.
            disk_usd: price of each GB of disk, dollars a month.

        Raises:
            Refusal: when the account cannot pay.
        """
        if self.books.credit <= 0 or self.faults.take("no_credit"):
            raise Refusal(402, "insufficient_credit", "Your account lacks credit")
        rental = Rental(
            **contract.model_dump(),
            id=self.books.next_id,
            offer_id=offer_id,
            gpu_usd_per_hour=gpu_usd,
            disk_usd_per_hour=disk_usd * contract.disk_gb / HOURS_PER_MONTH,
        )
        self.books.next_id += 1
        self.books.rentals[str(rental.id)] = rental
        folder = self.folder(rental.id)
        folder.mkdir(parents=True)
        (folder / "authorized_keys").write_text("\n".join(self.books.public_keys))
        self.run(rental)
        return rental

    def folder(self, rental_id: int) -> Path:
        """The machine's own folder."""
        return self.settings.rehearsal_home / "instances" / str(rental_id)

    def log(self, rental: Rental, lines: int) -> list[str]:
        """The end of the machine's log."""
        file = self.folder(rental.id) / "container.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        return text.splitlines()[-lines:] if lines > 0 else []

    def run(self, rental: Rental) -> None:
        """Start the machine (again)."""
        rental.intended, rental.status, rental.started = "running", None, time.time()
        used = Counter(core for machine in self.machines.values() for core in machine.cores)
        cores = sorted(self.cores, key=lambda core: used[core])  # the least used ones first
        count = self.offers[rental.offer_id]["cpu_cores_effective"]
        self.machines[rental.id] = Machine(self, rental, cores[:count])
        self.save()

    def reboot(self, rental: Rental, anew: bool = False) -> None:
        """End the machine's processes and boot it; ``anew`` with an empty disk."""
        self.meter()
        self._end(rental.id)
        if anew:
            shutil.rmtree(self.folder(rental.id) / "root", ignore_errors=True)
        self.run(rental)

    def stop(self, rental: Rental, message: str = "stopped") -> None:
        """Stop the machine; its disk stays, and stays billed."""
        rental.intended = "stopped"
        self._end(rental.id)
        self.note(rental, "exited", message)

    def destroy(self, rental: Rental) -> None:
        """End the contract: the machine and its disk are gone, both meters stop."""
        self.meter()
        self._end(rental.id)
        del self.books.rentals[str(rental.id)]
        shutil.rmtree(self.folder(rental.id), ignore_errors=True)
        self.save()

    def _end(self, rental_id: int) -> None:
        if machine := self.machines.pop(rental_id, None):
            machine.end()
        shutil.rmtree(self.sockets / str(rental_id), ignore_errors=True)

    async def close(self) -> None:
        """End every rental and every process."""
        lives = [machine.life for machine in self.machines.values()]
        for rental in list(self.books.rentals.values()):
            self.destroy(rental)
        await asyncio.gather(*lives, return_exceptions=True)
        self.save()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def provoke(self, fault: str) -> None:
        """Arm a fault, or let it happen now to every machine that runs."""
        if not FAULTS[fault].startswith("now"):
            self.faults.armed[fault] += 1
            return
        for rental in [r for r in self.books.rentals.values() if r.status == "running"]:
            if fault == "tunnel_drop":
                self.machines[rental.id].drop_connections()
            elif fault == "host_key":
                (self.folder(rental.id) / "host_key").unlink()
                self.reboot(rental)
            elif fault == "host_lost":
                self._end(rental.id)
                self.note(rental, "offline", "host lost")
            elif rental.price is not None:
                self._end(rental.id)
                self.note(rental, "exited", "outbid: somebody bids more")


def _read_offers(cores: int) -> dict[int, dict[str, Any]]:
    """The pretend market's rows by their ids; none brings more cores than this computer has."""
    lines = (ASSETS / "rehearsal_offers.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    offers = [{name: yaml.safe_load(text) for name, text in row.items()} for row in rows]
    for offer in offers:
        offer["cpu_cores_effective"] = min(offer["cpu_cores_effective"], cores)
    return {offer["id"]: offer for offer in offers}
