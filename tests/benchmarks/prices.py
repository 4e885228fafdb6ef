"""The snapshot of GPU prices, for readers whom no provider answers: writes ``assets/prices.csv``.

``python tests/benchmarks/prices.py``, with a network; no account is needed.
"""

import pandas as pd

from helpers.choose import prices
from helpers.errors import CourseError


def refresh() -> pd.DataFrame:
    """Write a new snapshot: from the live prices the five cheapest of each kind of machine.

    Where a provider did not answer, its rows stay as they were, with their old date.

    Returns:
        What was written, in the form of ``prices.offers``.

    Raises:
        CourseError: no provider answered; the snapshot is left as it was.
    """
    table = prices.offers()
    if not table.source.str.startswith("live: ").any():
        what = "no provider's prices could be read, so the snapshot was not changed"
        hint = "check the network connection (and GPUHUNT_CATALOG_URL, if you set it)"
        raise CourseError(what, hint)
    machine = ["provider", "gpu", "vram_gb", "gpu_count", "kind"]
    table = table.groupby(machine, as_index=False, group_keys=False).head(5)
    kept = table.drop(columns=["usd_per_gpu_hour", "bandwidth_gb_s", "fp16_tflops"])
    kept["source"] = kept.source.str.removeprefix("live: ")
    kept.sort_values(["provider", "usd_per_hour"]).to_csv(prices.SNAPSHOT, index=False)
    return table


if __name__ == "__main__":
    print(prices.freshness(refresh()))
