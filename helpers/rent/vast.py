"""Vast.ai through its official SDK; the rehearsal speaks the same API."""

import contextlib
import os
import shlex
import time
from itertools import pairwise

from vastai import VastAI

from helpers.errors import CourseError
from helpers.rent import deadman
from helpers.rent.market import (
    LABEL_PREFIX,
    LIFETIME_S,
    Instance,
    Offer,
    OfferFilter,
    Template,
    after_failed_launch,
    is_secret,
    new_label,
)
from helpers.rent.vast_calls import NotFound, call, message, told
from helpers.serve.spec import ServingSpec


class Vast:
    """The Vast.ai marketplace.

    Args:
        api_key: the account's key, or the rehearsal's token.
        server_url: another server that speaks the API; None for Vast.ai itself.
        rehearsal: the server is the free local one.
    """

    def __init__(self, api_key: str, server_url: str | None = None, rehearsal: bool = False):
        options = {"server_url": server_url} if server_url else {}
        self.sdk = VastAI(api_key=api_key, **options)
        # The SDK repeats every call whose answer got lost, also the one that rents. A repeated
        # create answers "no such offer" while the first one rented: so, one attempt.
        self._once = VastAI(api_key=api_key, retry=1, **options)
        self.name = "rehearsal" if rehearsal else "vast"
        self.rehearsal = rehearsal
        self.poll_s = 0.5 if rehearsal else 10.0

    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""
        return call("reading the balance", lambda: float(self.sdk.show_user()["credit"]))

    def register_key(self, public_key: str) -> None:
        """Let a public key log in to instances launched from now on; no change if it can."""
        body = public_key.split()[:2]
        if body not in call("listing the SSH keys", self._registered):
            call("registering the SSH key", lambda: self.sdk.create_ssh_key(public_key))

    def _registered(self) -> list[list[str]]:
        known = self.sdk.show_ssh_keys()
        rows = known["ssh_keys"] if isinstance(known, dict) else known
        return [(row.get("public_key") or row.get("key") or "").split()[:2] for row in rows]

    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """Machines that match, the cheapest first (price includes the disk)."""
        query = {
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
        if not wanted.verified:
            query["verified"] = {"in": [True, False]}
        if wanted.gpu:
            query["gpu_name"] = {"in": list(wanted.gpu)}
        if wanted.max_usd_per_hour is not None:
            query["dph_total"] = {"lte": wanted.max_usd_per_hour}

        def search() -> list[Offer]:
            found = self.sdk.search_offers(
                query=query,
                type="bid" if wanted.interruptible else "on-demand",
                order="dph_total",
                limit=wanted.limit,
                storage=wanted.disk_gb,
            )
            return [self._offer(row, wanted.interruptible) for row in found]

        offers = call("searching offers", search)
        ceiling = wanted.max_usd_per_hour or float("inf")
        # The ceiling guards money: it is enforced here too, whatever the server did with it.
        return sorted(
            (o for o in offers if o.usd_per_hour <= ceiling), key=lambda o: o.usd_per_hour
        )

    def _offer(self, row: dict, interruptible: bool) -> Offer:
        return Offer(
            id=str(row["id"]),
            provider=self.name,
            gpu=row["gpu_name"],
            gpu_count=row["num_gpus"],
            vram_gb=round(row["gpu_ram"] / 1024, 1),
            bandwidth_gb_s=row.get("gpu_mem_bw"),
            usd_per_hour=row["dph_total"],
            interruptible=interruptible,
            min_bid_usd_per_hour=row.get("min_bid"),
            reliability=row.get("reliability2"),
            download_mbps=row.get("inet_down"),
            cuda=row.get("cuda_max_good"),
            compute_capability=(row.get("compute_cap") or 0) / 100 or None,
            verified=row.get("verification") == "verified",
            location=row.get("geolocation") or "",
        )

    def launch(
        self,
        offer: Offer,
        spec: ServingSpec,
        label: str,
        *,
        lifetime_s: float = LIFETIME_S,
        bid_usd_per_hour: float | None = None,
        template_hash: str | None = None,
    ) -> Instance:
        """Rent an offer and start the server on it.

        Args:
            offer: what to rent.
            spec: what to serve; with a template only its disk size and environment count.
            label: name of the purpose, e.g. ``"mistral"``; found again by ``instances()``.
            lifetime_s: seconds after which the machine destroys itself (its dead-man's switch).
            bid_usd_per_hour: makes the rental interruptible, at this bid for the GPU.
            template_hash: rent from this template instead of the spec's image and script.

        Raises:
            OfferGone: when somebody else was faster.
            CourseError: when it failed; nothing is left rented then.
        """
        unique = new_label(label)
        options = {"label": unique, "disk": spec.disk_gb, "env": spec.env, "cancel_unavail": True}
        switch = deadman.script("vast", lifetime_s)
        if template_hash:
            # The switch runs before the template's own script, which is sent along with it.
            options |= {"template_hash": template_hash}
            options["onstart_cmd"] = f"{switch}\n{self._template_script(template_hash)}"
        else:
            options |= {"image": spec.image, "onstart_cmd": spec.onstart(switch)}
            options |= {"ssh": True, "direct": True}
        if bid_usd_per_hour is not None:
            options["bid_price"] = bid_usd_per_hour
        try:
            with told("renting the offer"):
                answer = self._once.create_instance(int(offer.id), **options)
                if not answer.get("success") or "new_contract" not in answer:
                    raise CourseError(
                        f"renting offer {offer.id} was refused: {message(answer)}",
                        "try another offer",
                    )
        except BaseException as error:
            return after_failed_launch(self, unique, f"renting offer {offer.id}", error)
        contract = str(answer["new_contract"])
        return self.instance(contract) or self._pending(contract, offer, unique)

    def _template_script(self, hash_id: str) -> str:
        query = {"hash_id": {"eq": hash_id}}
        rows = call("reading the template", lambda: self.sdk.search_templates(query))
        if not rows:
            raise CourseError(
                f"there is no template {hash_id}", "look it up anew: provider.templates()"
            )
        return rows[0].get("onstart") or ""

    def _pending(self, contract: str, offer: Offer, label: str) -> Instance:
        """A contract that the listing does not show yet."""
        return Instance(
            id=contract,
            provider=self.name,
            label=label,
            status="creating",
            detail="",
            gpu=offer.gpu,
            gpu_count=offer.gpu_count,
            usd_per_hour=offer.usd_per_hour,
            stopped_usd_per_hour=0.0,
            created=time.time(),
        )

    def instances(self) -> list[Instance]:
        """Everything rented on the account that carries the course's label."""

        def listing() -> list[Instance]:
            rows = self.sdk.show_instances()
            ours = (row for row in rows if (row.get("label") or "").startswith(LABEL_PREFIX))
            return [self._instance(row) for row in ours]

        return call("listing the instances", listing)

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""

        def show() -> Instance | None:
            row = self.sdk.show_instance(int(instance_id))
            return row and self._instance(row)

        try:
            return call("asking for the instance", show)
        except NotFound:
            return None

    def _instance(self, row: dict) -> Instance:
        status = _status(row)
        disk = row.get("storage_total_cost") or 0.0
        gpu_count = row.get("num_gpus") or 1
        host, port = _ssh_address(row)
        hardware = f"{gpu_count}x {row.get('gpu_name')}"
        if self.rehearsal:  # the GPU is pretended, what computes is this machine
            hardware = f"{os.cpu_count()} CPU cores"
        return Instance(
            id=str(row["id"]),
            provider=self.name,
            label=row.get("label") or "",
            status=status,
            detail=(row.get("status_msg") or "").strip(),
            gpu=row.get("gpu_name") or "",
            gpu_count=gpu_count,
            # Loading is free of GPU charges, but only running is a promise to the reader.
            usd_per_hour=disk if status == "stopped" else row.get("dph_total") or 0.0,
            stopped_usd_per_hour=disk,
            created=row.get("start_date") or time.time(),
            ssh_host=host,
            ssh_port=port,
            hardware=hardware,
        )

    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log."""
        try:
            return call(
                "fetching the log", lambda: self.sdk.logs(int(instance_id), tail=str(lines))
            )
        except TimeoutError:
            return ""  # the provider has not collected one yet

    def stop(self, instance_id: str) -> None:
        """Stop it; its disk is kept and billed."""
        call("stopping the instance", lambda: self.sdk.stop_instance(int(instance_id)))

    def start(self, instance_id: str) -> None:
        """Start a stopped one again; on a real market the GPU may be taken meanwhile."""
        call("starting the instance", lambda: self.sdk.start_instance(int(instance_id)))

    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""
        with contextlib.suppress(NotFound):
            call("destroying the instance", lambda: self.sdk.destroy_instance(int(instance_id)))

    def templates(self, name: str = "vLLM") -> list[Template]:
        """Templates whose name contains ``name``: the account's own, then the provider's.

        A template's hash is made from its content and changes at each edit: look it up, do not
        store it.
        """
        mine = call("reading the account", lambda: self.sdk.show_user()["id"])
        # The service finds by equality only: ask for the usual spellings, then for one's own.
        queries = (
            {"name": {"in": [name, name.lower(), name.upper()]}},
            {"creator_id": {"eq": mine}},
        )

        def search() -> dict[str, Template]:
            rows = [row for query in queries for row in self.sdk.search_templates(query)]
            named = (row for row in rows if name.lower() in (row.get("name") or "").lower())
            return {
                row["hash_id"]: _template(row, own=row.get("creator_id") == mine) for row in named
            }

        found = call("searching templates", search)
        return sorted(found.values(), key=lambda template: not template.own)

    def create_template(self, spec: ServingSpec, name: str) -> Template:
        """Keep a spec as a template of one's own; keys in its environment are left out."""
        image, _, tag = spec.image.partition(":")
        env = {k: v for k, v in spec.env.items() if not is_secret(k)}
        words = " ".join(f"-e {key}={shlex.quote(value)}" for key, value in env.items())
        with told("creating the template"):  # one attempt: a repetition would make two
            answer = self._once.create_template(
                name=name,
                image=image,
                image_tag=tag,
                env=words,
                onstart_cmd=spec.onstart(),
                ssh=True,
                direct=True,
                disk_space=spec.disk_gb,
            )
            if not answer.get("success"):
                raise CourseError(f"creating the template was refused: {message(answer)}")
            made = {"name": name, "image": image, "tag": tag, "env": words}
            made |= {"recommended_disk_space": spec.disk_gb}
            return _template(made | answer["template"], own=True)


def _template(row: dict, own: bool) -> Template:
    image = f"{row['image']}:{row['tag']}" if row.get("tag") else row["image"]
    words = shlex.split(row.get("env") or "")
    return Template(
        id=row["hash_id"],
        name=row["name"],
        image=image,
        own=own,
        disk_gb=row.get("recommended_disk_space") or 0,
        env=tuple(w.partition("=")[0] for flag, w in pairwise(words) if flag == "-e"),
    )


def _status(row: dict) -> str:
    """The course's five states from Vast's three fields."""
    actual = row.get("actual_status")
    if row.get("intended_status") == "stopped":
        return "stopped"
    if actual == "running":
        return "running"
    if row.get("cur_state") == "stopped":
        return "loading"  # started again, waiting for its GPU
    if actual == "created" and "error" in (row.get("status_msg") or "").lower():
        return "failed"
    if actual in ("exited", "stopped", "frozen", "unknown", "offline"):
        return "failed"
    return "creating" if actual is None else "loading"


def _ssh_address(row: dict) -> tuple[str | None, int | None]:
    """Direct when the host maps port 22, else through Vast's proxy."""
    mapped = (row.get("ports") or {}).get("22/tcp")
    if mapped and row.get("public_ipaddr"):
        return row["public_ipaddr"].strip(), int(mapped[0]["HostPort"])
    if row.get("ssh_host") and row.get("ssh_port"):
        return row["ssh_host"], int(row["ssh_port"])
    return None, None
