"""The part of Vast.ai's REST API that its SDK calls, answered by the rehearsal's market."""

import json
import operator
import re
import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from helpers.rehearsal.market import HOURS_PER_MONTH, Contract, Market, Rental
from helpers.rehearsal.web_api import FIXED, Refusal, json_object, reply, route
from helpers.serve.spec import ServingSpec

MIN_DISK_GB = 8
_SEARCH_OPTIONS = {"order", "type", "limit", "allocated_storage", "disable_bundling"}
# In ``operator``.
_TESTS = {"eq": "eq", "neq": "ne", "gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}


class VastAPI:
    """Handlers over one market.

    Args:
        market: the market that is rented from.
    """

    def __init__(self, market: Market) -> None:
        self.market = market
        self._logs: dict[str, str] = {}

    # -- account ---------------------------------------------------------------------------

    @route("GET /api/v0/users/current")
    async def user(self, request: web.Request) -> web.Response:
        """Who is asking, and what credit is left."""
        return reply({**FIXED["vast_user"], "credit": round(self.market.books.credit, 6)})

    @route("GET /api/v0/ssh")
    async def list_keys(self, request: web.Request) -> web.Response:
        """The account's public keys: a bare list."""
        return reply(self._keys())

    @route("POST /api/v0/ssh")
    async def add_key(self, request: web.Request) -> web.Response:
        """Register a public key for instances created from now on."""
        text = str((await json_object(request)).get("ssh_key")).strip()
        if not re.fullmatch(r"(ssh|ecdsa|sk)-\S+ \S+.*", text):
            raise Refusal(400, "no_ssh_key", "not an OpenSSH public key")
        keys = self.market.books.public_keys
        if text not in keys:
            keys.append(text)
            self.market.save()
        return reply({"success": True, "key": self._keys()[keys.index(text)]})

    def _keys(self) -> list[dict[str, Any]]:
        keys = enumerate(self.market.books.public_keys, start=1)
        return [{"id": number, "user_id": 1, "public_key": key} for number, key in keys]

    # -- offers and templates --------------------------------------------------------------

    @route("POST /api/v0/bundles")
    async def search(self, request: web.Request) -> web.Response:
        """Offers that match every filter, ordered, cut to ``limit``."""
        query = await json_object(request)
        disk_gb = float(query.get("allocated_storage") or 5)
        bid = query.get("type") == "bid"
        offers = [offer_row(each, disk_gb, bid) for each in self.market.free_offers().values()]
        found = [offer for offer in offers if matches(offer, query, skip=_SEARCH_OPTIONS)]
        for column, direction in reversed(query.get("order") or []):
            found.sort(key=lambda offer: offer.get(column, 0), reverse=direction == "desc")
        return reply({"offers": found[: int(query.get("limit") or 64)]})

    @route("GET /api/v0/template")
    async def list_templates(self, request: web.Request) -> web.Response:
        """Templates that match ``select_filters``."""
        filters = json.loads(request.query.get("select_filters") or "{}")
        found = [t for t in self._templates() if matches(t, filters)]
        return reply({"success": True, "templates_found": len(found), "templates": found})

    def _templates(self) -> list[dict[str, Any]]:
        """The market's own for vLLM, which one click would start, and the reader's."""
        spec = ServingSpec()
        image, _, tag = spec.image.partition(":")
        row = {"image": image, "tag": tag, "onstart": spec.onstart()}
        own = {**FIXED["vast_template"], **row, "recommended_disk_space": spec.disk_gb}
        return [own, *self.market.books.vast_templates]

    @route("POST /api/v0/template")
    async def add_template(self, request: web.Request) -> web.Response:
        """Keep a template of the reader's own."""
        marks = {"creator_id": 1, "hash_id": secrets.token_hex(16)}
        template = await json_object(request) | marks
        disk_gb = template.get("recommended_disk_space") or MIN_DISK_GB
        Contract.model_validate({"image": template["image"], "disk": disk_gb})
        self.market.books.vast_templates.append(template)
        self.market.save()
        return reply({"success": True, "template": template})

    # -- instances -------------------------------------------------------------------------

    @route("PUT /api/v0/asks/{id}")
    async def create(self, request: web.Request) -> web.Response:
        """Rent an offer: checks what the real API checks, in its words."""
        # A null beside a template means "as in the template".
        body = {k: v for k, v in (await json_object(request)).items() if v is not None}
        hash_id = body.get("template_hash_id")
        contract = Contract.model_validate(self._template(hash_id) | body if hash_id else body)
        if contract.disk_gb < MIN_DISK_GB:
            raise Refusal(400, "invalid_args", f"disk: at least {MIN_DISK_GB} GB")
        number = request.match_info["id"]
        offer = self.market.free_offers().get(int(number) if number.isdecimal() else -1)
        if offer is None or self.market.faults.take("offer_taken"):
            what = f"error 404/3603: no_such_ask Instance type by id {number} is not available."
            raise Refusal(404, "invalid_args", what)
        bid = contract.price
        if bid is not None and bid < offer["min_bid"]:
            raise Refusal(400, "invalid_price", f"bid {bid} is under {offer['min_bid']}")
        price, disk = offer["dph_base"] if bid is None else bid, offer["storage_cost"]
        rental = self.market.rent(offer["id"], contract, price, disk)
        return reply({"success": True, "new_contract": rental.id})

    def _template(self, hash_id: str) -> dict[str, Any]:
        """What a template says of a contract; the caller may overrule it."""
        for row in self._templates():
            if row["hash_id"] == hash_id:
                image = f"{row['image']}:{row['tag']}" if row.get("tag") else row["image"]
                disk, onstart = row.get("recommended_disk_space", 10), row.get("onstart") or ""
                return {"image": image, "onstart": onstart, "disk": disk}
        raise Refusal(400, "invalid_args", f"no template with hash {hash_id}")

    @route("GET /api/v1/instances")
    async def list_instances(self, request: web.Request) -> web.Response:
        """Every instance, on one page."""
        rows = [self._row(rental) for rental in self.market.books.rentals.values()]
        return reply({"success": True, "instances": rows, "next_token": None})

    @route("GET /api/v0/instances/{id}")
    async def show(self, request: web.Request) -> web.Response:
        """One instance; null when it is gone."""
        rental = self.market.books.rentals.get(request.match_info["id"])
        return reply({"instances": self._row(rental) if rental else None})

    @route("PUT /api/v0/instances/{id}")
    async def manage(self, request: web.Request) -> web.Response:
        """Stop or start it, or write its label."""
        rental, body = self.market.find(request.match_info["id"]), await json_object(request)
        wanted = body.get("state", rental.intended)
        if wanted not in ("stopped", "running"):
            raise Refusal(400, "invalid_args", "state is stopped or running")
        rental.label = Contract.model_validate({"image": "-", "label": rental.label, **body}).label
        if wanted == "stopped" and rental.intended != "stopped":
            self.market.stop(rental)
        elif wanted == "running" and rental.status == "exited":
            self.market.run(rental)
        self.market.save()
        return reply({"success": True})

    @route("DELETE /api/v0/instances/{id}")
    async def destroy(self, request: web.Request) -> web.Response:
        """End the contract."""
        self.market.destroy(self.market.find(request.match_info["id"]))
        return reply({"success": True})

    @route("PUT /api/v0/instances/request_logs/{id}")
    async def request_logs(self, request: web.Request) -> web.Response:
        """Prepare the log and answer the link under which it will be found."""
        rental = self.market.find(request.match_info["id"])
        lines = int((await json_object(request)).get("tail") or 1000)
        link = f"{secrets.token_urlsafe(24)}.log"
        self._logs[link] = "\n".join(self.market.log(rental, lines))
        return reply({"success": True, "result_url": f"{self.market.url}/logs/{link}"})

    @route("GET /logs/{name}")
    async def read_logs(self, request: web.Request) -> web.Response:
        """The prepared log, once; its name is the only key to it, as with a signed link."""
        text = self._logs.pop(request.match_info["name"], None)
        if text is None:
            raise Refusal(404, "not_found", "there is no such log")
        return web.Response(text=text)

    def _row(self, rental: Rental) -> dict[str, Any]:
        """One machine as the API shows it."""
        offer = self.market.offers[rental.offer_id]
        port = [{"HostIp": "127.0.0.1", "HostPort": str(rental.ssh_port)}]
        return {
            **offer_row(offer, rental.disk_gb, rental.price is not None),
            **FIXED["vast_instance"],
            **{name: getattr(rental, ours) for name, ours in FIXED["vast_names"].items()},
            "extra_env": list(rental.env.items()),
            "ports": {"22/tcp": port} if rental.ssh_port else {},
            "uptime_mins": (time.time() - rental.started) / 60,
            "dph_total": rental.gpu_usd_per_hour + rental.disk_usd_per_hour,
        }


def matches(row: Mapping, filters: Mapping, skip: Collection[str] = ()) -> bool:
    """Does a row pass every ``{column: {operator: value}}``?"""
    return all(
        _passes(row.get(column), name, wanted)
        for column, tests in filters.items()
        if column not in skip
        for name, wanted in tests.items()
    )


def _passes(value: Any, name: str, wanted: Any) -> bool:
    if value is None:
        return name in ("neq", "notin")
    if isinstance(value, str):
        value = value.rpartition(", ")[2]  # of "Place, XY" the country's code
    kind: Any = float if type(value) is int else type(value)  # the SDK sends numbers as strings
    wanted = TypeAdapter(list[kind] | kind).validate_python(wanted)
    if name in ("in", "notin"):
        return (value in wanted) == (name == "in")
    return bool(getattr(operator, _TESTS[name])(value, wanted))


def offer_row(offer: Mapping, disk_gb: float, bid: bool) -> dict[str, Any]:
    """One row of the market as the API shows it, priced with the disk that is asked for."""
    gpu = offer["min_bid"] if bid else offer["dph_base"]
    disk = offer["storage_cost"] * disk_gb / HOURS_PER_MONTH
    return {
        **offer,
        **FIXED["vast_offer"],
        "dph_base": gpu,
        "dph_total": gpu + disk,
        "storage_total_cost": disk,
        "reliability2": offer["reliability"],
        "verification": "verified" if offer["verified"] else "unverified",
        "is_bid": bid,
    }
