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

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from helpers.rent.market import is_secret
from helpers.serve.spec import ServingSpec
from helpers.settings import ASSETS

TASK_FILE = ASSETS / "sky_task.yaml"
SERVICE_FILE = ASSETS / "sky_service.yaml"


def task(spec: ServingSpec, like: Path = TASK_FILE) -> dict[str, Any]:
    """A SkyPilot task that serves a spec on the cheapest of several clouds.

    Which clouds and which GPU on each, and after how many idle minutes the machine is taken down,
    stands in the file that it is modelled on. The port is public, so the server asks for a key. It
    and every other secret of the spec's environment are named in the task but not written into it:
    ``--secret NAME`` takes the value from the environment.

    Args:
        spec: what to serve; its ``host`` is overruled.
        like: the file to take everything else from.

    Returns:
        The task as a dictionary, as ``yaml.safe_dump`` writes it and ``sky.Task`` reads it.
    """
    described = yaml.safe_load(like.read_text())
    image = f"docker:{spec.image}"
    described["resources"] |= {"image_id": image, "disk_size": spec.disk_gb, "ports": spec.port}
    hidden = {"VLLM_API_KEY", *filter(is_secret, spec.env)}
    described["envs"] = {name: value for name, value in spec.env.items() if name not in hidden}
    described["secrets"] = dict.fromkeys(sorted(hidden))
    described["run"] = replace(spec, host="0.0.0.0").command()  # noqa: S104
    return described


def service(
    spec: ServingSpec, *, replicas: tuple[int, int] = (1, 4), requests_per_s: float = 1.0
) -> dict[str, Any]:
    """The same task as a service: SkyServe keeps replicas of it behind one address.

    It starts more of them, on whichever cloud is cheapest, when the requests outgrow those that
    run, ends them when they do not, and replaces those that die. A replica gets requests once the
    readiness probe is answered, with the key; until image and weights are there, which takes
    minutes, an unanswered probe is no failure.

    Args:
        spec: what to serve; its ``host`` is overruled.
        replicas: fewest and most of them.
        requests_per_s: what one replica carries: your measured capacity, less some headroom.

    Returns:
        The task with its ``service`` section.
    """
    described = task(spec, like=SERVICE_FILE)
    policy = described["service"]["replica_policy"]
    policy["min_replicas"], policy["max_replicas"] = replicas
    policy["target_qps_per_replica"] = requests_per_s
    return described
