"""What Vast.ai's API shows of offers, instances and templates, and how it filters them."""

import operator
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from helpers.rehearsal.market import HOURS_PER_MONTH, Rental
from helpers.serve.spec import ServingSpec

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, choices: value in choices,
    "notin": lambda value, choices: value not in choices,
}


def matches(row: Mapping, filters: Mapping, skip: Collection[str] = ()) -> bool:
    """Does a row pass every ``{column: {operator: value}}``?"""
    return all(
        _OPERATORS[name](row.get(column), _like(row.get(column), wanted))
        for column, tests in filters.items()
        if column not in skip
        for name, wanted in tests.items()
    )


def _like(value: Any, wanted: Any) -> Any:
    """The wanted value in the type of the row's: the SDK sends numbers as strings."""
    if isinstance(wanted, list):
        return [_like(value, item) for item in wanted]
    if isinstance(value, bool) and isinstance(wanted, str):
        return wanted.lower() in ("true", "1")
    if isinstance(value, (int, float)) and isinstance(wanted, str):
        return float(wanted)
    return wanted


def offer_row(offer: Mapping, disk_gb: float, bid: bool) -> dict[str, Any]:
    """One row of the market as the API shows it, priced with the disk that is asked for."""
    gpu = offer["min_bid"] if bid else offer["dph_base"]
    disk = offer["storage_cost"] * disk_gb / HOURS_PER_MONTH
    row = {"external": False, "rentable": True, "rented": False, "is_bid": bid, "rehearsal": True}
    return {
        **offer,
        **row,
        "dph_base": gpu,
        "dph_total": gpu + disk,
        "storage_total_cost": disk,
        "reliability2": offer["reliability"],
        "verification": "verified" if offer["verified"] else "unverified",
        "duration": 30 * 86400.0,
    }


def instance_row(offer: Mapping, rental: Rental) -> dict[str, Any]:
    """One machine as the API shows it."""
    running = rental.status == "running"
    ports = {"22/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(rental.ssh_port)}]}
    return {
        **offer_row(offer, rental.disk_gb, rental.price is not None),
        "id": rental.id,
        "rentable": False,
        "rented": True,
        "actual_status": rental.status,
        "intended_status": rental.intended,
        "cur_state": rental.intended,
        "status_msg": rental.message,
        "label": rental.label,
        "image_uuid": rental.image,
        "extra_env": list(rental.env.items()),
        "template_hash_id": rental.template,
        "ssh_host": "127.0.0.1",
        "ssh_port": rental.ssh_port,
        "public_ipaddr": "127.0.0.1",
        "ports": ports if rental.ssh_port else {},
        "start_date": rental.created,
        "uptime_mins": (time.time() - rental.started) / 60 if running else None,
        "dph_base": rental.gpu_usd_per_hour,
        "dph_total": rental.gpu_usd_per_hour + rental.disk_usd_per_hour,
        "storage_total_cost": rental.disk_usd_per_hour,
        "disk_space": rental.disk_gb,
    }


def course_template() -> dict[str, Any]:
    """The market's own vLLM template: what one click on a real market would start."""
    spec = ServingSpec()
    image, _, tag = spec.image.partition(":")
    return {
        "hash_id": "rehearsal-vllm",
        "creator_id": 62897,
        "name": "vLLM",
        "image": image,
        "tag": tag,
        "env": "",
        "onstart": spec.onstart(),
        "recommended_disk_space": spec.disk_gb,
        "rehearsal": True,
    }
