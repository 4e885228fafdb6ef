"""AWS, Azure and any other cloud through SkyPilot, which rents, waits, retries and takes down.

SkyPilot's dependencies contradict the course's own (paramiko, click), so it lives in a virtual
environment of its own and does its work there (``helpers/rent/sky_worker.py``)::

    python3.11 -m venv .venv-sky
    .venv-sky/bin/pip install -r assets/requirements-sky.txt
    .venv-sky/bin/sky check aws azure runpod vast     # which of your accounts it can use
"""

import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.rent.market import is_secret
from helpers.serve import ServingSpec, endpoint
from helpers.settings import ASSETS, Settings

TASK_FILE = ASSETS / "sky_task.yaml"
SERVICE_FILE = ASSETS / "sky_service.yaml"
WORKER = Path(__file__).with_name("sky_worker.py")
# One GPU of 24 GB on each cloud: what carries the course's model there, in SkyPilot's names.
GPUS = {"aws": "L4:1", "azure": "A10:1", "runpod": "RTX4090:1", "vast": "RTX4090:1"}
IDLE_MINUTES = 30
READY_S = 1800  # image and weights take minutes: until then an unanswered probe is no failure


def task(spec: ServingSpec, gpus: Mapping[str, str] = GPUS) -> dict:
    """A SkyPilot task that serves a spec on the cheapest of several clouds.

    The port is public, so the server asks for a key; it and every other secret of the spec's
    environment are named in the task but not written into it (:meth:`Sky.launch` passes them).
    The machine is taken down when it was idle for :data:`IDLE_MINUTES`.

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
) -> dict:
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
    probe = {
        "path": "/v1/models",
        "headers": {"Authorization": "Bearer $VLLM_API_KEY"},
        "initial_delay_seconds": READY_S,
    }
    least, most = replicas
    policy = {"min_replicas": least, "max_replicas": most}
    policy["target_qps_per_replica"] = requests_per_s
    whole = task(spec, gpus)
    del whole["resources"]["autostop"]  # SkyServe ends the replicas itself
    return whole | {"service": {"readiness_probe": probe, "replica_policy": policy}}


def write(described: dict, path: Path) -> Path:
    """Write a task as a file that ``sky launch`` takes, or a service that ``sky serve up`` does."""
    path.write_text(yaml.safe_dump(described, sort_keys=False, width=1000))
    return path


class Sky:
    """SkyPilot's SDK, run in its own environment.

    Args:
        settings: says where its Python is (``SKY_PYTHON``).

    Raises:
        CourseError: when it is not installed, with how to install it.
    """

    def __init__(self, settings: Settings) -> None:
        self.python = settings.sky_python
        if not self.python.exists():
            raise CourseError(
                f"SkyPilot is not installed ({self.python.name} not found where SKY_PYTHON says)",
                "python3.11 -m venv .venv-sky && "
                ".venv-sky/bin/pip install -r assets/requirements-sky.txt",
            )

    def check(self, task: dict) -> list[str]:
        """Let SkyPilot's own parser read a task.

        Returns:
            What it would ask for, one line a cloud.

        Raises:
            CourseError: with the parser's sentence when a field is wrong.
        """
        return self._run("check", task=task)

    def check_service(self, service: dict) -> dict:
        """Let SkyServe's own parser read a service.

        Returns:
            What it understood: ``replicas`` (fewest, most), ``requests_per_s`` of one, ``probe``
            (its path), the ``key`` that it sends, and ``seconds`` until it counts.

        Raises:
            CourseError: with the parser's sentence when a field is wrong.
        """
        return self._run("check_service", task=service)

    def launch(
        self, spec: ServingSpec, name: str, progress: Callable[[str], None] | None = None
    ) -> Endpoint:
        """Rent the cheapest machine that SkyPilot finds, serve the spec there and wait for it.

        Args:
            spec: what to serve.
            name: what to call the cluster; :meth:`down` takes the same name.
            progress: called with one line whenever there is something to show.

        Raises:
            CourseError: when it failed; a cluster that was made is taken down again.
        """
        say = progress or Progress()
        if any(cluster["name"] == name for cluster in self.clusters()):
            raise CourseError(
                f"a cluster called {name} is there already", "choose another name, or take it down"
            )
        key = spec.env.get("VLLM_API_KEY") or secrets.token_urlsafe(32)
        hidden = {k: v for k, v in spec.env.items() if is_secret(k)} | {"VLLM_API_KEY": key}
        try:
            where = self._run("launch", say, task=task(spec), cluster=name, secrets=hidden)
            address = self._run("endpoint", say, cluster=name, port=spec.port)
            root = address if "://" in address else f"http://{address}"
            return endpoint(
                f"{root.rstrip('/')}/v1",
                api_key=key, hardware=where, source="skypilot", progress=say, poll_s=10,
            )  # fmt: skip
        except BaseException:
            self.down(name)
            raise

    def clusters(self) -> list[dict]:
        """What SkyPilot has running: ``name, status, hardware`` of each."""
        return self._run("clusters")

    def down(self, name: str) -> None:
        """End a cluster and every charge for it; no error when it is gone already."""
        self._run("down", cluster=name)

    def _run(self, what: str, say: Callable[[str], None] = lambda line: None, **request):
        """One request to the worker: JSON in, progress lines and a last line of JSON out."""
        process = subprocess.Popen(
            [self.python, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            # Through the pipe, not the command line: other users can read a command line.
            with contextlib.suppress(BrokenPipeError):  # it died before it read: told below
                process.stdin.write(json.dumps({"what": what, **request}))
                process.stdin.close()
            answer = None
            for line in process.stdout:
                try:
                    answer = json.loads(line) if line.startswith('{"sky":') else answer
                except ValueError:
                    continue
                if not line.startswith('{"sky":'):
                    say(line.rstrip())
        if answer is None:
            raise CourseError(
                f"SkyPilot ended without an answer (exit status {process.returncode})",
                f"see what it says: {self.python.with_name('sky')} check",
            )
        if "error" in answer["sky"]:
            raise CourseError(f"SkyPilot: {answer['sky']['error']}", answer["sky"]["hint"])
        return answer["sky"]["result"]
