"""RunPod through its REST API v2 (https://docs.runpod.io/api-reference-v2); the rehearsal answers
the same routes."""

import contextlib
import json
import secrets
import shlex
from itertools import islice
from typing import Any

import requests

from helpers.errors import CourseError
from helpers.rent import deadman, market
from helpers.rent.calls import RUNPOD, number, patient, readable, seconds
from helpers.rent.market import Instance, Offer, OfferFilter, Provider, Template, Terms
from helpers.serve.spec import DISK_USD_PER_GB_MONTH, SSH_IMAGE, ServingSpec

API_URL = "https://api.runpod.io"
PROXY = "https://{pod}-{port}.proxy.runpod.net"
# Examples lie in vLLM's image as they do in its repository.
EXAMPLES = "/vllm-workspace/examples/"
VLLM_SOURCE = "https://raw.githubusercontent.com/vllm-project/vllm"
_HOURS_PER_MONTH, TIMEOUT_S = 730, 60.0
_STATUS = {"PROVISIONING": "creating", "STARTING": "loading", "RUNNING": "running"}
_STATUS |= {"EXITED": "stopped"}  # anything else, such as ERROR, is "failed"


class RunPod(Provider):
    """The RunPod marketplace.

    A spec that binds to loopback is served behind SSH, as on Vast.ai: the pod is RunPod's own
    image, which has an SSH server, and installs the spec's version of vLLM when it boots. A spec
    with ``host="0.0.0.0"`` runs vLLM's image and is reached through RunPod's HTTPS proxy, which is
    open to everyone: a key for the API is generated (:meth:`public_api` tells both). That pod, and
    one from somebody else's template, has no dead-man's switch: its image runs one command. A pod
    from a template of one's own has it with the default time: ``guard.extend`` sets another.

    Args:
        api_key: the account's key, or the rehearsal's token.
        server_url: another server that speaks the API; None for RunPod itself.
        rehearsal: the server is the free local one.
    """

    def __init__(self, api_key: str, server_url: str | None = None, rehearsal: bool = False):
        self.url = server_url or API_URL
        self.proxy = f"{server_url}/proxy/{{pod}}/{{port}}" if server_url else PROXY
        self.http = requests.Session()
        self.http.trust_env = False  # a ~/.netrc would replace our Authorization header
        self._request = patient(self.http.request)
        self.http.headers["Authorization"] = f"Bearer {api_key}"
        super().__init__("rehearsal-runpod" if rehearsal else "runpod", rehearsal)

    def _send(self, method: str, path: str, body: dict | None = None) -> Any:
        """One request; the answer's JSON, None for an empty one."""
        answer = self._request(method, self.url + path, json=body, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @RUNPOD.told("reading the balance")
    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""
        # REST v2 has no route for it; GraphQL does.
        query = {"query": "query { myself { clientBalance } }"}
        return float(self._send("POST", "/graphql", query)["data"]["myself"]["clientBalance"])

    @RUNPOD.told("registering the SSH key")
    def register_key(self, public_key: str) -> None:
        """Let a public key log in to pods launched from now on; no change if it can."""
        known = self._send("GET", "/v2/account/ssh-keys")["keys"]
        if public_key.split()[1] not in str(known):
            # The request replaces the whole set: send what is there already, too.
            self._send("PUT", "/v2/account/ssh-keys", {"keys": [*known, public_key.strip()]})

    @RUNPOD.told("searching offers")
    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """GPU types in stock that match, the cheapest first (price includes the disk).

        RunPod publishes no reliability and no network speed of a host: these wishes are not
        applied. The machines stand in its own data centres (Secure Cloud). Nothing is offered by
        bid: version 2 of its API cannot rent that way.
        """
        if wanted.interruptible:
            return []
        query = "include=AVAILABILITY&product=POD&cloud=SECURE"
        query += f"&count={wanted.gpu_count}&minCudaVersion={wanted.min_cuda}"
        rows = self._send("GET", f"/v2/catalog/gpus?{query}")["gpus"]
        suitable = readable(lambda row: self._offer(row, wanted), rows)
        if not any(suitable):
            market.check_names(wanted.gpu, readable(lambda row: str(row["name"]), rows))
        return wanted.cheapest(offer for offer in suitable if offer)

    def _offer(self, row: dict[str, Any], wanted: OfferFilter) -> Offer | None:
        """What a GPU type's row offers, None when it does not pass the filter."""
        names = {market.plain(gpu).lower() for gpu in wanted.gpu}
        if (
            row["manufacturer"] != "NVIDIA"
            or not row["secure"]
            or row.get("availability") == "NONE"
            or row["maxCount"]["secure"] < wanted.gpu_count
            or row["memory"] < wanted.min_vram_gb
            or (names and not {market.plain(row[key]).lower() for key in ("name", "id")} & names)
            or "V100" in row["name"]  # the only one there that is older than Ampere
        ):
            return None
        disk = DISK_USD_PER_GB_MONTH * wanted.disk_gb / _HOURS_PER_MONTH
        return Offer(
            id=row["id"],
            provider=self.name,
            gpu=row["name"],
            gpu_count=wanted.gpu_count,
            vram_gb=row["memory"],
            usd_per_hour=row["price"]["secure"] * wanted.gpu_count + disk,
            location=", ".join(place["id"] for place in row.get("dataCenters") or []),
        )

    @RUNPOD.told("renting the offer")
    def create(self, offer: Offer, spec: ServingSpec, label: str, terms: Terms) -> Instance:
        """Send the one request that rents, and never a second: ``launch`` calls it."""
        if "bid_usd_per_hour" in terms:
            raise CourseError("RunPod's API rents nothing by bid", "launch it without a bid")
        cuda = str(OfferFilter.min_cuda)  # what our image asks for
        gpu = {"id": offer.id, "count": offer.gpu_count, "minCudaVersion": cuda}
        body = {"name": label, "cloud": "SECURE", "gpu": gpu, "startSsh": True}
        body["disk"] = spec.disk_gb
        if template := terms.get("template_id"):
            body |= {"templateId": template, "env": spec.env}
        else:
            body |= container(spec, lifetime_s=terms.get("lifetime_s", deadman.LIFETIME_S))
        return self._instance(self._send("POST", "/v2/pods", body))

    @RUNPOD.told("listing the pods")
    def everything(self) -> list[Instance]:
        """All that is rented on the account, whoever rented it."""
        pods = readable(self._instance, self._send("GET", "/v2/pods")["pods"])
        return [pod for pod in pods if pod.detail != "terminated"]

    @RUNPOD.told("asking for the pod", missing_ok=True)
    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""
        pod = self._instance(self._send("GET", f"/v2/pods/{instance_id}"))
        return None if pod.detail == "terminated" else pod

    def _instance(self, pod: dict[str, Any]) -> Instance:
        detail = str(pod.get("status")).lower()
        status = _STATUS.get(detail.upper(), "failed")
        if status == "running" and pod.get("runtime") is None:
            # RunPod says RUNNING while the image is still pulled.
            status, detail = "loading", "running, the container is not up yet"
        gpu = pod.get("gpu") or {}
        volume_gb = number(((pod.get("mounts") or {}).get("persistent") or {}).get("size"))
        ssh = (pod.get("ssh") or {}).get("direct") or {}
        return Instance(
            id=str(pod["id"]),
            provider=self.name,
            label=str(pod.get("name") or ""),
            status=status,
            detail=detail,
            gpu=market.plain(str(gpu.get("id") or "CPU")),
            gpu_count=int(number(gpu.get("count"), 1)),
            usd_per_hour=number(pod.get("cost")),
            # A stopped pod keeps (and pays, at twice the price) its volume only.
            stopped_usd_per_hour=2 * DISK_USD_PER_GB_MONTH * volume_gb / _HOURS_PER_MONTH,
            created=seconds(pod.get("createdAt")),
            ssh_host=ssh.get("host"),
            ssh_port=ssh.get("port"),
            ssh_user=ssh.get("username") or "root",
            cpu_cores=pod.get("vcpuCount"),
        )

    @RUNPOD.told("asking for the pod's public API")
    def public_api(self, instance_id: str) -> tuple[str, str]:
        """Base URL and key of a pod that is reached through RunPod's HTTPS proxy.

        The proxy gives up (HTTP 524) when an answer has not begun after 100 s: stream.

        Raises:
            CourseError: when the pod serves behind SSH only.
        """
        pod = self._send("GET", f"/v2/pods/{instance_id}")
        ports = [port.removesuffix("/http") for port in pod["ports"] if port.endswith("/http")]
        key = pod["env"].get("VLLM_API_KEY")
        if not ports or not key:
            raise CourseError(f"pod {instance_id} has no public API", "open a tunnel: ssh.tunnel()")
        return self.proxy.format(pod=instance_id, port=ports[0]) + "/v1", key

    @RUNPOD.told("fetching the log")
    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log."""
        url = f"{self.url}/v2/pods/{instance_id}/logs?source=container&tail={min(lines, 5000)}"
        said: list[str] = []
        with self._request("GET", url, stream=True, timeout=(10, 3)) as answer:
            answer.raise_for_status()
            # An endless stream of events: read until it falls silent.
            with contextlib.suppress(requests.RequestException):
                events = (e for e in answer.iter_lines() if e.startswith(b"data:"))
                said += (json.loads(event[5:])["line"] for event in islice(events, lines))
        return "\n".join(said)

    @RUNPOD.told("stopping the pod")
    def stop(self, instance_id: str) -> None:
        """Stop it; the container's disk is wiped, RunPod keeps volumes only."""
        self._send("POST", f"/v2/pods/{instance_id}/action", {"action": "stop"})

    @RUNPOD.told("starting the pod")
    def start(self, instance_id: str) -> None:
        """Start a stopped one again; on a real market the GPU may be taken meanwhile."""
        self._send("POST", f"/v2/pods/{instance_id}/action", {"action": "start"})

    @RUNPOD.told("destroying the pod", missing_ok=True)
    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""
        self._send("DELETE", f"/v2/pods/{instance_id}")

    @RUNPOD.told("searching templates")
    def templates(self) -> list[Template]:
        """The account's own templates, then RunPod's for vLLM."""
        own = self._send("GET", "/v2/templates")["templates"]
        theirs = self._send("GET", "/v2/catalog/templates")["templates"]
        rows = own + [row for row in theirs if "vllm" in row["name"].lower()]
        return [
            Template(id=row["id"], name=row["name"], image=row["image"], own=row in own)
            for row in rows
            if not row["serverless"]
        ]

    @RUNPOD.told("creating the template")
    def create_template(self, spec: ServingSpec, name: str) -> str:
        """Keep a spec as a template of one's own, without the keys in its environment."""
        body = {"name": name, "disk": spec.disk_gb, **container(spec)}
        body["env"] = {k: v for k, v in body["env"].items() if not market.is_secret(k)}
        return self._send("POST", "/v2/templates", body)["id"]


def container(spec: ServingSpec, lifetime_s: float = deadman.LIFETIME_S) -> dict[str, Any]:
    """The part of a pod or template that says what runs: image, arguments, ports, environment.

    Args:
        spec: what to serve.
        lifetime_s: seconds after which a pod with a shell terminates itself.
    """
    env = dict(spec.env)
    if spec.host == "0.0.0.0":  # noqa: S104
        # In the environment, not as --api-key: vLLM prints its arguments into the log.
        env.setdefault("VLLM_API_KEY", secrets.token_urlsafe(32))
        args, image, ports = spec.vllm_args(), spec.image, [f"{spec.port}/http"]
    else:
        version = spec.image.rpartition(":")[2].removeprefix("v")
        install, template = f"pip install vllm=={version}", spec.flag("--chat-template") or ""
        if template.startswith(EXAMPLES):  # a file of vLLM's image, which this one is not
            source = f"{VLLM_SOURCE}/v{version}{template.removeprefix('/vllm-workspace')}"
            install += f"; curl -fsSL --create-dirs -o {template} {source}"
        script = (
            f"{deadman.script('runpod', lifetime_s)}\n"
            f"(command -v vllm || {{ {install}; }}; {spec.served()}) "
            "2>&1 | tee -a ~/vllm.log &\n"
            "test -x /start.sh && exec /start.sh; wait"
        )
        args, image, ports = ["bash", "-c", script], SSH_IMAGE, []
    return {"image": image, "args": shlex.join(args), "ports": [*ports, "22/tcp"], "env": env}
