"""Vast Serverless: an endpoint and its group of workers, as the official SDK's calls take them.

The service rents workers by itself when requests come, at the marketplace's prices, and ends them
when none do. No dead-man's switch of ours is on them: what stands between the reader and a
surprise bill are the numbers of :class:`Service`, and ``VastAI.delete_endpoint``.
"""

from dataclasses import dataclass
from typing import Any

from helpers.rent.market import LABEL_PREFIX


@dataclass(frozen=True, kw_only=True)
class Service:
    """What to ask for. The SDK's own defaults keep five stopped workers and allow twenty.

    Args:
        name: of the endpoint; its label on the account is this behind the course's prefix.
        template: hash of a *serverless* template, one with Vast's PyWorker in it: an ordinary
            vLLM template does not report its load.
        gpu: the GPU that workers must have, as Vast spells it.
        max_usd_per_hour: price ceiling of one worker, US dollars an hour.
        max_workers: most workers at any time.
        idle_s: seconds without a request after which the last worker may end.
    """

    name: str
    template: str
    gpu: str = "RTX 4090"
    max_usd_per_hour: float = 0.80
    max_workers: int = 2
    idle_s: int = 600

    @property
    def label(self) -> str:
        """The endpoint's name on the account."""
        return f"{LABEL_PREFIX}{self.name}".replace(":", "-")

    @property
    def most_usd_per_hour(self) -> float:
        """What it can cost at most, US dollars an hour (traffic and disks apart)."""
        return self.max_workers * self.max_usd_per_hour

    def endpoint(self) -> dict[str, Any]:
        """Arguments of ``VastAI.create_endpoint``: no worker without a request."""
        return {
            "endpoint_name": self.label,
            "min_load": 0.0,
            "cold_workers": 0,
            "max_workers": self.max_workers,
            "inactivity_timeout": self.idle_s,
        }

    def workergroup(self) -> dict[str, Any]:
        """Arguments of ``VastAI.create_workergroup``: what a worker is."""
        wanted = f"gpu_name={self.gpu.replace(' ', '_')} num_gpus=1"
        return {
            "endpoint_name": self.label,
            "template_hash": self.template,
            "search_params": f"{wanted} dph_total<={self.max_usd_per_hour:g}",
        }
