"""The part of RunPod's REST API v2 that the course calls, answered by the rehearsal's market."""

import asyncio
import json
import secrets
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime

from aiohttp import web

from helpers.rehearsal.market import HOURS_PER_MONTH, Market, Rental, is_public_key
from helpers.rehearsal.proxy import forward
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
_ACTIONS = {
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}


def problem(status: int, title: str, detail: str, **more) -> web.Response:
    """An error in RunPod's form (RFC 9457)."""
    body = json.dumps({"title": title, "status": status, "detail": detail, **more})
    return web.Response(text=body, status=status, content_type="application/problem+json")


class RunPodAPI:
    """Handlers over the same market that :class:`VastAPI` answers for: one market, two doors."""

    def __init__(self, market: Market) -> None:
        self.market = market

    def routes(self) -> list[web.RouteDef]:
        """Every route of the API, and the HTTPS proxy's stand-in."""
        return [
            web.post("/graphql", self.graphql),
            web.get("/v2/account/ssh-keys", self.list_keys),
            web.put("/v2/account/ssh-keys", self.replace_keys),
            web.get("/v2/catalog/gpus", self.gpus),
            web.get("/v2/catalog/templates", self.public_templates),
            web.get("/v2/templates", self.own_templates),
            web.post("/v2/templates", self.add_template),
            web.get("/v2/pods", self.list_pods),
            web.post("/v2/pods", self.create),
            web.get("/v2/pods/{id}", self.show),
            web.delete("/v2/pods/{id}", self.terminate),
            web.post("/v2/pods/{id}/action", self.act),
            web.get("/v2/pods/{id}/logs", self.logs),
            web.route("*", "/proxy/{id}/{port}/{path:.*}", self.proxy),
        ]

    # -- account ---------------------------------------------------------------------------

    async def graphql(self, request: web.Request) -> web.Response:
        """The one question that REST v2 cannot answer: the balance."""
        if "clientBalance" not in str((await _body(request)).get("query")):
            return web.json_response({"errors": [{"message": "only clientBalance is answered"}]})
        self.market.meter()
        credit = {"clientBalance": round(self.market.credit, 6)}
        return web.json_response({"data": {"myself": credit}})

    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys."""
        return web.json_response({"keys": list(self.market.ssh_keys.values())})

    async def replace_keys(self, request: web.Request) -> web.Response:
        """Replace the whole set of public keys."""
        keys = (await _body(request)).get("keys")
        if not isinstance(keys, list) or not all(map(is_public_key, keys)):
            return problem(422, "Unprocessable Entity", "keys must be OpenSSH public keys")
        old = {key: number for number, key in self.market.ssh_keys.items()}
        self.market.ssh_keys = {old.get(key) or self.market.new_id(): key for key in keys}
        self.market.save()
        return web.json_response({"keys": keys})

    # -- catalogue and templates -----------------------------------------------------------

    async def gpus(self, request: web.Request) -> web.Response:
        """GPU types with prices and stock, from the market's offers."""
        query = request.query
        if ("AVAILABILITY" in query.get("include", "")) != bool(query.get("product")):
            return problem(400, "Bad Request", "include=AVAILABILITY and product go together")
        count, cuda = int(query.get("count", 1)), float(query.get("minCudaVersion", 0))
        types = []
        for name, gpu_id in GPU_IDS.items():
            rows = [o for o in self.market.offers.values() if o["gpu_name"] == name]
            secure = [o for o in rows if o["verified"]]
            free = self._free(name, count, query.get("cloud", "SECURE"), cuda)
            largest = [max((o["num_gpus"] for o in each), default=0) for each in (secure, rows)]
            row = {
                "id": gpu_id,
                "name": name,
                "pool": None,
                "manufacturer": "NVIDIA",
                "memory": round(rows[0]["gpu_ram"] / 1024),
                "secure": bool(secure),
                "community": True,
                "price": {"secure": self._price(name), "community": self._price(name)},
                "maxCount": dict(zip(("secure", "community"), largest, strict=True)),
            }
            if query.get("product"):
                row["availability"] = ("NONE", "LOW", "MEDIUM")[min(len(free), 2)]
                row["dataCenters"] = [
                    {"id": "REHEARSAL-1", "name": o["geolocation"], "availability": "LOW"}
                    for o in free[:1]
                ]
            types.append(row)
        return web.json_response({"gpus": types})

    def _price(self, name: str) -> float:
        """RunPod has one list price for a GPU type, $/h."""
        rows = (o for o in self.market.offers.values() if o["gpu_name"] == name)
        return min(o["dph_base"] / o["num_gpus"] for o in rows)

    def _free(self, name: str, count: int, cloud: str, cuda: float) -> list[dict]:
        """Offers of that kind which nobody has rented, the cheapest first."""
        found = [
            offer
            for offer in self.market.free_offers()
            if (offer["gpu_name"], offer["num_gpus"]) == (name, count)
            and offer["cuda_max_good"] >= cuda
            and (offer["verified"] or cloud == "COMMUNITY")
        ]
        return sorted(found, key=lambda offer: offer["dph_base"])

    async def public_templates(self, request: web.Request) -> web.Response:
        """RunPod's own templates: here one, vLLM."""
        spec = ServingSpec()
        row = {"id": "rehearsal-vllm", "name": "vLLM", "image": SSH_IMAGE, "disk": spec.disk_gb}
        row["args"] = shlex.join(["bash", "-c", spec.command()])
        return web.json_response({"templates": [_template(row)]})

    async def own_templates(self, request: web.Request) -> web.Response:
        """The reader's own templates."""
        ours = [t for t in self.market.templates if "hash_id" not in t]
        return web.json_response({"templates": ours})

    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        body = await _body(request)
        if not body.get("name") or not body.get("image"):
            return problem(422, "Unprocessable Entity", "a template needs a name and an image")
        template = _template({**body, "id": secrets.token_hex(5)})
        self.market.templates.append(template)
        self.market.save()
        return web.json_response(template, status=201)

    # -- pods ------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Rent: checks what the real API checks."""
        body = await _body(request)
        if template_id := body.get("templateId"):
            public = json.loads((await self.public_templates(request)).text)["templates"]
            rows = {t["id"]: t for t in [*public, *self.market.templates]}
            if template_id not in rows:
                return problem(404, "Not Found", f"no template {template_id}")
            base = {k: rows[template_id][k] for k in ("image", "args", "disk", "ports", "env")}
            body = {**base, **body, "env": {**base["env"], **body.get("env", {})}}
        gpu = body.get("gpu") or {}
        given = {"name": body.get("name"), "image": body.get("image"), "gpu.id": gpu.get("id")}
        if errors := [f"{name} is required" for name, value in given.items() if not value]:
            return problem(422, "Unprocessable Entity", "the body does not match", errors=errors)
        self.market.meter()
        if self.market.credit <= 0:
            return problem(402, "Payment Required", "Your balance is too low: add funds.")
        names = {gpu_id: name for name, gpu_id in GPU_IDS.items()}
        cuda, cloud = float(gpu.get("minCudaVersion", 0)), body.get("cloud", "SECURE")
        name, count = names.get(gpu["id"], ""), gpu.get("count", 1)
        free = self._free(name, count, cloud, cuda)
        if not free:
            detail = "There are no instances currently available with that GPU."
            return problem(400, "Bad Request", detail)
        rental = self.market.rent(
            free[0]["id"],
            label=body["name"],
            image=body["image"],
            env={str(k): str(v) for k, v in (body.get("env") or {}).items()},
            runtype=" ".join(body.get("ports") or []),
            disk_gb=float(body.get("disk", 20)),
            gpu_usd_per_hour=self._price(name) * count,
            template_hash=template_id,
            **_process(body),
        )
        if not body.get("startSsh"):
            self.market.write_keys(rental.id, [])
        rental.disk_usd_per_hour = _disk_usd_per_hour(rental)
        return web.json_response(self._pod(rental), status=201)

    async def list_pods(self, request: web.Request) -> web.Response:
        """Everything that is rented."""
        self.market.meter()
        return web.json_response({"pods": [self._pod(r) for r in self.market.rentals.values()]})

    async def show(self, request: web.Request) -> web.Response:
        """One pod."""
        self.market.meter()
        return web.json_response(self._pod(self._rental(request)))

    async def terminate(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self._rental(request).id)
        return web.Response(status=204)

    async def act(self, request: web.Request) -> web.Response:
        """Stop, start, restart or terminate, as far as the state allows."""
        rental = self._rental(request)
        action = (await _body(request)).get("action")
        if action not in self._pod(rental)["actions"]:
            return problem(409, "Conflict", f"{action} is not possible now")
        self.market.meter()
        if action == "terminate":
            return await self.terminate(request)
        if action in ("stop", "restart"):
            self.market.stop(rental.id)
            rental.disk_usd_per_hour = 0.0  # a stopped pod keeps, and pays, its volume only
        if action in ("start", "restart"):
            rental.disk_usd_per_hour = _disk_usd_per_hour(rental)
            self.market.run(rental)
        self.market.save()
        return web.json_response(self._pod(rental))

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The container's log as server-sent events; the stream stays open, as the real one."""
        rental = self._rental(request)
        file = self.market.folder(rental.id) / "container.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        now = _time(rental.created)
        for line in text.splitlines()[-int(request.query.get("tail", 100)) :]:
            event = json.dumps({"ts": now, "source": "container", "line": line})
            await response.write(f"id: {now}\ndata: {event}\n\n".encode())
        await asyncio.sleep(10)
        return response

    async def proxy(self, request: web.Request) -> web.StreamResponse:
        """What ``https://POD-PORT.proxy.runpod.net`` does: carry HTTP to the pod's port."""
        rental = self._rental(request)
        port = request.match_info["port"]
        socket = self.market.sockets / str(rental.id) / f"{port}.sock"
        if f"{port}/http" not in rental.runtype.split() or not socket.exists():
            return web.Response(status=502, text="Bad Gateway")
        return await forward(request, str(socket), request.match_info["path"])

    def _rental(self, request: web.Request) -> Rental:
        number = request.match_info["id"]
        rental = self.market.rentals.get(int(number) if number.isdecimal() else -1)
        if rental is None:
            text = problem(404, "Not Found", f"no pod {number}").text
            raise web.HTTPNotFound(text=text, content_type="application/problem+json")
        return rental

    def _pod(self, rental: Rental) -> dict:
        """One machine as the API shows it."""
        offer = self.market.offers[rental.offer_id]
        status = _STATUS.get(rental.status, "ERROR")
        running = status == "RUNNING"
        direct = None
        if running and rental.ssh_port:
            command = f"ssh root@127.0.0.1 -p {rental.ssh_port}"
            direct = {"host": "127.0.0.1", "port": rental.ssh_port, "username": "root"}
            direct["command"] = command
        ports = [{"private": 22, "public": rental.ssh_port, "type": "tcp", "ip": "127.0.0.1"}]
        cost = rental.gpu_usd_per_hour + rental.disk_usd_per_hour
        return {
            "id": str(rental.id),
            "name": rental.label or "",
            "image": rental.image,
            "args": rental.onstart if rental.args is None else shlex.join(rental.args),
            "disk": round(rental.disk_gb),
            "ports": rental.runtype.split(),
            "env": rental.env,
            "registry": None,
            "status": status,
            "actions": _ACTIONS.get(status, ["stop", "terminate"]),
            "mounts": {},
            "gpu": {"id": GPU_IDS[offer["gpu_name"]], "count": offer["num_gpus"]},
            "cloud": "SECURE" if offer["verified"] else "COMMUNITY",
            "dataCenterId": "REHEARSAL-1",
            "cudaVersion": str(offer["cuda_max_good"]),
            "ssh": {"proxy": None, "direct": direct},
            "template": None,
            "cost": 0.0 if status == "EXITED" else cost,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {"uptime": 0, "ports": ports} if running else None,
            "createdAt": _time(rental.created),
            "startedAt": _time(rental.started) if running else None,
        }


def _disk_usd_per_hour(rental: Rental) -> float:
    return DISK_USD_PER_GB_MONTH * rental.disk_gb / HOURS_PER_MONTH


def _process(body: Mapping) -> dict:
    """What boots: an image's own entrypoint with arguments, or the command of an image without."""
    words = shlex.split(body.get("args") or "")
    if body["image"].partition(":")[0] == VLLM_IMAGE.partition(":")[0]:
        return {"args": words, "onstart": None}
    return {"args": None, "onstart": shlex.join(words)}


def _template(row: Mapping) -> dict:
    defaults = {
        "args": "", "disk": 20, "mounts": {}, "ports": ["22/tcp"], "env": {}, "registry": None,
        "serverless": False, "public": False, "category": "NVIDIA", "startSsh": True,
        "startJupyter": False, "allowedCudaVersions": [],
    }  # fmt: skip
    return {**defaults, **row}


async def _body(request: web.Request) -> dict:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        text = problem(422, "Unprocessable Entity", "the body is no JSON object").text
        raise web.HTTPUnprocessableEntity(text=text, content_type="application/problem+json")
    return body


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
