"""RunPod through its REST API v2 (https://docs.runpod.io/api-reference-v2); the rehearsal answers
the same routes."""

import contextlib
import json
import os
import secrets
import shlex
from datetime import datetime

import gpuhunt
import requests

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
from helpers.rent.runpod_http import Api, NotFound, fitting
from helpers.serve.spec import DISK_USD_PER_GB_MONTH, SSH_IMAGE, ServingSpec

API_URL = "https://api.runpod.io"
PROXY = "https://{pod}-{port}.proxy.runpod.net"
_HOURS_PER_MONTH = 730
_STATUS = {
    "PROVISIONING": "creating",
    "STARTING": "loading",
    "RUNNING": "running",
    "EXITED": "stopped",
    "ERROR": "failed",
}


class RunPod:
    """The RunPod marketplace.

    A spec that binds to loopback is served behind SSH, as on Vast.ai: the pod is RunPod's own
    image, which has an SSH server, and installs the spec's version of vLLM when it boots. A spec
    with ``host="0.0.0.0"`` runs vLLM's image and is reached through RunPod's HTTPS proxy, which is
    open to everyone: a key for the API is generated (:meth:`public_api` tells both).

    Args:
        api_key: the account's key, or the rehearsal's token.
        server_url: another server that speaks the API; None for RunPod itself.
        rehearsal: the server is the free local one.
    """

    def __init__(self, api_key: str, server_url: str | None = None, rehearsal: bool = False):
        self.url = (server_url or API_URL).rstrip("/")
        self.proxy = PROXY if server_url is None else f"{self.url}/proxy/{{pod}}/{{port}}"
        self.api = Api(self.url, api_key)
        self.name = "rehearsal-runpod" if rehearsal else "runpod"
        self.rehearsal = rehearsal
        self.poll_s = 0.5 if rehearsal else 10.0

    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""
        # REST v2 has no route for it; GraphQL does.
        body = {"query": "query { myself { clientBalance } }"}
        answer = self.api.json("reading the balance", "POST", "/graphql", body, again=True)
        with fitting("reading the balance"):
            return float(answer["data"]["myself"]["clientBalance"])

    def register_key(self, public_key: str) -> None:
        """Let a public key log in to pods launched from now on; no change if it can."""
        answer = self.api.json("listing the SSH keys", "GET", "/v2/account/ssh-keys")
        with fitting("listing the SSH keys"):
            known = [key.strip() for key in answer["keys"]]
        key = public_key.strip()
        if all(k.split()[:2] != key.split()[:2] for k in known):
            # The request replaces the whole set: send what is there already, too.
            body = {"keys": [*known, key]}
            self.api.call("registering the SSH key", "PUT", "/v2/account/ssh-keys", body)

    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """GPU types in stock that match, the cheapest first (price includes the disk).

        RunPod publishes no reliability and no network speed of a host: these wishes are not
        applied. ``verified`` means its own data centres (Secure Cloud). Interruptible offers are
        none: version 2 of its API cannot rent them.
        """
        if wanted.interruptible:
            return []
        offers = []
        for cloud in ("SECURE",) if wanted.verified else ("SECURE", "COMMUNITY"):
            query = {
                "include": "AVAILABILITY",
                "product": "POD",
                "count": wanted.gpu_count,
                "cloud": cloud,
                "minCudaVersion": str(wanted.min_cuda),
            }
            found = self.api.json("searching offers", "GET", "/v2/catalog/gpus", params=query)
            with fitting("searching offers"):
                offers += [
                    self._offer(row, cloud, wanted)
                    for row in found["gpus"]
                    if _suits(row, cloud, wanted)
                ]
        ceiling = wanted.max_usd_per_hour or float("inf")
        within = (o for o in offers if o.usd_per_hour <= ceiling)
        return sorted(within, key=lambda o: o.usd_per_hour)[: wanted.limit]

    def _offer(self, row: dict, cloud: str, wanted: OfferFilter) -> Offer:
        disk = DISK_USD_PER_GB_MONTH * wanted.disk_gb / _HOURS_PER_MONTH
        return Offer(
            id=f"{cloud}:{row['id']}",
            provider=self.name,
            gpu=row["name"],
            gpu_count=wanted.gpu_count,
            vram_gb=row["memory"],
            bandwidth_gb_s=None,
            usd_per_hour=row["price"][cloud.lower()] * wanted.gpu_count + disk,
            interruptible=False,
            min_bid_usd_per_hour=None,
            reliability=None,
            download_mbps=None,
            cuda=wanted.min_cuda,
            compute_capability=_compute_capability(row["name"]),
            verified=cloud == "SECURE",
            location=", ".join(place["id"] for place in row.get("dataCenters") or []),
        )

    def launch(
        self,
        offer: Offer,
        spec: ServingSpec,
        label: str,
        *,
        lifetime_s: float = LIFETIME_S,
        template_hash: str | None = None,
    ) -> Instance:
        """Rent an offer and start the server on it.

        Args:
            offer: what to rent.
            spec: what to serve; with a template only its disk size and environment count.
            label: name of the purpose, e.g. ``"mistral"``; found again by ``instances()``.
            lifetime_s: seconds after which the machine terminates itself (its dead-man's switch).
                Not with a public API or a template: their images run one command, and no switch.
            template_hash: id of a template to rent from instead of the spec's image and arguments.

        Raises:
            OfferGone: when RunPod has no such machine left.
            CourseError: when it failed; nothing is left rented then.
        """
        unique = new_label(label)
        cloud, _, gpu = offer.id.partition(":")
        body = {"name": unique, "cloud": cloud, "disk": spec.disk_gb, "startSsh": True}
        body["gpu"] = {"id": gpu, "count": offer.gpu_count}
        if offer.cuda:
            body["gpu"]["minCudaVersion"] = str(offer.cuda)
        if template_hash:
            body |= {"templateId": template_hash, "env": dict(spec.env)}
        else:
            body |= container(spec, lifetime_s=lifetime_s)
        try:
            return self._instance(
                self.api.json("renting the offer", "POST", "/v2/pods", body, again=False)
            )
        except BaseException as error:
            return after_failed_launch(self, unique, f"renting {offer.gpu}", error)

    def instances(self) -> list[Instance]:
        """Everything rented on the account that carries the course's label."""
        answer = self.api.json("listing the pods", "GET", "/v2/pods")
        with fitting("listing the pods"):
            ours = (pod for pod in answer["pods"] if pod["name"].startswith(LABEL_PREFIX))
            return [self._instance(pod) for pod in ours if pod["status"] != "TERMINATED"]

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""
        try:
            pod = self.api.json("asking for the pod", "GET", f"/v2/pods/{instance_id}")
        except NotFound:
            return None
        return None if pod.get("status") == "TERMINATED" else self._instance(pod)

    def _instance(self, pod: dict) -> Instance:
        with fitting("reading a pod"):
            status = _STATUS.get(pod["status"], "failed")
            detail = pod["status"].lower()
            if status == "running" and pod["runtime"] is None:
                # RunPod says RUNNING while the image is still pulled.
                status, detail = "loading", "running, the container is not up yet"
            gpu = pod.get("gpu") or {"id": "CPU", "count": 1}
            volume_gb = (pod["mounts"] or {}).get("persistent", {}).get("size", 0)
            ssh = pod["ssh"]["direct"] or {}
            count = gpu.get("count", 1)
            return Instance(
                id=pod["id"],
                provider=self.name,
                label=pod["name"],
                status=status,
                detail=detail,
                gpu=gpu["id"].removeprefix("NVIDIA ").removeprefix("GeForce "),
                gpu_count=count,
                usd_per_hour=pod["cost"],
                # A stopped pod keeps (and pays, at twice the price) its volume only.
                stopped_usd_per_hour=2 * DISK_USD_PER_GB_MONTH * volume_gb / _HOURS_PER_MONTH,
                created=datetime.fromisoformat(pod["createdAt"]).timestamp(),
                ssh_host=ssh.get("host"),
                ssh_port=ssh.get("port"),
                ssh_user=ssh.get("username", "root"),
                hardware=f"{os.cpu_count()} CPU cores"
                if self.rehearsal
                else f"{count}x {gpu['id']}",
            )

    def public_api(self, instance_id: str) -> tuple[str, str]:
        """Base URL and key of a pod that is reached through RunPod's HTTPS proxy.

        The proxy gives up (HTTP 524) when an answer has not begun after 100 s: stream.

        Raises:
            CourseError: when the pod serves behind SSH only.
        """
        pod = self.api.json("asking for the pod", "GET", f"/v2/pods/{instance_id}")
        with fitting("asking for the pod"):
            port = next((p.split("/")[0] for p in pod["ports"] if p.endswith("/http")), None)
            key = pod["env"].get("VLLM_API_KEY", "")
        if port is None or not key:
            raise CourseError(
                f"pod {instance_id} has no public API", "open an SSH tunnel to it: ssh.tunnel(...)"
            )
        return self.proxy.format(pod=instance_id, port=port) + "/v1", key

    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log."""
        # The answer is an endless stream of events: read until it falls silent.
        query = {"source": "container", "tail": min(lines, 5000)}
        answer = self.api.call(
            "fetching the log", "GET", f"/v2/pods/{instance_id}/logs", params=query, stream=True
        )
        said: list[str] = []
        with contextlib.closing(answer), contextlib.suppress(requests.RequestException, ValueError):
            for line in answer.iter_lines(decode_unicode=True):
                if line and line.startswith("data:"):
                    said.append(json.loads(line[5:])["line"])
                if len(said) >= lines:
                    break
        return "\n".join(said)

    def stop(self, instance_id: str) -> None:
        """Stop it; the container's disk is wiped, RunPod keeps volumes only."""
        body = {"action": "stop"}
        self.api.call("stopping the pod", "POST", f"/v2/pods/{instance_id}/action", body)

    def start(self, instance_id: str) -> None:
        """Start a stopped one again; on a real market the GPU may be taken meanwhile."""
        body = {"action": "start"}
        self.api.call("starting the pod", "POST", f"/v2/pods/{instance_id}/action", body)

    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""
        with contextlib.suppress(NotFound):
            self.api.call("destroying the pod", "DELETE", f"/v2/pods/{instance_id}")

    def templates(self, name: str = "vLLM") -> list[Template]:
        """Templates whose name contains ``name``: the account's own, then RunPod's."""
        found = []
        for path in ("/v2/templates", "/v2/catalog/templates"):
            answer = self.api.json("searching templates", "GET", path)
            with fitting("searching templates"):
                found += [
                    _template(row, own=path == "/v2/templates")
                    for row in answer["templates"]
                    if name.lower() in row["name"].lower() and not row["serverless"]
                ]
        return found

    def create_template(self, spec: ServingSpec, name: str) -> Template:
        """Keep a spec as a template of one's own; keys in its environment are left out."""
        body = {"name": name, "disk": spec.disk_gb, **container(spec, secret=False)}
        row = self.api.call("creating the template", "POST", "/v2/templates", body, again=False)
        with fitting("creating the template"):
            return _template(row.json(), own=True)


def container(spec: ServingSpec, secret: bool = True, lifetime_s: float = LIFETIME_S) -> dict:
    """The part of a pod or template that says what runs: image, arguments, ports, environment.

    Args:
        spec: what to serve.
        secret: put keys into the environment; a template must hold none.
        lifetime_s: seconds after which a pod with a shell terminates itself.
    """
    env = {k: v for k, v in spec.env.items() if secret or not is_secret(k)}
    if spec.host == "0.0.0.0":  # noqa: S104
        if secret:
            # In the environment, not as --api-key: vLLM prints its arguments into the log.
            env.setdefault("VLLM_API_KEY", secrets.token_urlsafe(32))
        args, image, ports = shlex.join(spec.vllm_args()), spec.image, [f"{spec.port}/http"]
    else:
        image, ports = SSH_IMAGE, []
        version = spec.image.rpartition(":")[2].removeprefix("v")
        script = (
            f"{deadman.script('runpod', lifetime_s)}\n"
            f"(command -v vllm || pip install vllm=={version}; {spec.served()}) "
            "2>&1 | tee -a ~/vllm.log &\n"
            "test -x /start.sh && exec /start.sh; wait"
        )
        args = shlex.join(["bash", "-c", script])
    return {"image": image, "args": args, "ports": [*ports, "22/tcp"], "env": env}


def _template(row: dict, own: bool) -> Template:
    return Template(
        id=row["id"], name=row["name"], image=row["image"], own=own, disk_gb=row["disk"],
        env=tuple(row["env"] or ()),
    )  # fmt: skip


def _suits(row: dict, cloud: str, wanted: OfferFilter) -> bool:
    """Does a GPU type pass the filter?"""
    capability = _compute_capability(row["name"])
    return (
        row["manufacturer"] == "NVIDIA"
        and row[cloud.lower()]
        and row.get("availability") != "NONE"
        and row["maxCount"][cloud.lower()] >= wanted.gpu_count
        and row["memory"] >= wanted.min_vram_gb
        and (not wanted.gpu or {row["name"], row["id"]} & set(wanted.gpu))
        and (capability is None or capability >= wanted.min_compute_capability)
    )


def _compute_capability(name: str) -> float | None:
    """From gpuhunt's table, since RunPod does not say; None for a GPU it does not know."""
    words = name.removeprefix("Tesla ").removeprefix("NVIDIA ")
    tried = [words.replace(" ", ""), words.replace("RTX A", "A"), words.split()[0]]
    known = gpuhunt.find_accelerators(names=tried, vendors=[gpuhunt.AcceleratorVendor.NVIDIA])
    return min((float("{}.{}".format(*gpu.compute_capability)) for gpu in known), default=None)
