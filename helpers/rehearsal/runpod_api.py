"""The part of RunPod's REST API v2 that the course calls, answered by the rehearsal's market."""

import asyncio
import json
import secrets
import shlex
from datetime import UTC, datetime
from typing import Any

import jsonschema
from aiohttp import web

from helpers.rehearsal.market import HOURS_PER_MONTH, Contract, Market, Rental
from helpers.rehearsal.web_api import FIXED, Refusal, forward, json_object, reply, routes
from helpers.serve.spec import DISK_USD_PER_GB_MONTH, SSH_IMAGE, VLLM_IMAGE, ServingSpec
from helpers.settings import ASSETS

_PUBLISHED = json.loads((ASSETS / "rehearsal_requests.json").read_text())
_STATUS = {None: "PROVISIONING", "loading": "STARTING", "running": "RUNNING", "exited": "EXITED"}
_SERVE = "exec vllm serve "  # what vLLM's image does with its arguments


class RunPodAPI:
    """Handlers over the same market that :class:`VastAPI` answers for: one market, two doors."""

    def __init__(self, market: Market) -> None:
        self.market = market

    def routes(self) -> list[web.RouteDef]:
        """Every route of the API, and the HTTPS proxy's stand-in."""
        return routes(
            ("POST /graphql", self.graphql),
            ("GET /v2/account/ssh-keys", self.list_keys),
            ("PUT /v2/account/ssh-keys", self.replace_keys),
            ("GET /v2/catalog/gpus", self.gpus),
            ("GET /v2/catalog/templates", self.templates),
            ("GET /v2/templates", self.templates),
            ("POST /v2/templates", self.add_template),
            ("GET /v2/pods", self.list_pods),
            ("POST /v2/pods", self.create),
            ("GET /v2/pods/{id}", self.show),
            ("DELETE /v2/pods/{id}", self.terminate),
            ("POST /v2/pods/{id}/action", self.act),
            ("GET /v2/pods/{id}/logs", self.logs),
            ("* /proxy/{id}/{port}/{path:.*}", self.proxy),
        )

    # -- account ---------------------------------------------------------------------------

    async def graphql(self, request: web.Request) -> web.Response:
        """The one question that REST v2 cannot answer: the balance."""
        if "clientBalance" not in (await json_object(request))["query"]:
            told = "the rehearsal answers myself { clientBalance }, and offers no more of GraphQL"
            return reply({"errors": [{"message": told}]})
        credit = {"clientBalance": round(self.market.books.credit, 6)}
        return reply({"data": {"myself": credit}})

    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys."""
        return reply({"keys": self.market.books.public_keys})

    async def replace_keys(self, request: web.Request) -> web.Response:
        """Replace the whole set of public keys."""
        body = _check("UpdateSshKeysRequest", await json_object(request))
        self.market.books.public_keys = body["keys"]
        self.market.save()
        return await self.list_keys(request)

    # -- catalogue and templates -----------------------------------------------------------

    async def gpus(self, request: web.Request) -> web.Response:
        """GPU types with prices and stock, from the market's offers."""
        query = _check("GpuQuery", dict(request.query))
        wanted = (int(query.get("count", 1)), query.get("cloud"), query.get("minCudaVersion"))
        kinds = {offer["runpod_id"]: None for offer in self.market.offers.values()}
        return reply({"gpus": [self._type(kind, self._free(kind, *wanted)) for kind in kinds]})

    def _type(self, gpu_id: str, free: list[dict[str, Any]]) -> dict[str, Any]:
        """One GPU type as the API shows it, with the offers of it that are free."""
        rows = [offer for offer in self.market.offers.values() if offer["runpod_id"] == gpu_id]
        secure = max((offer["num_gpus"] for offer in rows if offer["verified"]), default=0)
        price = self._price(gpu_id)
        return {
            **FIXED["runpod_gpu"],
            "id": gpu_id,
            "name": rows[0]["gpu_name"],
            "memory": round(rows[0]["gpu_ram"] / 1024),
            "secure": secure > 0,
            "price": {"secure": price, "community": price},
            "maxCount": {"secure": secure, "community": max(o["num_gpus"] for o in rows)},
            "availability": ("NONE", "LOW", "MEDIUM")[min(len(free), 2)],
        }

    def _price(self, gpu_id: str) -> float:
        """RunPod has one list price for a GPU type, $/h."""
        rows = [offer for offer in self.market.offers.values() if offer["runpod_id"] == gpu_id]
        return min(offer["dph_base"] / offer["num_gpus"] for offer in rows)

    def _free(
        self, gpu_id: str, count: int, cloud: str | None, cuda: str | None
    ) -> list[dict[str, Any]]:
        """Offers of that kind which nobody has rented, the cheapest first."""
        found = [
            offer
            for offer in self.market.free_offers().values()
            if (offer["runpod_id"], offer["num_gpus"]) == (gpu_id, count)
            and offer["cuda_max_good"] >= float(cuda or 0)
            and (offer["verified"] or cloud == "COMMUNITY")
        ]
        return sorted(found, key=lambda offer: offer["dph_base"])

    async def templates(self, request: web.Request) -> web.Response:
        """The reader's own templates, or RunPod's: here one, vLLM."""
        _check("TemplateQuery", dict(request.query))
        theirs, own = [_course_template()], self.market.books.runpod_templates
        return reply({"templates": theirs if "/catalog/" in request.path else own})

    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        body = _check("CreateTemplateRequest", await json_object(request))
        row = FIXED["runpod_template"] | body | {"id": secrets.token_hex(5)}
        self.market.books.runpod_templates.append(row)
        self.market.save()
        return reply(row, status=201)

    # -- pods ------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Rent: checks what the real API checks."""
        body = _check("OfferedHere", await json_object(request))
        if template_id := body.get("templateId"):
            body = self._with_template(template_id, body)
        contract = Contract.model_validate(
            {"disk": 20, **body, "onstart": _script(body["image"], body.get("args") or "")}
        )
        gpu, cloud = body["gpu"], body.get("cloud", "SECURE")
        free = self._free(gpu["id"], gpu.get("count", 1), cloud, gpu.get("minCudaVersion"))
        if not free or self.market.faults.take("offer_taken"):
            raise Refusal(400, "", "There are no instances currently available with that GPU.")
        price = self._price(gpu["id"]) * free[0]["num_gpus"]
        rental = self.market.rent(free[0]["id"], contract, price, DISK_USD_PER_GB_MONTH)
        return reply(self._pod(rental), status=201)

    def _with_template(self, template_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """The template's values, overruled by what the caller gave."""
        rows = {row["id"]: row for row in (_course_template(), *self.market.books.runpod_templates)}
        if template_id not in rows:
            raise Refusal(404, "", f"there is no template {template_id}")
        row = rows[template_id]
        base = {key: row[key] for key in ("image", "args", "disk", "ports")}
        return {**base, **body, "env": row["env"] | body.get("env", {})}

    async def list_pods(self, request: web.Request) -> web.Response:
        """Everything that is rented."""
        return reply({"pods": [self._pod(rental) for rental in self.market.books.rentals.values()]})

    async def show(self, request: web.Request) -> web.Response:
        """One pod."""
        return reply(self._pod(self._rental(request)))

    async def terminate(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self._rental(request))
        return web.Response(status=204)

    async def act(self, request: web.Request) -> web.Response:
        """Stop, start, restart or terminate, as far as the state allows."""
        rental = self._rental(request)
        action = _check("PodActionRequest", await json_object(request))["action"]
        if action not in self._pod(rental)["actions"]:
            raise Refusal(409, "", f"{action} is not possible now")
        if action == "terminate":
            return await self.terminate(request)
        if action == "stop":
            rental.disk_usd_per_hour = 0.0  # a stopped pod keeps, and pays, its volume only
            self.market.stop(rental)
        else:
            rental.disk_usd_per_hour = DISK_USD_PER_GB_MONTH * rental.disk_gb / HOURS_PER_MONTH
            self.market.reboot(rental, anew=True)
        return reply(self._pod(rental))

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The container's log as server-sent events; the stream stays open, as the real one."""
        rental, query = self._rental(request), _check("LogQuery", dict(request.query))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        now = _time(rental.created)
        for line in self.market.log(rental, int(query.get("tail", 100))):
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
        return {
            **FIXED["runpod_pod"],
            "id": str(rental.id),
            "name": rental.label or "",
            "image": rental.image,
            "args": rental.onstart.removeprefix(_SERVE),
            "disk": round(rental.disk_gb),
            "ports": rental.ports,
            "env": rental.env,
            "status": status,
            "actions": FIXED["runpod_actions"][status],
            "gpu": {"id": offer["runpod_id"], "count": offer["num_gpus"]},
            "vcpuCount": offer["cpu_cores_effective"],
            "cloud": "SECURE" if offer["verified"] else "COMMUNITY",
            "cudaVersion": str(offer["cuda_max_good"]),
            "ssh": {"proxy": None, "direct": direct if running else None},
            "cost": 0.0 if status == "EXITED" else cost,
            "runtime": {} if running else None,
            "createdAt": _time(rental.created),
            "startedAt": _time(rental.started) if running else None,
        }


def _check(schema: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return a value that fits a schema of the API's description.

    Raises:
        Refusal: with what does not fit; what was sent is not repeated, it may hold keys.
    """
    rules = {**_PUBLISHED, "$ref": f"#/components/schemas/{schema}"}
    if wrong := list(jsonschema.Draft202012Validator(rules).iter_errors(value)):
        error = max(wrong, key=lambda error: len(error.path))  # the others may follow from it
        what = error.message.replace(repr(error.instance), "it")
        raise Refusal(422, "", f"{error.json_path}: {what}")
    return value


def _script(image: str, args: str) -> str:
    """What boots: an image's own entrypoint with arguments, or the command of an image without."""
    serves = image.partition(":")[0] == VLLM_IMAGE.partition(":")[0]
    return (_SERVE if serves else "") + shlex.join(shlex.split(args))


def _course_template() -> dict[str, Any]:
    spec = ServingSpec()
    args = shlex.join(["bash", "-c", spec.command()])
    row = {"id": "rehearsal-vllm", "name": "vLLM", "image": SSH_IMAGE, "args": args}
    return FIXED["runpod_template"] | row | {"disk": spec.disk_gb}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
