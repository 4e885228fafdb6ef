"""Vast.ai through its official SDK; the rehearsal answers the same API."""

import contextlib
import time
from typing import Any

from vastai import VastAI

from helpers.errors import CourseError
from helpers.rent import deadman, market
from helpers.rent.calls import VAST, agreed
from helpers.rent.market import Instance, Offer, OfferFilter, Provider, Terms
from helpers.serve.spec import ServingSpec

_STATUS = {None: "creating", "running": "running"}
_STATUS |= dict.fromkeys(("exited", "stopped", "frozen", "unknown", "offline"), "failed")


class Vast(Provider):
    """The Vast.ai marketplace.

    Args:
        api_key: the account's key, or the rehearsal's token.
        server_url: another server that speaks the API; None for Vast.ai itself.
        rehearsal: the server is the free local one.
    """

    def __init__(self, api_key: str, server_url: str | None = None, rehearsal: bool = False):
        # The SDK waits rate limits out (Vast's are 1 to 4.5 seconds) and repeats every call whose
        # answer got lost, even the one that rents; then its second attempt is told "no such
        # offer", because the first one rented it. What makes something is sent once.
        self.sdk = VastAI(api_key=api_key, server_url=server_url, retry=8)
        self.once = VastAI(api_key=api_key, server_url=server_url, retry=1)
        self.name = "rehearsal" if rehearsal else "vast"
        self.rehearsal = rehearsal
        self.poll_s = 0.5 if rehearsal else 10.0

    @VAST.told("reading the balance")
    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""
        return float(self.sdk.show_user()["credit"])

    @VAST.told("registering the SSH key")
    def register_key(self, public_key: str) -> None:
        """Let a public key log in to instances launched from now on; no change if it can."""
        if public_key.split()[1] not in str(self.sdk.show_ssh_keys()):
            self.sdk.create_ssh_key(public_key)

    @VAST.told("searching offers")
    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """Machines that match, the cheapest first (price includes the disk)."""
        query: dict[str, Any] = {
            "num_gpus": {"eq": wanted.gpu_count},
            # Vendors' "24 GB" is 24,564 MB here and 24,576 MB there.
            "gpu_ram": {"gte": wanted.min_vram_gb * 1000},
            "reliability": {"gte": wanted.min_reliability},
            "inet_down": {"gte": wanted.min_download_mbps},
            "cuda_max_good": {"gte": wanted.min_cuda},
            "compute_cap": {"gte": round(wanted.min_compute_capability * 100)},
            "disk_space": {"gte": wanted.disk_gb},
            "direct_port_count": {"gte": 1},
        }
        if wanted.gpu:
            query["gpu_name"] = {"in": list(wanted.gpu)}
        kind = "bid" if wanted.interruptible else "on-demand"
        rows = self.sdk.search_offers(query, kind, "dph_total", storage=wanted.disk_gb)
        return wanted.cheapest([self._offer(row, wanted.interruptible) for row in rows])

    def _offer(self, row: dict[str, Any], interruptible: bool) -> Offer:
        return Offer(
            id=str(row["id"]),
            provider=self.name,
            gpu=row["gpu_name"],
            gpu_count=row["num_gpus"],
            vram_gb=round(row["gpu_ram"] / 1024, 1),
            usd_per_hour=row["dph_total"],
            interruptible=interruptible,
            min_bid_usd_per_hour=row.get("min_bid"),
            bandwidth_gb_s=row.get("gpu_mem_bw"),
            reliability=row.get("reliability2"),
            location=row.get("geolocation") or "",
        )

    @VAST.told("renting the offer")
    def create(self, offer: Offer, spec: ServingSpec, label: str, terms: Terms) -> Instance:
        """Send the one request that rents, and never a second: ``launch`` calls it."""
        if offer.interruptible and "bid_usd_per_hour" not in terms:
            raise CourseError(
                f"offer {offer.id} is priced by bid: without one it is rented at the full price",
                "pass bid_usd_per_hour=..., or search without interruptible=True",
            )
        switch = deadman.script("vast", terms.get("lifetime_s", deadman.LIFETIME_S))
        answer = self.once.create_instance(
            int(offer.id),
            image=spec.image,
            onstart_cmd=spec.onstart(switch),
            label=label,
            disk=spec.disk_gb,
            env=spec.env,
            ssh=True,
            direct=True,
            bid_price=terms.get("bid_usd_per_hour"),
            cancel_unavail=True,
        )
        price = terms.get("bid_usd_per_hour", offer.usd_per_hour)
        row = {"id": agreed(answer)["new_contract"], "label": label, "num_gpus": offer.gpu_count}
        # Not asked for: the service may not show it yet.
        return self._instance(row | {"gpu_name": offer.gpu, "dph_total": price})

    @VAST.told("listing the instances")
    def instances(self) -> list[Instance]:
        """Everything rented on the account that carries the course's label."""
        rows = self.sdk.show_instances()
        ours = (r for r in rows if (r.get("label") or "").startswith(market.LABEL_PREFIX))
        return [self._instance(row) for row in ours]

    @VAST.told("asking for the instance", missing_ok=True)
    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""
        row = self.sdk.show_instance(int(instance_id))
        return self._instance(row) if row else None

    def _instance(self, row: dict[str, Any]) -> Instance:
        status = _status(row)
        disk = row.get("storage_total_cost") or 0.0
        host, port = _ssh_address(row)
        return Instance(
            id=str(row["id"]),
            provider=self.name,
            label=row.get("label") or "",
            status=status,
            detail=(row.get("status_msg") or "").strip(),
            gpu=row.get("gpu_name") or "",
            gpu_count=row.get("num_gpus") or 1,
            # Loading is free of GPU charges, but only running is a promise to the reader.
            usd_per_hour=disk if status == "stopped" else row.get("dph_total") or 0.0,
            stopped_usd_per_hour=disk,
            created=row.get("start_date") or time.time(),
            ssh_host=host,
            ssh_port=port,
            cpu_cores=row.get("cpu_cores_effective"),
        )

    @VAST.told("fetching the log")
    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log; empty until the provider has collected one."""
        with contextlib.suppress(TimeoutError):
            return self.sdk.logs(int(instance_id), tail=str(lines))
        return ""

    @VAST.told("stopping the instance")
    def stop(self, instance_id: str) -> None:
        """Stop it; its disk is kept and billed."""
        self.sdk.stop_instance(int(instance_id))

    @VAST.told("starting the instance")
    def start(self, instance_id: str) -> None:
        """Start a stopped one again; on a real market the GPU may be taken meanwhile."""
        self.sdk.start_instance(int(instance_id))

    @VAST.told("destroying the instance", missing_ok=True)
    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""
        self.sdk.destroy_instance(int(instance_id))


def _status(row: dict[str, Any]) -> str:
    """The course's five states from Vast's three fields."""
    actual = row.get("actual_status")
    if row.get("intended_status") == "stopped":
        return "stopped"
    if actual != "running" and row.get("cur_state") == "stopped":
        return "loading"  # started again, waiting for its GPU
    if actual == "created" and "error" in (row.get("status_msg") or "").lower():
        return "failed"
    return _STATUS.get(actual, "loading")


def _ssh_address(row: dict[str, Any]) -> tuple[str | None, int | None]:
    """Direct when the host maps port 22, else through Vast's proxy."""
    mapped = (row.get("ports") or {}).get("22/tcp")
    if mapped and row.get("public_ipaddr"):
        return row["public_ipaddr"].strip(), int(mapped[0]["HostPort"])
    if row.get("ssh_host") and row.get("ssh_port"):
        return row["ssh_host"], int(row["ssh_port"])
    return None, None
