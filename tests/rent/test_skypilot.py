"""AWS and Azure through SkyPilot: the files for its commands, and what its own parser says.

The parser runs where SkyPilot is installed (``SKY_PYTHON``, or ``.venv-sky``); skipped elsewhere.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers import settings as settings_module
from helpers.rent import skypilot
from helpers.serve.spec import ServingSpec

SECRET = "hf_" + "s3cret" * 4  # looks like a token, is none
SKY_PYTHON = Path(os.environ.get("SKY_PYTHON") or settings_module.Settings().sky_python)
# The parser fails on a secret without a value: here only that there is one matters.
PARSE = """
import json, sys, sky
for described in json.load(sys.stdin):
    secrets = [(name, "-") for name in described["secrets"]]
    try:
        task = sky.Task.from_yaml_config(described, secrets_overrides=secrets)
    except Exception as error:
        print(json.dumps({"error": str(error)}))
        continue
    found = {"resources": sorted(str(each) for each in task.resources)}
    if service := task.service:
        found["replicas"] = [service.min_replicas, service.max_replicas]
        found["requests_per_s"] = service.target_qps_per_replica
        found["probe"] = service.readiness_path
        found["key"] = service.readiness_headers["Authorization"]
        found["seconds"] = service.initial_delay_seconds
    print(json.dumps(found))
"""


def written(described: dict) -> str:
    """A task or a service as the file that SkyPilot's commands take."""
    return yaml.safe_dump(described, sort_keys=False, width=1000)


@pytest.fixture
def parse(tmp_path):
    """What SkyPilot's own parser makes of tasks and services, in an environment of its own."""
    if not SKY_PYTHON.exists():
        pytest.skip("SkyPilot is not installed (assets/requirements-sky.txt)")

    def parsed(*described: dict) -> list[dict]:
        done = subprocess.run(
            [SKY_PYTHON, "-c", PARSE],
            input=json.dumps(described),
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return parsed


def test_the_task_file_is_what_the_spec_renders():
    """`sky launch assets/sky_task.yaml` must serve what the course serves."""
    task = skypilot.task(ServingSpec())
    assert skypilot.TASK_FILE.read_text() == written(task), "write it anew"
    assert [a["infra"] for a in task["resources"]["any_of"]] == ["aws", "azure", "runpod", "vast"]
    assert task["run"].startswith(f"vllm serve {ServingSpec().model} --host 0.0.0.0 --port 8000")
    assert task["resources"]["image_id"] == f"docker:{ServingSpec().image}"
    assert task["resources"]["autostop"]["down"] is True


def test_the_service_file_is_the_task_with_replicas():
    """`sky serve up assets/sky_service.yaml` must serve what the course serves, several times."""
    service = skypilot.service(ServingSpec())
    assert skypilot.SERVICE_FILE.read_text() == written(service), "write it anew"
    task = skypilot.task(ServingSpec())
    assert service["run"] == task["run"] and service["secrets"] == task["secrets"]
    assert "autostop" not in service["resources"], "SkyServe ends its replicas itself"


def test_no_secret_is_written_into_the_task():
    """The files are shared and committed: they name secrets and hold none."""
    spec = ServingSpec(env={"HF_TOKEN": SECRET, "VLLM_LOGGING_LEVEL": "INFO"})
    task = skypilot.task(spec)
    assert SECRET not in str(task) + str(skypilot.service(spec))
    assert task["secrets"] == {"HF_TOKEN": None, "VLLM_API_KEY": None}
    assert task["envs"] == {"VLLM_LOGGING_LEVEL": "INFO"}


def test_skypilots_parser_accepts_the_task_for_all_four_clouds(parse):
    """What we render is what SkyPilot understands."""
    spec = ServingSpec(env={"HF_TOKEN": SECRET})
    (found,) = parse(skypilot.task(spec))
    wanted = found["resources"]
    assert [line.partition("(")[0] for line in wanted] == ["AWS", "Azure", "RunPod", "Vast"]
    assert all(f"docker:{spec.image}" in line and "8000" in line for line in wanted)


def test_skyserves_parser_understands_the_service(parse):
    """Replicas, the load of one and the probe arrive where SkyServe looks for them."""
    service = skypilot.service(ServingSpec(), replicas=(2, 6), requests_per_s=2.5)
    wrong = skypilot.service(ServingSpec(), replicas=(2, 1))
    right, refused = parse(service, wrong)
    assert right == right | {
        "replicas": [2, 6],
        "requests_per_s": 2.5,
        "probe": "/v1/models",
        "key": "Bearer -",  # the value that stands in for the secret: so the probe carries it
        "seconds": 1800,
    }
    assert "max_replicas must be greater than or equal" in refused["error"]
