"""GPU prices of four clouds in one table: live through gpuhunt, or from the dated snapshot."""

import contextlib
import datetime
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpuhunt
import pandas as pd
import requests
from gpuhunt.providers.vastai import VastAIProvider

from helpers.errors import CourseError
from helpers.settings import ASSETS

PROVIDERS = ("aws", "azure", "runpod", "vast.ai")
SNAPSHOT = ASSETS / "prices.csv"
MIN_VRAM_GB = 15  # below a T4 no model of the course fits
DISK_GB = 60  # Vast's price depends on the disk you ask for; image and weights need this much
# It logs a traceback for each provider that fails; `freshness` says the same in a line.
logging.getLogger("gpuhunt").setLevel(logging.CRITICAL + 1)
_STORED = [  # the columns of the snapshot file, in order
    "provider", "instance_type", "gpu", "gpu_count", "vram_gb", "usd_per_hour", "kind", "region",
    "seen", "source", "note",
]  # fmt: skip


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


def offers(live: bool = True, timeout_s: float = 15.0) -> pd.DataFrame:
    """What a GPU server costs now, on four clouds, cheapest first.

    Where a provider does not answer, the snapshot fills in: ``source`` and ``seen`` show it, and
    :func:`freshness` says it in a sentence.

    Args:
        live: ask the network; ``False`` only reads the snapshot.
        timeout_s: longest wait for one connection, seconds.

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
    if live and len(found := _live(timeout_s)):
        rows = pd.concat([found, rows[~rows.provider.isin(found.provider)]])
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
    today, lines = datetime.date.today(), []
    for provider, rows in table.groupby("provider"):
        seen = rows.seen.max()
        date = f"undated ({rows.note.iloc[0].rpartition(', so ')[2]})"
        if seen:
            date = f"{seen} ({(today - datetime.date.fromisoformat(seen)).days} days old)"
        if rows.source.str.startswith("live: ").all():
            lines.append(f"{provider}: live, {len(rows)} offers, listed {date}")
        else:
            lines.append(f"{provider}: OLD, {len(rows)} offers from the snapshot, {date}")
    return "\n".join(lines)


def refresh(path: Path = SNAPSHOT, timeout_s: float = 15.0) -> pd.DataFrame:
    """Write a new snapshot: from the live prices the five cheapest of each kind of machine.

    Where a provider did not answer, its rows stay as they were, with their old date.

    Args:
        path: the snapshot's file.
        timeout_s: longest wait for one connection, seconds.

    Returns:
        What was written, in the form of :func:`offers`.

    Raises:
        CourseError: no provider answered; the snapshot is left as it was.
    """
    table = offers(timeout_s=timeout_s)
    if not table.source.str.startswith("live: ").any():
        raise CourseError(
            "no provider's prices could be read, so the snapshot was not changed",
            "check the network connection (and GPUHUNT_CATALOG_URL, if you set it)",
        )
    machine = ["provider", "gpu", "vram_gb", "gpu_count", "kind"]
    table = table.groupby(machine, as_index=False, group_keys=False).head(5)
    kept = table.assign(source=table.source.str.removeprefix("live: "))
    kept = kept.sort_values(["provider", "usd_per_hour"])
    fresh = path.with_suffix(".new")
    kept[_STORED].to_csv(fresh, index=False)
    fresh.replace(path)
    return table


def _live(timeout_s: float) -> pd.DataFrame:
    """The offers of every provider that answers, as rows of the snapshot."""
    # No flags: they mark what is not a single machine, such as RunPod's clusters. With a size of
    # disk Vast's price includes that much; without one it includes the whole disk of the machine.
    wanted = {"gpu_vendor": "nvidia", "min_gpu_count": 1, "min_gpu_memory": MIN_VRAM_GB}
    wanted |= {"min_price": 0.001, "allowed_flags": ()}
    # As the provider's own SDK asks: for hosts that were checked, and none of other markets.
    trusted = {"verified": {"eq": True}, "external": {"eq": False}}
    items: list[gpuhunt.CatalogItem] = []
    with _patience(timeout_s):
        catalog = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
        catalog.add_provider(_Vast(trusted, order=[("dph_total", "asc")]))
        with contextlib.suppress(gpuhunt.GPUHuntError):  # raised when not one could be loaded
            catalog.load()
        with contextlib.suppress(requests.RequestException, KeyError, ValueError):
            items += catalog.query(provider="vastai", min_disk_size=DISK_GB, **wanted)
        items += catalog.query(provider=list(PROVIDERS[:3]), **wanted)
    specs, versions = gpus(), {name: found.version for name, found in catalog.catalog.items()}
    rows = [_row(item, versions.get(item.provider, ""), _gpu(item, specs)) for item in items]
    table = pd.DataFrame(rows, columns=_STORED).sort_values("usd_per_hour")
    # One row for all regions of a cloud: the cheapest.
    return table.drop_duplicates(["provider", "instance_type", "kind"])


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
        "seen": "-".join(digits.groups()) if digits else str(datetime.date.today()),
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


@contextlib.contextmanager
def _patience(timeout_s: float) -> Iterator[None]:
    """While it lasts gpuhunt, which opens its connections without a timeout, has one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
