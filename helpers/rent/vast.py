"""Vast.ai through its official SDK; the rehearsal answers the same API."""

import contextlib
import shlex
from typing import Any

from vastai import VastAI

from helpers.errors import CourseError
from helpers.rent import deadman, market
from helpers.rent.calls import MISFITS, VAST, agreed, number, patient, readable, seconds
from helpers.rent.market import Instance, Offer, OfferFilter, Provider, Template, Terms
from helpers.serve.spec import ServingSpec

_STATUS = {"None": "creating", "running": "running"}
_STATUS |= dict.fromkeys(("exited", "stopped", "frozen", "unknown", "offline"), "failed")


class Vast(Provider):
    """The Vast.ai marketplace.

    Args:
        api_key: the account's key, or the rehearsal's token.
        server_url: another server that speaks the API; None for Vast.ai itself.
        rehearsal: the server is the free local one.
    """

    def __init__(self, api_key: str, server_url: str | None = None, rehearsal: bool = False):
        # The SDK alone would repeat every call whose answer got lost, even the one that rents; its
        # second attempt would be told "no such offer", because the first one rented it.
        self.sdk = VastAI(api_key=api_key, server_url=server_url, retry=1)
        self.sdk.client._request = patient(self.sdk.client._request)
        super().__init__("rehearsal" if rehearsal else "vast", rehearsal)

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
        if names := {market.plain(gpu) for gpu in wanted.gpu}:
            query["gpu_name"] = {"in": sorted({*names, *map(str.upper, names)})}
        kind = "bid" if wanted.interruptible else "on-demand"
        rows = self.sdk.search_offers(query, kind, "dph_total", storage=wanted.disk_gb)
        if names and not rows:
            every = self.sdk.search_offers({}, kind, "dph_total", limit=1000)
            market.check_names(wanted.gpu, readable(lambda row: str(row["gpu_name"]), every))
        return wanted.cheapest(readable(lambda row: self._offer(row, wanted.interruptible), rows))

    def _offer(self, row: dict[str, Any], interruptible: bool) -> Offer:
        return Offer(
            id=str(row["id"]),
            provider=self.name,
            gpu=str(row["gpu_name"]),
            gpu_count=int(row["num_gpus"]),
            vram_gb=round(row["gpu_ram"] / 1024, 1),
            usd_per_hour=float(row["dph_total"]),
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
        options: dict[str, Any] = {"label": label, "disk": spec.disk_gb, "env": spec.env}
        if template := terms.get("template_id"):
            # The switch runs before the template's own script, which is sent along with it.
            rows = self.sdk.search_templates({"hash_id": {"eq": template}})
            script = f"{switch}\n{rows[0].get('onstart') or '' if rows else ''}"
            options |= {"template_hash": template, "onstart_cmd": script}
        else:
            options |= {"image": spec.image, "onstart_cmd": spec.onstart(switch)}
            options |= {"ssh": True, "direct": True}
        answer = self.sdk.create_instance(
            int(offer.id), bid_price=terms.get("bid_usd_per_hour"), cancel_unavail=True, **options
        )
        price = terms.get("bid_usd_per_hour", offer.usd_per_hour)
        row = {"id": agreed(answer)["new_contract"], "label": label, "num_gpus": offer.gpu_count}
        # Not asked for: the service may not show it yet.
        return self._instance(row | {"gpu_name": offer.gpu, "dph_total": price})

    @VAST.told("listing the instances")
    def everything(self) -> list[Instance]:
        """All that is rented on the account, whoever rented it."""
        # Not by show_instances(): it fails for all of them when a field of one is missing.
        asked: dict[str, Any] = {"limit": 25, "order_by": [{"col": "id", "dir": "asc"}]}
        rows: list[Any] = []
        while asked.get("after_token", True):
            page = self.sdk.show_instances_v1(asked)
            rows += page["instances"]
            asked["after_token"] = page.get("next_token")
        return readable(self._instance, rows)

    @VAST.told("asking for the instance", missing_ok=True)
    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""
        answer = self.sdk.client.get(f"/instances/{instance_id}/", query_args={"owner": "me"})
        answer.raise_for_status()
        row = answer.json()["instances"]
        return self._instance(row) if row else None

    def _instance(self, row: dict[str, Any]) -> Instance:
        status = _status(row)
        disk = number(row.get("storage_total_cost"))
        # Direct when the host maps port 22, else through Vast's proxy.
        host, port = row.get("ssh_host"), int(number(row.get("ssh_port")))
        with contextlib.suppress(*MISFITS):
            mapped = row["ports"]["22/tcp"][0]["HostPort"]
            if direct := row["public_ipaddr"].strip():
                host, port = direct, int(mapped)
        return Instance(
            id=str(row["id"]),
            provider=self.name,
            label=str(row.get("label") or ""),
            status=status,
            detail=str(row.get("status_msg") or "").strip(),
            gpu=row.get("gpu_name") or "",
            gpu_count=int(number(row.get("num_gpus"), 1)),
            # Loading is free of GPU charges, but only running is a promise to the reader.
            usd_per_hour=disk if status == "stopped" else number(row.get("dph_total")),
            stopped_usd_per_hour=disk,
            created=seconds(row.get("start_date")),
            ssh_host=host,
            ssh_port=port or None,
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

    @VAST.told("searching templates")
    def templates(self) -> list[Template]:
        """The account's own templates, then those for vLLM.

        A template's id is a hash of its content and changes at each edit: look it up, do not
        store it.
        """
        mine = self.sdk.show_user()["id"]
        rows = self.sdk.search_templates({"creator_id": {"eq": mine}})
        rows += self.sdk.search_templates({"name": {"in": ["vLLM", "vllm"]}})
        return [
            Template(
                id=number,
                name=row["name"],
                image=f"{row['image']}:{row['tag']}" if row.get("tag") else row["image"],
                own=row.get("creator_id") == mine,
            )
            for number, row in {row["hash_id"]: row for row in rows}.items()
        ]

    @VAST.told("creating the template")
    def create_template(self, spec: ServingSpec, name: str) -> str:
        """Keep a spec as a template of one's own, without the keys in its environment."""
        image, _, tag = spec.image.partition(":")
        env = {k: v for k, v in spec.env.items() if not market.is_secret(k)}
        answer = self.sdk.create_template(
            name=name,
            image=image,
            image_tag=tag,
            env=" ".join(f"-e {key}={shlex.quote(value)}" for key, value in env.items()),
            onstart_cmd=spec.onstart(),
            ssh=True,
            direct=True,
            disk_space=spec.disk_gb,
        )
        return agreed(answer)["template"]["hash_id"]


def _status(row: dict[str, Any]) -> str:
    """The course's five states from Vast's three fields."""
    actual = row.get("actual_status")
    if row.get("intended_status") == "stopped":
        return "stopped"
    if actual != "running" and row.get("cur_state") == "stopped":
        return "loading"  # started again, waiting for its GPU
    if actual == "created" and "error" in str(row.get("status_msg")).lower():
        return "failed"
    return _STATUS.get(str(actual), "loading")
