"""A GPU's published figures, however a provider spells its name."""

import re
from dataclasses import dataclass

from helpers.choose import prices
from helpers.errors import CourseError

_USABLE = 0.98  # GiB that PyTorch reports per marketed GB, where no log was found (0.97-0.99)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One or several equal GPUs of a server, with published dense rates (sums over the GPUs).

    Several are taken as ideal tensor parallelism: the traffic between them is left out, so the
    bounds stay bounds.
    """

    name: str
    count: int
    usable_gib: float
    bandwidth_gb_s: float
    fp16_tflops: float
    fp8_tflops: float

    def tflops(self, precision: str) -> float:
        """Dense tensor rate at that precision; weights-only formats compute at 16 bit."""
        return self.fp8_tflops if precision == "fp8" else self.fp16_tflops


def gpu(name: str, count: int = 1) -> Gpu:
    """A GPU of ``assets/gpus.csv``, or ``count`` of them in one server.

    Args:
        name: as in the table or as a provider spells it; with ``2x`` before it there are two.
        count: how many of them.

    Raises:
        CourseError: no published specification of that GPU in the table, however it is spelled, or
            of several: ``A100 SXM4`` may have 40 or 80 GB.
    """
    if several := re.fullmatch(r"(\d+)x (.+)", name):
        return gpu(several[2], count * int(several[1]))
    table = prices.gpus().set_index("gpu")
    near = find(name, {*table.index})
    if len(near) != 1 or _words(near[0]) - _words(name) - {"sxm"}:  # as H200 lacks it
        hint = f"name one of {', '.join(near or table.index)}"
        raise CourseError(f"{name} is not in assets/gpus.csv", hint)
    name = near[0]
    table = table.fillna({"usable_gib": _USABLE * table.vram_gb, "fp8_tflops": table.fp16_tflops})
    rates = ("usable_gib", "bandwidth_gb_s", "fp16_tflops", "fp8_tflops")
    totals = {rate: count * float(table[rate][name]) for rate in rates}
    return Gpu(name=f"{count}x {name}" if count > 1 else name, count=count, **totals)


def find(name: str, known: set[str]) -> list[str]:
    """Which of the known names may mean that GPU, however a provider spells it.

    Args:
        name: as a provider spells it, also with a number before it, as in ``1x A100 SXM4``.
        known: for example those in column ``gpu`` of :func:`helpers.choose.prices.offers`.

    Returns:
        The one with the same words; without one, those that add only its memory or its form, in
        order of the alphabet. None where the names have no such GPU.
    """
    words, more = _words(name), {"sxm", "pcie", "nvl", "gb", "16", "40", "80"}
    near = sorted(one for one in known if words <= _words(one) <= words | more)
    return [one for one in near if words == _words(one)] or near


def _words(name: str) -> set[str]:
    """A GPU's name without what providers write differently, as in ``NVIDIA GeForce RTX_4090``."""
    # So NVIDIA calls the H100 SXM; and both forms of the A100 40GB have the same figures.
    plain = name.lower().replace("80gb hbm3", "sxm").replace("40gb", "40gb sxm pcie")
    plain = re.sub(r"^\d+x |nvidia|geforce|tesla|generation|(?<=sxm)\d", "", plain)
    return set(re.findall("[a-z]+|[0-9]+", plain))
