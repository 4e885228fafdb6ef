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
        CourseError: no published specification of that GPU in the table, however it is spelled.
    """
    if several := re.fullmatch(r"(\d+)x (.+)", name):
        return gpu(several[2], count * int(several[1]))
    table = prices.gpus().set_index("gpu")
    words = _words(name)
    near = sorted((known for known in table.index if words <= _words(known)), key=len)
    if not near or words != _words(near[0]):
        meant = f"did you mean {' or '.join(near)}? " if words and near else ""
        hint = f"{meant}known are {', '.join(table.index)}"
        raise CourseError(f"{name} is not in assets/gpus.csv", hint)
    name = near[0]
    table = table.fillna({"usable_gib": _USABLE * table.vram_gb, "fp8_tflops": table.fp16_tflops})
    rates = ("usable_gib", "bandwidth_gb_s", "fp16_tflops", "fp8_tflops")
    totals = {rate: count * float(table[rate][name]) for rate in rates}
    return Gpu(name=f"{count}x {name}" if count > 1 else name, count=count, **totals)


def _words(name: str) -> set[str]:
    """A GPU's name without what providers write differently, as in ``NVIDIA GeForce RTX_4090``."""
    plain = re.sub(r"nvidia|geforce|generation|(?<=sxm)\d", "", name.lower())
    return set(re.findall("[a-z]+|[0-9]+", plain))
