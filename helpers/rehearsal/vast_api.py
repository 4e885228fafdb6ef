"""The part of Vast.ai's REST API that its SDK calls, answered by the rehearsal's market."""

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping

from aiohttp import web

from helpers.rehearsal.market import Market, Rental, is_public_key
from helpers.rehearsal.vast_rows import course_template, instance_row, matches, offer_row

_SEARCH_OPTIONS = {"order", "type", "limit", "allocated_storage", "disable_bundling"}
_MIN_DISK_GB, _MAX_LABEL = 8, 256


def reply(data, status: int = 200) -> web.Response:
    """JSON under the bare content type: the ``vastai`` program refuses one with a charset."""
    return web.Response(
        body=json.dumps(data).encode(), status=status, content_type="application/json"
    )


def refusal(status: int, error: str, msg: str, **more) -> web.Response:
    """An error in the shape Vast.ai documents."""
    return reply({"success": False, "error": error, "msg": msg, **more}, status=status)


class VastAPI:
    """Handlers over one market.

    Args:
        market: the market that is rented from.
    """

    def __init__(self, market: Market) -> None:
        self.market = market
        self._logs: dict[str, str] = {}

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash that the SDK sends."""
        table = [
            ("GET", "/api/v0/users/current", self.user),
            ("GET", "/api/v0/ssh", self.list_keys),
            ("POST", "/api/v0/ssh", self.add_key),
            ("DELETE", "/api/v0/ssh/{key}", self.remove_key),
            ("POST", "/api/v0/bundles", self.search),
            ("GET", "/api/v0/template", self.list_templates),
            ("POST", "/api/v0/template", self.add_template),
            ("PUT", "/api/v0/asks/{offer}", self.create),
            ("GET", "/api/v1/instances", self.list_instances),
            ("GET", "/api/v0/instances/{id}", self.show),
            ("PUT", "/api/v0/instances/{id}", self.manage),
            ("DELETE", "/api/v0/instances/{id}", self.destroy),
            ("PUT", "/api/v0/instances/request_logs/{id}", self.request_logs),
            ("POST", "/api/v0/instances/{id}/ssh", self.attach_key),
            ("GET", "/api/v0/charges", self.charges),
            ("GET", "/logs/{name}", self.read_logs),
        ]
        return [
            web.route(method, path + slash, handler)
            for method, path, handler in table
            for slash in ("", "/")
        ]

    # -- account ---------------------------------------------------------------------------

    async def user(self, request: web.Request) -> web.Response:
        """Who is asking, and what credit is left."""
        self.market.meter()
        return reply(
            {
                "id": 1,
                "key_id": 1,
                "email": "rehearsal@localhost",
                "username": "rehearsal",
                "credit": round(self.market.credit, 6),
                "balance": 0.0,
                "ssh_key": next(iter(self.market.ssh_keys.values()), ""),
                "sid": "rehearsal",
                "rehearsal": True,
            }
        )

    async def charges(self, request: web.Request) -> web.Response:
        """What ended rentals have cost."""
        return reply(
            {"results": self.market.charges, "count": len(self.market.charges), "next_token": None}
        )

    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys: a bare list."""
        keys = self.market.ssh_keys.items()
        return reply([{"id": i, "user_id": 1, "public_key": key} for i, key in keys])

    async def add_key(self, request: web.Request) -> web.Response:
        """Register a public key for instances created from now on."""
        key = str((await _body(request)).get("ssh_key") or "").strip()
        if not is_public_key(key):
            return refusal(400, "invalid_args", "ssh_key is not an OpenSSH public key")
        number = next((i for i, k in self.market.ssh_keys.items() if k == key), None)
        if number is None:
            number = self.market.new_id()
            self.market.ssh_keys[number] = key
            self.market.save()
        row = {"id": number, "user_id": 1, "public_key": key, "created_at": time.time()}
        return reply({"success": True, "key": row})

    async def remove_key(self, request: web.Request) -> web.Response:
        """Forget a public key; machines that run keep theirs."""
        if not self.market.ssh_keys.pop(_int(request.match_info["key"]), None):
            return refusal(404, "not_found", "no such ssh key")
        self.market.save()
        return reply({"success": True})

    # -- offers and templates --------------------------------------------------------------

    async def search(self, request: web.Request) -> web.Response:
        """Offers that match every filter, ordered, cut to ``limit``."""
        query = await _body(request)
        bid = query.get("type") == "bid"
        disk_gb = float(query.get("allocated_storage") or 5)
        offers = [offer_row(offer, disk_gb, bid) for offer in self.market.free_offers()]
        try:
            found = [o for o in offers if matches(o, query, skip=_SEARCH_OPTIONS)]
            for column, direction in reversed(query.get("order") or []):
                found.sort(key=lambda o: o.get(column, 0), reverse=direction == "desc")
        except (TypeError, ValueError, AttributeError) as error:
            return refusal(400, "invalid_args", f"search filter: {error}")
        return reply({"offers": found[: int(query.get("limit") or 64)]})

    async def list_templates(self, request: web.Request) -> web.Response:
        """Templates that match ``select_filters``."""
        filters = json.loads(request.query.get("select_filters") or "{}")
        return reply({"templates": [t for t in self._templates() if matches(t, filters)]})

    def _templates(self) -> list[dict]:
        # Templates made at the market's other door (runpod_api) have no hash.
        return [course_template(), *(t for t in self.market.templates if "hash_id" in t)]

    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        body = await _body(request)
        if not body.get("name") or not body.get("image"):
            return refusal(400, "invalid_args", "a template needs a name and an image")
        template = {**body, "id": self.market.new_id(), "hash_id": secrets.token_hex(16)}
        template["creator_id"] = 1
        self.market.templates.append(template)
        self.market.save()
        return reply({"success": True, "template": template})

    # -- instances -------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Rent an offer: checks what the real API checks, in its words."""
        offer_id = _int(request.match_info["offer"])
        body = await _body(request)
        # A null beside a template means "as in the template".
        contract = {k: v for k, v in body.items() if v is not None}
        if hash_id := contract.get("template_hash_id"):
            template = next((t for t in self._templates() if t["hash_id"] == hash_id), None)
            if template is None:
                return refusal(400, "invalid_args", f"no template with hash {hash_id}")
            contract = _with_template(template, contract)
        if problem := _problem(contract):
            return refusal(400, "invalid_args", problem)
        offer = {o["id"]: o for o in self.market.free_offers()}.get(offer_id)
        if offer is None:
            msg = f"error 404/3603: no_such_ask Instance type by id {offer_id} is not available."
            return refusal(404, "invalid_args", msg, ask_id=offer_id)
        self.market.meter()
        if self.market.credit <= 0:
            return refusal(400, "insufficient_credit", "Your account lacks credit: add funds.")
        bid = contract.get("price")
        if bid is not None and bid < offer["min_bid"]:
            return refusal(400, "invalid_price", f"bid {bid} is under {offer['min_bid']}")
        runtype = contract.get("runtype") or "ssh"
        rental = self.market.rent(
            offer_id,
            label=contract.get("label"),
            image=contract["image"],
            env={str(k): str(v) for k, v in (contract.get("env") or {}).items()},
            onstart=None if runtype == "args" else contract.get("onstart"),
            args=contract.get("args", []) if runtype == "args" else None,
            runtype=runtype,
            disk_gb=float(contract.get("disk", 10)),
            gpu_usd_per_hour=offer["dph_base"] if bid is None else bid,
            interruptible=bid is not None,
            template_hash=hash_id,
        )
        return reply(
            {"success": True, "new_contract": rental.id, "instance_api_key": rental.api_key}
        )

    async def list_instances(self, request: web.Request) -> web.Response:
        """A page of instances, ordered by id."""
        filters = json.loads(request.query.get("select_filters") or "{}")
        limit, after = int(request.query.get("limit") or 25), request.query.get("after_token")
        self.market.meter()
        rows = [self._row(r) for r in self.market.rentals.values()]
        rows = sorted((r for r in rows if matches(r, filters)), key=lambda r: r["id"])
        page = [r for r in rows if not after or r["id"] > int(after)][:limit]
        more = bool(page) and page[-1]["id"] < rows[-1]["id"]
        return reply(
            {
                "success": True,
                "instances_found": len(page),
                "total_instances": len(rows),
                "label_counts": Counter(r["label"] or "" for r in rows),
                "next_token": str(page[-1]["id"]) if more else None,
                "instances": page,
            }
        )

    async def show(self, request: web.Request) -> web.Response:
        """One instance; null when it is gone."""
        self.market.meter()
        rental = self.market.rentals.get(_int(request.match_info["id"]))
        return reply({"instances": rental and self._row(rental)})

    async def manage(self, request: web.Request) -> web.Response:
        """Stop, start or label."""
        rental = self._rental(request)
        body = await _body(request)
        self.market.meter()
        if "label" in body:
            if len(str(body["label"])) > _MAX_LABEL:
                return refusal(400, "label_too_long", f"a label has at most {_MAX_LABEL} letters")
            rental.label = body["label"]
        if body.get("state") == "stopped" and rental.intended != "stopped":
            self.market.stop(rental.id)
        elif body.get("state") == "running" and rental.status == "exited":
            self.market.run(rental)
        self.market.save()
        return reply({"success": True})

    async def destroy(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self._rental(request).id)
        return reply({"success": True})

    async def attach_key(self, request: web.Request) -> web.Response:
        """Let one more key log in to a machine that exists."""
        rental = self._rental(request)
        key = str((await _body(request)).get("ssh_key") or "").strip()
        if not is_public_key(key):
            return refusal(400, "invalid_args", "ssh_key is not an OpenSSH public key")
        file = self.market.folder(rental.id) / "authorized_keys"
        self.market.write_keys(rental.id, [*file.read_text().splitlines(), key])
        return reply({"success": True, "msg": "SSH key added to instance."})

    async def request_logs(self, request: web.Request) -> web.Response:
        """Prepare the log and answer the link under which it will be found."""
        rental = self._rental(request)
        body = await _body(request)
        name = "daemon.log" if body.get("daemon_logs") in (True, "true") else "container.log"
        file = self.market.folder(rental.id) / name
        text = file.read_text(errors="replace") if file.exists() else ""
        tail = max(_int(body.get("tail") or 1000), 1)
        link = f"{secrets.token_urlsafe(24)}.log"
        self._logs[link] = "".join(text.splitlines(keepends=True)[-tail:])
        return reply({"success": True, "result_url": f"{self.market.url}/logs/{link}"})

    async def read_logs(self, request: web.Request) -> web.Response:
        """The prepared log, once; its name is the only key to it, as with a signed link."""
        text = self._logs.pop(request.match_info["name"], None)
        if text is None:
            raise web.HTTPNotFound
        return web.Response(text=text)

    def _row(self, rental: Rental) -> dict:
        return instance_row(self.market.offers[rental.offer_id], rental)

    def _rental(self, request: web.Request) -> Rental:
        rental = self.market.rentals.get(_int(request.match_info["id"]))
        if rental is None:
            body = {"success": False, "error": "no_such_instance", "msg": "no such instance"}
            raise web.HTTPNotFound(text=json.dumps(body), content_type="application/json")
        return rental


async def _body(request: web.Request) -> dict:
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        text = json.dumps({"success": False, "error": "invalid_args", "msg": "no JSON object"})
        raise web.HTTPBadRequest(text=text, content_type="application/json")
    return body


def _int(text) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return -1


def _problem(contract: Mapping) -> str:
    """Why a contract cannot be made, in a sentence; empty when it can."""
    if not contract.get("image"):
        return "image is required"
    if not isinstance(contract.get("env", {}), dict):
        return "env must be an object"
    disk = contract.get("disk", 10)
    if not isinstance(disk, (int, float)) or disk < _MIN_DISK_GB:
        return f"disk must be at least {_MIN_DISK_GB} GB"
    if len(contract.get("label") or "") > _MAX_LABEL:
        return f"a label has at most {_MAX_LABEL} letters"
    price = contract.get("price")
    if price is not None and not 0.001 <= price <= 128:
        return "price must be between 0.001 and 128"
    return ""


def _with_template(template: Mapping, contract: dict) -> dict:
    """The template's values, overruled by what the caller gave."""
    base = {
        "image": f"{template['image']}:{template['tag']}"
        if template.get("tag")
        else template["image"],
        "onstart": template.get("onstart"),
        "runtype": "ssh_direc ssh_proxy" if template.get("ssh_direct") else "ssh_proxy",
        "disk": template.get("recommended_disk_space", 10),
    }
    return base | contract
