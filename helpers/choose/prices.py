"""GPU prices of four clouds in one table: live through gpuhunt, or from the dated snapshot."""

import contextlib
import datetime
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import gpuhunt
import pandas as pd
import requests
from gpuhunt.providers.vastai import VastAIProvider

from helpers.errors import CourseError
from helpers.settings import ASSETS

PROVIDERS = ("aws", "azure", "runpod", "vast.ai")
SNAPSHOT = ASSETS / "prices.csv"
MIN_VRAM_GB = 15  # below a T4 no model of the course fits
DISK_GB = 60  # Vast's price depends on the disk asked for: image and weights need this much
_STORED = [  # the columns of the snapshot file, in order
    "provider", "instance_type", "gpu", "gpu_count", "vram_gb", "usd_per_hour", "kind", "region",
    "seen", "source", "note",
]  # fmt: skip


class _Vast(VastAIProvider):
    """Vast's public search, without the two surprises of its defaults."""

    def make_filters(self, q):
        # Without a limit the service returns its first page only, and the page is no price order.
        return super().make_filters(q) | {"limit": 3000}


def gpus() -> pd.DataFrame:
    """Published specifications of the GPUs the course compares, one row a GPU.

    Returns:
        Columns ``gpu, gpuhunt_name, vram_gb`` (marketed, per GPU), ``usable_gib`` (what PyTorch
        reports in published start-up logs, where one was found), ``bandwidth_gb_s``,
        ``fp16_tflops`` and ``fp8_tflops`` (dense tensor rates), ``architecture``,
        ``compute_capability``, ``tdp_w``, ``confidence``, ``source``, ``collected``, ``note``.
    """
    return pd.read_csv(ASSETS / "gpus.csv", dtype={"note": str}).fillna({"note": ""})


def offers(live: bool = True, timeout_s: float = 15.0) -> pd.DataFrame:
    """What a GPU server costs now, on four clouds, cheapest first.

    A provider that does not answer is filled in from the snapshot, and says so in ``source`` and
    ``seen``; :func:`freshness` tells it in a sentence.

    Args:
        live: ask the network; ``False`` reads the snapshot only.
        timeout_s: longest wait for one connection, seconds.

    Returns:
        One row an offer: ``provider, instance_type, gpu, gpu_count, vram_gb`` (per GPU),
        ``bandwidth_gb_s, fp16_tflops`` (dense, per GPU; missing when not in assets/gpus.csv),
        ``usd_per_hour`` (whole instance), ``usd_per_gpu_hour, kind`` (``on-demand`` or
        ``interruptible``), ``region, seen`` (date, or empty when the source has none),
        ``source`` (``live: ...`` or where the snapshot row comes from), ``note``.

    >>> table = offers(live=False)
    >>> bool(table.usd_per_hour.is_monotonic_increasing)
    True
    """
    rows = _read_snapshot()
    if live and (found := _live(timeout_s)):
        answered = {row["provider"] for row in found}
        rows = pd.concat([pd.DataFrame(found), rows[~rows.provider.isin(answered)]])
    specs = gpus()[["gpu", "bandwidth_gb_s", "fp16_tflops"]]
    table = rows.merge(specs, on="gpu", how="left")
    table.insert(8, "usd_per_gpu_hour", table.usd_per_hour / table.gpu_count)
    # gpuhunt merges lists that are each in their provider's own order: sort here.
    return table.sort_values("usd_per_hour", ignore_index=True)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The clouds side by side: what the offers say, and facts of ``assets/providers.csv``.

    Args:
        table: what :func:`offers` returned.

    Returns:
        One column a provider: the cheapest GPU on demand (of at least 15 GB) and an A100 with 80
        GB, each in $/h for one GPU, then set-up effort, one-click templates, availability,
        billing unit, minimum top-up and what a stopped machine costs, with confidence and source.
    """
    facts = pd.read_csv(ASSETS / "providers.csv", index_col="provider")
    rented = table[table.kind == "on-demand"]
    first = rented.sort_values("usd_per_gpu_hour").groupby("provider").first()
    cheapest = first.gpu + first.usd_per_gpu_hour.map(": ${:.2f}/h".format)
    a100 = rented[rented.gpu.str.startswith("A100 80GB")].groupby("provider").usd_per_gpu_hour.min()
    facts.insert(0, "cheapest_gpu", cheapest)
    facts.insert(1, "a100_80gb", a100.map("${:.2f}/h".format))
    return facts.T


def freshness(table: pd.DataFrame) -> str:
    """One line a provider: whether its prices are live, and how old they are.

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
    """Write a new snapshot from the live prices, the cheapest rows of each kind of machine.

    Rows of a provider that did not answer stay as they were, with their old date.

    Args:
        path: where the snapshot lies.
        timeout_s: longest wait for one connection, seconds.

    Returns:
        The table of :func:`offers` that was written.

    Raises:
        CourseError: when no provider answers; the snapshot is left as it was.
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


def _read_snapshot() -> pd.DataFrame:
    return pd.read_csv(SNAPSHOT, dtype={"seen": str}).fillna({"seen": "", "note": "", "region": ""})


def _live(timeout_s: float) -> list[dict]:
    """The offers of every provider that answers, as snapshot rows."""
    items, listed = [], {}
    with _patience(timeout_s):
        catalog = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
        with contextlib.suppress(gpuhunt.GPUHuntError):  # raised when not one could be loaded
            catalog.load()
        for provider in PROVIDERS[:3]:
            if provider in catalog.catalog:
                listed[provider] = catalog.catalog[provider].version
                items += catalog.query(provider=provider, min_gpu_memory=MIN_VRAM_GB)
        # The filters are those the provider's own SDK sends: checked hosts, not of other markets.
        trusted = {"verified": {"eq": True}, "external": {"eq": False}}
        catalog.add_provider(_Vast(trusted, order=[("dph_total", "asc")]))
        with contextlib.suppress(requests.RequestException, KeyError, ValueError):
            # min_disk_size: otherwise the price includes the whole disk of the machine.
            items += catalog.query(
                provider="vastai", min_gpu_memory=MIN_VRAM_GB, min_disk_size=DISK_GB
            )
    specs = gpus()
    rows = [
        _row(item, listed.get(item.provider, ""), specs) for item in items if _is_gpu_offer(item)
    ]
    cheapest: dict[tuple, dict] = {}  # over the regions of a cloud
    for row in sorted(rows, key=lambda row: row["usd_per_hour"]):
        cheapest.setdefault((row["provider"], row["instance_type"], row["kind"]), row)
    return list(cheapest.values())


def _is_gpu_offer(item: gpuhunt.CatalogItem) -> bool:
    # Flags mark offers that are no single rentable machine, such as RunPod's clusters.
    return bool(item.gpu_count and item.gpu_vendor == "nvidia" and item.price and not item.flags)


def _row(item: gpuhunt.CatalogItem, version: str, specs: pd.DataFrame) -> dict:
    digits = re.match(r"(\d{4})-?(\d{2})-?(\d{2})", version)
    return {
        "provider": "vast.ai" if item.provider == "vastai" else item.provider,
        "instance_type": item.instance_name,
        "gpu": _gpu(item, specs),
        "gpu_count": item.gpu_count,
        "vram_gb": item.gpu_memory,
        "usd_per_hour": item.price,
        "kind": "interruptible" if item.spot else "on-demand",
        "region": item.location,
        "seen": "-".join(digits.groups()) if digits else str(datetime.date.today()),
        "source": f"live: gpuhunt {item.provider} {version}".strip(),
        "note": f"price includes {DISK_GB} GB of disk" if item.provider == "vastai" else "",
    }


def _gpu(item: gpuhunt.CatalogItem, specs: pd.DataFrame) -> str:
    """The course's name of a GPU: gpuhunt gives one name to A100 40/80, and to PCIe and SXM."""
    same = specs[(specs.gpuhunt_name == item.gpu_name) & (specs.vram_gb == item.gpu_memory)]
    if same.empty:
        return str(item.gpu_name)
    # An SXM board says so in the instance's name, or is the only kind that family has; where
    # nothing says it (Vast), the slower of the two is assumed.
    sxm = re.search(r"SXM|HBM3|^p4|^p5|_ND", item.instance_name) is not None
    return str(same.sort_values("bandwidth_gb_s").gpu.iloc[-1 if sxm else 0])


@contextlib.contextmanager
def _patience(timeout_s: float) -> Iterator[None]:
    # gpuhunt opens its connections without a timeout and logs a traceback for each provider that
    # fails; `freshness` tells the same in a line.
    logger, before = logging.getLogger("gpuhunt"), socket.getdefaulttimeout()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        logger.setLevel(level)
