"""AWS, Azure and any other cloud through SkyPilot, which rents, waits, retries and takes down.

SkyPilot's dependencies contradict the course's own (paramiko, click), so it lives in a virtual
environment of its own::

    python3.11 -m venv .venv-sky
    .venv-sky/bin/pip install -r assets/requirements-sky.txt
    .venv-sky/bin/sky check aws azure runpod vast     # which of your accounts it can use

Here a :class:`ServingSpec` becomes a file that SkyPilot's own commands take. ``sky launch`` shows
the cheapest machine with its price, asks, and rents it; ``sky serve up`` keeps several machines::

    export VLLM_API_KEY=$(openssl rand -hex 24)       # the port is public: the server asks for it
    sky launch assets/sky_task.yaml -c llm-course --secret VLLM_API_KEY
    sky status --endpoint 8000 llm-course             # the address, for serve.endpoint(...)
    sky down llm-course                               # ends every charge
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from helpers.rent.market import is_secret
from helpers.serve.spec import ServingSpec
from helpers.settings import ASSETS

TASK_FILE = ASSETS / "sky_task.yaml"
SERVICE_FILE = ASSETS / "sky_service.yaml"
# One GPU of 24 GB on each cloud: what carries the course's model there, in SkyPilot's names.
GPUS = {"aws": "L4:1", "azure": "A10:1", "runpod": "RTX4090:1", "vast": "RTX4090:1"}
IDLE_MINUTES = 30
READY_S = 1800  # image and weights take minutes: until then an unanswered probe is no failure


def task(spec: ServingSpec, gpus: Mapping[str, str] = GPUS) -> dict[str, Any]:
    """A SkyPilot task that serves a spec on the cheapest of several clouds.

    The port is public, so the server asks for a key. It and every other secret of the spec's
    environment are named in the task but not written into it: ``--secret NAME`` takes the value
    from the environment. A machine that was idle for :data:`IDLE_MINUTES` is taken down.

    Args:
        spec: what to serve; its ``host`` is overruled.
        gpus: SkyPilot's cloud names, each with the accelerators to ask for there.

    Returns:
        The task as a dictionary, as ``yaml.safe_dump`` writes it and ``sky.Task`` reads it.
    """
    public = replace(spec, host="0.0.0.0")  # noqa: S104
    hidden = sorted({"VLLM_API_KEY", *(name for name in spec.env if is_secret(name))})
    return {
        "name": "llm-course",
        "resources": {
            "image_id": f"docker:{spec.image}",
            "disk_size": spec.disk_gb,
            "ports": spec.port,
            "use_spot": False,
            "autostop": {"idle_minutes": IDLE_MINUTES, "down": True},
            "any_of": [{"infra": cloud, "accelerators": gpu} for cloud, gpu in gpus.items()],
        },
        "envs": {name: value for name, value in spec.env.items() if not is_secret(name)},
        "secrets": dict.fromkeys(hidden),
        "run": public.command(),
    }


def service(
    spec: ServingSpec,
    gpus: Mapping[str, str] = GPUS,
    *,
    replicas: tuple[int, int] = (1, 4),
    requests_per_s: float = 1.0,
) -> dict[str, Any]:
    """The same task as a service: SkyServe keeps replicas of it behind one address.

    It starts more of them, on whichever cloud is cheapest, when the requests outgrow those that
    run, ends them when they do not, and replaces those that die. A replica gets requests once the
    readiness probe is answered, with the key, as SkyServe's documentation has it ("Authorization").

    Args:
        spec: what to serve; its ``host`` is overruled.
        gpus: SkyPilot's cloud names, each with the accelerators to ask for there.
        replicas: fewest and most of them.
        requests_per_s: what one replica carries: your measured capacity, less some headroom.

    Returns:
        The task with its ``service`` section.
    """
    whole = task(spec, gpus)
    del whole["resources"]["autostop"]  # SkyServe ends the replicas itself
    whole["service"] = {
        "readiness_probe": {
            "path": "/v1/models",
            "headers": {"Authorization": "Bearer $VLLM_API_KEY"},
            "initial_delay_seconds": READY_S,
        },
        "replica_policy": {
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_qps_per_replica": requests_per_s,
        },
    }
    return whole


def write(described: Mapping[str, Any], path: Path) -> Path:
    """Write a task or a service as the file that SkyPilot's commands take."""
    path.write_text(yaml.safe_dump(dict(described), sort_keys=False, width=1000))
    return path
