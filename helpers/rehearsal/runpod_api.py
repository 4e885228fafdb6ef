"""The part of RunPod's REST API v2 that the course calls, answered by the rehearsal's market."""

import asyncio
import json
import secrets
import shlex
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from helpers.rehearsal.market import HOURS_PER_MONTH, Market, Rental, public_key
from helpers.rehearsal.proxy import forward
from helpers.rehearsal.web_api import Refusal, json_object, reply, routes
from helpers.serve.spec import DISK_USD_PER_GB_MONTH, SSH_IMAGE, VLLM_IMAGE, ServingSpec

# RunPod's ids of the GPUs that the pretend market has.
GPU_IDS = {
    "RTX 3090": "NVIDIA GeForce RTX 3090",
    "RTX 4060 Ti": "NVIDIA GeForce RTX 4060 Ti",
    "RTX 4090": "NVIDIA GeForce RTX 4090",
    "RTX 5090": "NVIDIA GeForce RTX 5090",
    "RTX A6000": "NVIDIA RTX A6000",
    "L40S": "NVIDIA L40S",
    "A100 PCIE": "NVIDIA A100 80GB PCIe",
    "A100 SXM4": "NVIDIA A100-SXM4-80GB",
    "H100 SXM": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
    "B200": "NVIDIA B200",
}
_STATUS = {None: "PROVISIONING", "loading": "STARTING", "running": "RUNNING", "exited": "EXITED"}
_SERVE = "exec vllm serve "  # what vLLM's image does with its arguments
# What every template, and every pod, has where nothing else is said.
_CONTAINER: dict[str, Any] = {"args": "", "disk": 20, "mounts": {}, "env": {}, "registry": None}
_TEMPLATE = {
    **_CONTAINER,
    "ports": ["22/tcp"],
    "serverless": False,
    "public": False,
    "category": "NVIDIA",
    "startSsh": True,
    "startJupyter": False,
    "allowedCudaVersions": [],
}


class RunPodAPI:
    """Handlers over the same market that :class:`VastAPI` answers for: one market, two doors."""

    def __init__(self, market: Market) -> None:
        self.market = market

    def routes(self) -> list[web.RouteDef]:
        """Every route of the API, and the HTTPS proxy's stand-in."""
        return routes(
            {
                "POST /graphql": self.graphql,
                "GET /v2/account/ssh-keys": self.list_keys,
                "PUT /v2/account/ssh-keys": self.replace_keys,
                "GET /v2/catalog/gpus": self.gpus,
                "GET /v2/catalog/templates": self.public_templates,
                "GET /v2/templates": self.own_templates,
                "POST /v2/templates": self.add_template,
                "GET /v2/pods": self.list_pods,
                "POST /v2/pods": self.create,
                "GET /v2/pods/{id}": self.show,
                "DELETE /v2/pods/{id}": self.terminate,
                "POST /v2/pods/{id}/action": self.act,
                "GET /v2/pods/{id}/logs": self.logs,
                "* /proxy/{id}/{port}/{path:.*}": self.proxy,
            }
        )

    # -- account ---------------------------------------------------------------------------

    async def graphql(self, request: web.Request) -> web.Response:
        """The one question that REST v2 cannot answer: the balance."""
        if "clientBalance" not in str((await json_object(request)).get("query")):
            return reply({"errors": [{"message": "only clientBalance is answered"}]})
        self.market.meter()
        credit = {"clientBalance": round(self.market.books.credit, 6)}
        return reply({"data": {"myself": credit}})

    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys."""
        return reply({"keys": self.market.books.public_keys})

    async def replace_keys(self, request: web.Request) -> web.Response:
        """Replace the whole set of public keys."""
        keys = [public_key(key) for key in (await json_object(request))["keys"]]
        self.market.books.public_keys = keys
        self.market.save()
        return reply({"keys": keys})

    # -- catalogue and templates -----------------------------------------------------------

    async def gpus(self, request: web.Request) -> web.Response:
        """GPU types with prices and stock, from the market's offers."""
        count = int(request.query.get("count", 1))
        cuda = float(request.query.get("minCudaVersion", 0))
        cloud = request.query.get("cloud", "SECURE")
        types = [self._type(name, self._free(name, count, cloud, cuda)) for name in GPU_IDS]
        return reply({"gpus": types})

    def _type(self, name: str, free: list[dict[str, Any]]) -> dict[str, Any]:
        """One GPU type as the API shows it, with the offers of it that are free."""
        rows = [offer for offer in self.market.offers.values() if offer["gpu_name"] == name]
        verified = [offer["num_gpus"] for offer in rows if offer["verified"]]
        most = max(offer["num_gpus"] for offer in rows)
        places = [
            {"id": "REHEARSAL-1", "name": o["geolocation"], "availability": "LOW"} for o in free
        ]
        return {
            "id": GPU_IDS[name],
            "name": name,
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": round(rows[0]["gpu_ram"] / 1024),
            "secure": bool(verified),
            "community": True,
            "price": {"secure": self._price(name), "community": self._price(name)},
            "maxCount": {"secure": max(verified, default=0), "community": most},
            "availability": ("NONE", "LOW", "MEDIUM")[min(len(free), 2)],
            "dataCenters": places[:1],
        }

    def _price(self, name: str) -> float:
        """RunPod has one list price for a GPU type, $/h."""
        rows = (o for o in self.market.offers.values() if o["gpu_name"] == name)
        return min(o["dph_base"] / o["num_gpus"] for o in rows)

    def _free(self, name: str, count: int, cloud: str, cuda: float) -> list[dict[str, Any]]:
        """Offers of that kind which nobody has rented, the cheapest first."""
        found = [
            offer
            for offer in self.market.free_offers().values()
            if (offer["gpu_name"], offer["num_gpus"]) == (name, count)
            and offer["cuda_max_good"] >= cuda
            and (offer["verified"] or cloud == "COMMUNITY")
        ]
        return sorted(found, key=lambda offer: offer["dph_base"])

    async def public_templates(self, request: web.Request) -> web.Response:
        """RunPod's own templates: here one, vLLM."""
        return reply({"templates": [_course_template()]})

    async def own_templates(self, request: web.Request) -> web.Response:
        """The reader's own templates."""
        return reply({"templates": self._own_templates()})

    def _own_templates(self) -> list[dict[str, Any]]:
        return [row for row in self.market.books.templates if "hash_id" not in row]

    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        marks = {"id": secrets.token_hex(5)}
        row = self.market.add_template(_TEMPLATE | await json_object(request) | marks)
        return reply(row, status=201)

    # -- pods ------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Rent: checks what the real API checks."""
        body = await json_object(request)
        template_id = body.get("templateId")
        if template_id:
            body = self._with_template(template_id, body)
        gpu, name, image = body.get("gpu") or {}, body.get("name"), body.get("image")
        if not (gpu.get("id") and name and image):
            raise Refusal(422, "", "name, image and gpu.id are required")
        self.market.check_credit()
        kind = {gpu_id: known for known, gpu_id in GPU_IDS.items()}.get(gpu["id"], "")
        count, cuda = gpu.get("count", 1), float(gpu.get("minCudaVersion", 0))
        free = self._free(kind, count, body.get("cloud", "SECURE"), cuda)
        if not free or self.market.faults.take("offer_taken"):
            raise Refusal(400, "", "There are no instances currently available with that GPU.")
        disk_gb = float(body.get("disk", 20))
        rental = self.market.rent(
            free[0]["id"],
            keys=None if body.get("startSsh") else [],
            label=name,
            image=image,
            env={key: str(value) for key, value in (body.get("env") or {}).items()},
            onstart=_script(image, body.get("args") or ""),
            ports=body.get("ports") or [],
            disk_gb=disk_gb,
            gpu_usd_per_hour=self._price(kind) * count,
            disk_usd_per_hour=DISK_USD_PER_GB_MONTH * disk_gb / HOURS_PER_MONTH,
            template_hash=template_id,
        )
        return reply(self._pod(rental), status=201)

    def _with_template(self, template_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """The template's values, overruled by what the caller gave."""
        rows = [row for row in (_course_template(), *self._own_templates())]
        row = next((row for row in rows if row["id"] == template_id), None)
        if row is None:
            raise Refusal(404, "", f"no template {template_id}")
        base = {key: row[key] for key in ("image", "args", "disk", "ports")}
        return {**base, **body, "env": row["env"] | body.get("env", {})}

    async def list_pods(self, request: web.Request) -> web.Response:
        """Everything that is rented."""
        self.market.meter()
        return reply({"pods": [self._pod(rental) for rental in self.market.books.rentals]})

    async def show(self, request: web.Request) -> web.Response:
        """One pod."""
        self.market.meter()
        return reply(self._pod(self._rental(request)))

    async def terminate(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self._rental(request))
        return web.Response(status=204)

    async def act(self, request: web.Request) -> web.Response:
        """Stop or start, as far as the state allows."""
        rental = self._rental(request)
        action = (await json_object(request)).get("action")
        if action not in self._pod(rental)["actions"]:
            raise Refusal(409, "", f"{action} is not possible now")
        self.market.meter()
        if action == "stop":
            rental.disk_usd_per_hour = 0.0  # a stopped pod keeps, and pays, its volume only
            self.market.stop(rental)
        else:
            rental.disk_usd_per_hour = DISK_USD_PER_GB_MONTH * rental.disk_gb / HOURS_PER_MONTH
            self.market.run(rental)
        return reply(self._pod(rental))

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The container's log as server-sent events; the stream stays open, as the real one."""
        rental = self._rental(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        now = _time(rental.created)
        for line in self.market.log(rental, int(request.query.get("tail", 100))):
            event = json.dumps({"ts": now, "source": "container", "line": line})
            await response.write(f"id: {now}\ndata: {event}\n\n".encode())
        await asyncio.sleep(10)
        return response

    async def proxy(self, request: web.Request) -> web.StreamResponse:
        """What ``https://POD-PORT.proxy.runpod.net`` does: carry HTTP to the pod's port."""
        rental, port = self._rental(request), request.match_info["port"]
        socket = self.market.sockets / str(rental.id) / f"{port}.sock"
        if f"{port}/http" not in rental.ports or not socket.exists():
            return web.Response(status=502, text="Bad Gateway")
        return await forward(request, socket, request.match_info["path"])

    def _rental(self, request: web.Request) -> Rental:
        return self.market.find(request.match_info["id"])

    def _pod(self, rental: Rental) -> dict[str, Any]:
        """One machine as the API shows it."""
        offer, port = self.market.offers[rental.offer_id], rental.ssh_port
        status = _STATUS.get(rental.status, "ERROR")
        running, cost = status == "RUNNING", rental.gpu_usd_per_hour + rental.disk_usd_per_hour
        direct = {"host": "127.0.0.1", "port": port, "username": "root"}
        direct["command"] = f"ssh root@127.0.0.1 -p {port}"
        mapped = [{"private": 22, "public": port, "type": "tcp", "ip": "127.0.0.1"}]
        return {
            **_CONTAINER,
            "id": str(rental.id),
            "name": rental.label or "",
            "image": rental.image,
            "args": rental.onstart.removeprefix(_SERVE),
            "disk": round(rental.disk_gb),
            "ports": rental.ports,
            "env": rental.env,
            "status": status,
            "actions": ["stop"] if running else ["start"] if status in ("EXITED", "ERROR") else [],
            "gpu": {"id": GPU_IDS[offer["gpu_name"]], "count": offer["num_gpus"]},
            "cloud": "SECURE" if offer["verified"] else "COMMUNITY",
            "dataCenterId": "REHEARSAL-1",
            "cudaVersion": str(offer["cuda_max_good"]),
            "ssh": {"proxy": None, "direct": direct if running else None},
            "template": rental.template_hash,
            "cost": 0.0 if status == "EXITED" else cost,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {"uptime": 0, "ports": mapped} if running else None,
            "createdAt": _time(rental.created),
            "startedAt": _time(rental.started) if running else None,
        }


def _script(image: str, args: str) -> str:
    """What boots: an image's own entrypoint with arguments, or the command of an image without."""
    serves = image.partition(":")[0] == VLLM_IMAGE.partition(":")[0]
    return (_SERVE if serves else "") + shlex.join(shlex.split(args))


def _course_template() -> dict[str, Any]:
    spec = ServingSpec()
    args = shlex.join(["bash", "-c", spec.command()])
    row = {"id": "rehearsal-vllm", "name": "vLLM", "image": SSH_IMAGE, "args": args}
    return _TEMPLATE | row | {"disk": spec.disk_gb}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
