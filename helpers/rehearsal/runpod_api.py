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
from helpers.rehearsal.web_api import FIXED, Refusal, forward, json_object, reply, route
from helpers.serve.spec import DISK_USD_PER_GB_MONTH, SSH_IMAGE, VLLM_IMAGE, ServingSpec
from helpers.settings import ASSETS

_PUBLISHED = json.loads((ASSETS / "rehearsal_requests.json").read_text())
_STATUS = {None: "PROVISIONING", "loading": "STARTING", "running": "RUNNING", "exited": "EXITED"}
_SERVE = "exec vllm serve "  # what vLLM's image does with its arguments
_ARGS = shlex.join(["bash", "-c", ServingSpec().command()])
_VLLM = FIXED["runpod_template"] | {"id": "rehearsal-vllm", "disk": ServingSpec().disk_gb}
_VLLM |= {"name": "vLLM", "image": SSH_IMAGE, "args": _ARGS}


class RunPodAPI:
    """Handlers over the same market that :class:`VastAPI` answers for: one market, two doors."""

    def __init__(self, market: Market) -> None:
        self.market = market

    # -- account ---------------------------------------------------------------------------

    @route("POST /graphql")
    async def graphql(self, request: web.Request) -> web.Response:
        """The one question that REST v2 cannot answer: the balance."""
        if "clientBalance" not in (await json_object(request))["query"]:
            told = "the rehearsal answers myself { clientBalance }, and offers no more of GraphQL"
            return reply({"errors": [{"message": told}]})
        return reply({"data": {"myself": {"clientBalance": round(self.market.books.credit, 6)}}})

    @route("GET /v2/account/ssh-keys")
    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys."""
        return reply({"keys": self.market.books.public_keys})

    @route("PUT /v2/account/ssh-keys")
    async def replace_keys(self, request: web.Request) -> web.Response:
        """Replace the whole set of public keys."""
        body = _check("UpdateSshKeysRequest", await json_object(request))
        self.market.books.public_keys = body["keys"]
        self.market.save()
        return await self.list_keys(request)

    # -- catalogue and templates -----------------------------------------------------------

    @route("GET /v2/catalog/gpus")
    async def gpus(self, request: web.Request) -> web.Response:
        """GPU types with prices and stock, from the market's offers."""
        query = _check("GpuQuery", dict(request.query))
        kinds = {offer["runpod_id"]: None for offer in self.market.offers.values()}
        return reply({"gpus": [self._type({**query, "id": kind}) for kind in kinds]})

    def _type(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """One GPU type as the API shows it to who looks for so many of it."""
        gpu_id, free = wanted["id"], self._free(wanted)
        rows = [offer for offer in self.market.offers.values() if offer["runpod_id"] == gpu_id]
        secure = max((offer["num_gpus"] for offer in rows if offer["verified"]), default=0)
        price = min(offer["dph_base"] / offer["num_gpus"] for offer in rows)  # one for all of them
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

    def _free(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Offers which nobody has rented, of the wanted id, count and so on, the cheapest first."""
        kind = (wanted["id"], int(wanted.get("count", 1)))
        found = [
            offer
            for offer in self.market.free_offers().values()
            if (offer["runpod_id"], offer["num_gpus"]) == kind
            and offer["cuda_max_good"] >= float(wanted.get("minCudaVersion") or 0)
            and (offer["verified"] or wanted.get("cloud") == "COMMUNITY")
        ]
        return sorted(found, key=lambda offer: offer["dph_base"])

    @route("GET /v2/catalog/templates", "GET /v2/templates")
    async def templates(self, request: web.Request) -> web.Response:
        """The reader's own templates, or RunPod's: here one, vLLM."""
        _check("TemplateQuery", dict(request.query))
        theirs, own = [_VLLM], self.market.books.runpod_templates
        return reply({"templates": theirs if "/catalog/" in request.path else own})

    @route("POST /v2/templates")
    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        body = _check("CreateTemplateRequest", await json_object(request))
        row = FIXED["runpod_template"] | body | {"id": secrets.token_hex(5)}
        self.market.books.runpod_templates.append(row)
        self.market.save()
        return reply(row, status=201)

    # -- pods ------------------------------------------------------------------------------

    @route("POST /v2/pods")
    async def create(self, request: web.Request) -> web.Response:
        """Rent: checks what the real API checks."""
        body = _check("OfferedHere", await json_object(request))
        if template_id := body.get("templateId"):
            rows = {row["id"]: row for row in (_VLLM, *self.market.books.runpod_templates)}
            if template_id not in rows:
                raise Refusal(404, "", f"there is no template {template_id}")
            row = rows[template_id]  # overruled by what the caller gave
            body = row | body | {"env": row["env"] | body.get("env", {})}
        # An image's own entrypoint with arguments, or the command of an image without one.
        serves = body["image"].partition(":")[0] == VLLM_IMAGE.partition(":")[0]
        script = _SERVE * serves + shlex.join(shlex.split(body.get("args") or ""))
        contract = Contract.model_validate({"disk": 20, **body, "onstart": script})
        free = self._free({"cloud": body.get("cloud"), **body["gpu"]})
        if not free or self.market.faults.take("offer_taken"):
            raise Refusal(400, "", "There are no instances currently available with that GPU.")
        price = self._type(body["gpu"])["price"]["secure"] * free[0]["num_gpus"]
        rental = self.market.rent(free[0]["id"], contract, price, DISK_USD_PER_GB_MONTH)
        return reply(self._pod(rental), status=201)

    @route("GET /v2/pods")
    async def list_pods(self, request: web.Request) -> web.Response:
        """Everything that is rented."""
        return reply({"pods": [self._pod(rental) for rental in self.market.books.rentals.values()]})

    @route("GET /v2/pods/{id}")
    async def show(self, request: web.Request) -> web.Response:
        """One pod."""
        return reply(self._pod(self.market.find(request.match_info["id"])))

    @route("DELETE /v2/pods/{id}")
    async def terminate(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self.market.find(request.match_info["id"]))
        return web.Response(status=204)

    @route("POST /v2/pods/{id}/action")
    async def act(self, request: web.Request) -> web.Response:
        """Stop, start, restart or terminate, as far as the state allows."""
        rental = self.market.find(request.match_info["id"])
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

    @route("GET /v2/pods/{id}/logs")
    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The container's log as server-sent events; the stream stays open, as the real one."""
        rental = self.market.find(request.match_info["id"])
        query = _check("LogQuery", dict(request.query))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        now = _time(rental.created)
        for line in self.market.log(rental, int(query.get("tail", 100))):
            event = json.dumps({"ts": now, "source": "container", "line": line})
            await response.write(f"id: {now}\ndata: {event}\n\n".encode())
        await asyncio.sleep(10)
        return response

    @route("* /proxy/{id}/{port}/{path:.*}")
    async def proxy(self, request: web.Request) -> web.StreamResponse:
        """What ``https://POD-PORT.proxy.runpod.net`` does: carry HTTP to the pod's port."""
        rental, port = self.market.find(request.match_info["id"]), request.match_info["port"]
        socket = self.market.sockets / str(rental.id) / f"{port}.sock"
        if f"{port}/http" not in rental.ports or not socket.exists():
            return web.Response(status=502, text="Bad Gateway")
        return await forward(request, socket, request.match_info["path"], await request.read())

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


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
