"""What Vast.ai's API shows of offers, instances and templates, and how it filters them."""

import operator
import time
from collections.abc import Callable, Mapping

from helpers.rehearsal.market import HOURS_PER_MONTH, Rental
from helpers.serve.spec import ServingSpec

_OPERATORS: dict[str, Callable] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, choices: value in choices,
    "notin": lambda value, choices: value not in choices,
}


def matches(row: Mapping, filters: Mapping, skip: set[str] = frozenset()) -> bool:
    """Does a row pass every ``{column: {operator: value}}``?"""
    return all(
        _OPERATORS[name](row.get(column), _like(row.get(column), wanted))
        for column, tests in filters.items()
        if column not in skip
        for name, wanted in tests.items()
    )


def _like(value, wanted):
    """The wanted value in the type of the row's: the SDK sends numbers as strings."""
    if isinstance(wanted, list):
        return [_like(value, item) for item in wanted]
    if isinstance(value, bool) and isinstance(wanted, str):
        return wanted.lower() in ("true", "1")
    if isinstance(value, (int, float)) and isinstance(wanted, str):
        return float(wanted)
    return wanted


def offer_row(offer: Mapping, disk_gb: float, bid: bool) -> dict:
    """One row of the market as the API shows it, priced with the disk that is asked for."""
    gpu = offer["min_bid"] if bid else offer["dph_base"]
    disk = offer["storage_cost"] * disk_gb / HOURS_PER_MONTH
    return {
        **offer,
        "ask_contract_id": offer["id"],
        "bundle_id": offer["machine_id"],
        "gpu_total_ram": offer["gpu_ram"] * offer["num_gpus"],
        "gpu_frac": 1.0,
        "driver_version": str(offer["driver_version"]),
        "dph_base": gpu,
        "dph_total": gpu + disk,
        "storage_total_cost": disk,
        "reliability2": offer["reliability"],
        "verification": "verified" if offer["verified"] else "unverified",
        "external": False,
        "rentable": True,
        "rented": False,
        "is_bid": bid,
        "inet_down_cost": 0.0,
        "inet_up_cost": 0.0,
        "static_ip": True,
        "duration": 30 * 86400.0,
        "end_date": time.time() + 30 * 86400,
        "search": {"gpuCostPerHour": gpu, "diskHour": disk, "totalHour": gpu + disk},
        "rehearsal": True,
    }


def instance_row(offer: Mapping, rental: Rental) -> dict:
    """One machine as the API shows it."""
    row = offer_row(offer, rental.disk_gb, False)
    running = rental.status == "running"
    port = rental.ssh_port if running else None
    row.update(id=rental.id, rentable=False, rented=True)
    total = rental.gpu_usd_per_hour + rental.disk_usd_per_hour
    return {
        **row,
        "actual_status": rental.status,
        "intended_status": rental.intended,
        "cur_state": rental.intended,
        "next_state": rental.intended,
        "status_msg": rental.message,
        "label": rental.label,
        "image_uuid": rental.image,
        "image_runtype": rental.runtype,
        "image_args": rental.args or [],
        "extra_env": [[k, v] for k, v in rental.env.items()],
        "onstart": rental.onstart,
        "template_hash_id": rental.template_hash,
        "ssh_host": "127.0.0.1",
        "ssh_port": rental.ssh_port,
        "ssh_idx": "0",
        "public_ipaddr": "127.0.0.1",
        "ports": {"22/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]} if port else {},
        "start_date": rental.created,
        "uptime_mins": (time.time() - rental.started) / 60 if running else None,
        "is_bid": rental.interruptible,
        "dph_base": rental.gpu_usd_per_hour,
        "dph_total": total,
        "storage_total_cost": rental.disk_usd_per_hour,
        "instance": {
            "gpuCostPerHour": rental.gpu_usd_per_hour,
            "diskHour": rental.disk_usd_per_hour,
            "totalHour": total,
        },
        "disk_space": rental.disk_gb,
        "disk_usage": None,
        "gpu_util": None,
    }


def course_template() -> dict:
    """The market's own vLLM template: what one click on a real market would start."""
    spec = ServingSpec()
    image, _, tag = spec.image.partition(":")
    return {
        "id": 1,
        "creator_id": 62897,
        "hash_id": "rehearsal-vllm",
        "name": "vLLM",
        "image": image,
        "tag": tag,
        "env": "",
        "onstart": spec.onstart(),
        "runtype": "ssh",
        "ssh_direct": True,
        "recommended_disk_space": spec.disk_gb,
        "rehearsal": True,
    }
