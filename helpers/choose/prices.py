"""GPU prices of four clouds in one table: live through gpuhunt, or from the dated snapshot."""

import contextlib
import logging
import re
import socket
from typing import Any

import gpuhunt
import pandas as pd
import requests
from gpuhunt.providers.vastai import VastAIProvider

from helpers.settings import ASSETS

SNAPSHOT = ASSETS / "prices.csv"
DISK_GB = 60  # Vast's price depends on the disk you ask for; image and weights need this much
# It logs a traceback for each provider that fails; `freshness` says the same in a line.
logging.getLogger("gpuhunt").setLevel(logging.CRITICAL + 1)


class _Vast(VastAIProvider):
    """Vast's public search, with all its offers and not just the first page of them."""

    def make_filters(self, q: gpuhunt.QueryFilter) -> dict[str, Any]:
        return super().make_filters(q) | {"limit": 3000}


def gpus() -> pd.DataFrame:
    """Published specifications of the GPUs the course compares, one row per GPU.

    Returns:
        Columns ``gpu, gpuhunt_name, vram_gb`` (marketed, per GPU), ``usable_gib`` (what PyTorch
        reports in a published start-up log, if one was found), ``bandwidth_gb_s``,
        ``fp16_tflops`` and ``fp8_tflops`` (dense tensor rates), ``architecture``,
        ``compute_capability``, ``tdp_w``, ``confidence``, ``source``, ``collected``, ``note``.
    """
    return pd.read_csv(ASSETS / "gpus.csv", dtype={"note": str}).fillna({"note": ""})


def offers(live: bool = True) -> pd.DataFrame:
    """What a GPU server costs now, on four clouds, cheapest first.

    Where a provider does not answer, the snapshot fills in: ``source`` and ``seen`` show it, and
    :func:`freshness` says it in a sentence.

    Args:
        live: ask the network; ``False`` only reads the snapshot.

    Returns:
        One row per offer: ``provider, instance_type, gpu, gpu_count, vram_gb`` (per GPU),
        ``bandwidth_gb_s, fp16_tflops`` (dense, per GPU; missing when not in assets/gpus.csv),
        ``usd_per_hour`` (whole instance), ``usd_per_gpu_hour, kind`` (``on-demand`` or
        ``interruptible``), ``region, seen`` (date, or empty when the source has none),
        ``source`` (``live: ...`` or where the snapshot row comes from), ``note``.

    >>> table = offers(live=False)
    >>> bool(table.usd_per_hour.is_monotonic_increasing)
    True
    """
    rows = pd.read_csv(SNAPSHOT, dtype={"seen": str}).fillna({"seen": "", "note": "", "region": ""})
    if live and (found := _live()):
        # One row for all regions of a cloud: the cheapest.
        fresh = pd.DataFrame(found).sort_values("usd_per_hour")
        fresh = fresh.drop_duplicates(["provider", "instance_type", "kind"])
        rows = pd.concat([fresh, rows[~rows.provider.isin(fresh.provider)]])
    specs = gpus()[["gpu", "bandwidth_gb_s", "fp16_tflops"]]
    table = rows.merge(specs, on="gpu", how="left")
    table.insert(8, "usd_per_gpu_hour", table.usd_per_hour / table.gpu_count)
    # gpuhunt merges lists that are each in their provider's own order: sort here.
    return table.sort_values("usd_per_hour", ignore_index=True)


def by_cloud(table: pd.DataFrame) -> pd.DataFrame:
    """The clouds side by side: what the offers say, and the facts of ``assets/providers.csv``.

    Args:
        table: what :func:`offers` returned.

    Returns:
        One column per provider: the cheapest GPU on demand (of at least 15 GB) and an A100 with
        80 GB, each in $/h for one GPU, then set-up effort, one-click templates, availability,
        billing unit, minimum top-up and what a stopped machine costs, with confidence and source.
    """
    facts = pd.read_csv(ASSETS / "providers.csv", index_col="provider")
    on_demand = table[table.kind == "on-demand"].sort_values("usd_per_gpu_hour")
    first = on_demand.groupby("provider").first()
    a100 = on_demand[on_demand.gpu.str.startswith("A100 80GB")].groupby("provider").first()
    facts.insert(0, "cheapest_gpu", first.gpu + first.usd_per_gpu_hour.map(": ${:.2f}/h".format))
    facts.insert(1, "a100_80gb", a100.usd_per_gpu_hour.map("${:.2f}/h".format))
    return facts.T


def freshness(table: pd.DataFrame) -> str:
    """One line per provider: whether its prices are live, and how old they are.

    Args:
        table: what :func:`offers` returned.
    """
    lines = []
    for provider, rows in table.groupby("provider"):
        origin = f"OLD, {len(rows)} offers from the snapshot,"
        if rows.source.str.startswith("live: ").all():
            origin = f"live, {len(rows)} offers, listed"
        date = "undated (" + rows.note.iloc[0].rpartition(", so ")[2]
        if seen := rows.seen.max():
            date = f"{seen} ({(pd.Timestamp.today() - pd.Timestamp(seen)).days} days old"
        lines.append(f"{provider}: {origin} {date})")
    return "\n".join(lines)


def _live() -> list[dict[str, Any]]:
    """The offers of every provider that answers, as rows of the snapshot."""
    # Below a T4 no model of the course fits. No flags: they mark what is not a single machine,
    # such as RunPod's clusters. With a size of disk Vast's price includes that much; without one
    # it includes the whole disk of the machine.
    wanted = {"gpu_vendor": "nvidia", "min_gpu_count": 1, "min_gpu_memory": 15}
    wanted |= {"min_price": 0.001, "allowed_flags": ()}
    # As the provider's own SDK asks: for hosts that were checked, and none of other markets.
    trusted = {"verified": {"eq": True}, "external": {"eq": False}}
    items: list[gpuhunt.CatalogItem] = []
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(15)  # seconds; gpuhunt opens its connections without a limit
    try:
        catalog = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
        catalog.add_provider(_Vast(trusted, order=[("dph_total", "asc")]))
        with contextlib.suppress(gpuhunt.GPUHuntError):  # raised when not one could be loaded
            catalog.load()
        with contextlib.suppress(requests.RequestException, KeyError, ValueError):
            items += catalog.query(provider="vastai", min_disk_size=DISK_GB, **wanted)
        items += catalog.query(provider=["aws", "azure", "runpod"], **wanted)
    finally:
        socket.setdefaulttimeout(before)
    specs, versions = gpus(), {name: found.version for name, found in catalog.catalog.items()}
    return [_row(item, versions.get(item.provider, ""), _gpu(item, specs)) for item in items]


def _row(item: gpuhunt.CatalogItem, version: str, gpu: str) -> dict[str, Any]:
    digits = re.match(r"(\d{4})-?(\d{2})-?(\d{2})", version)
    vast = item.provider == "vastai"
    return {
        "provider": "vast.ai" if vast else item.provider,
        "instance_type": item.instance_name,
        "gpu": gpu,
        "gpu_count": item.gpu_count,
        "vram_gb": item.gpu_memory,
        "usd_per_hour": item.price,
        "kind": "interruptible" if item.spot else "on-demand",
        "region": item.location,
        "seen": "-".join(digits.groups()) if digits else str(pd.Timestamp.today().date()),
        "source": f"live: gpuhunt {item.provider} {version}".strip(),
        "note": f"price includes {DISK_GB} GB of disk" if vast else "",
    }


def _gpu(item: gpuhunt.CatalogItem, specs: pd.DataFrame) -> str:
    """The course's name for a GPU: gpuhunt has one name for A100 40/80, and for PCIe and SXM."""
    same = specs[(specs.gpuhunt_name == item.gpu_name) & (specs.vram_gb == item.gpu_memory)]
    if same.empty:
        return str(item.gpu_name)
    # An SXM board says so in the instance's name, or is the only kind in that family; where
    # nothing says it (Vast), the slower of the two is assumed.
    sxm = re.search(r"SXM|HBM3|^p4|^p5|_ND", item.instance_name) is not None
    return str(same.sort_values("bandwidth_gb_s").gpu.iloc[-1 if sxm else 0])
