"""AWS and Azure through SkyPilot: the task file, its own parser, and what failures say.

The parser runs where SkyPilot is installed (``SKY_PYTHON``, or ``.venv-sky``); skipped elsewhere.
"""

import os
import stat
from pathlib import Path

import pytest
import yaml

from helpers import settings as settings_module
from helpers.errors import CourseError
from helpers.rent import skypilot as clouds
from helpers.serve.spec import ServingSpec

SECRET = "hf_" + "s3cret" * 4  # looks like a token, is none
SKY_PYTHON = os.environ.get("SKY_PYTHON") or settings_module.Settings().sky_python


@pytest.fixture
def sky(settings, tmp_path, monkeypatch):
    """SkyPilot in its own environment, with a home of its own."""
    if not Path(SKY_PYTHON).exists():
        pytest.skip("SkyPilot is not installed (assets/requirements-sky.txt)")
    monkeypatch.setenv("HOME", str(tmp_path))
    return clouds.Sky(settings.model_copy(update={"sky_python": Path(SKY_PYTHON)}))


def test_the_task_file_is_what_the_spec_renders(tmp_path):
    """`sky launch assets/sky_task.yaml` must serve what the course serves."""
    written = clouds.write(clouds.task(ServingSpec()), tmp_path / "task.yaml")
    assert clouds.TASK_FILE.read_text() == written.read_text(), "run clouds.write for TASK_FILE"
    task = yaml.safe_load(written.read_text())
    assert [a["infra"] for a in task["resources"]["any_of"]] == ["aws", "azure", "runpod", "vast"]
    assert task["run"].startswith(f"vllm serve {ServingSpec().model} --host 0.0.0.0 --port 8000")
    assert task["resources"]["image_id"] == f"docker:{ServingSpec().image}"
    assert task["resources"]["autostop"]["down"] is True


def test_the_service_file_is_the_task_with_replicas(tmp_path):
    """`sky serve up assets/sky_service.yaml` must serve what the course serves, several times."""
    written = clouds.write(clouds.service(ServingSpec()), tmp_path / "service.yaml")
    assert clouds.SERVICE_FILE.read_text() == written.read_text(), "run clouds.write for it"
    service = yaml.safe_load(written.read_text())
    task = clouds.task(ServingSpec())
    assert service["run"] == task["run"] and service["secrets"] == task["secrets"]
    assert "autostop" not in service["resources"], "SkyServe ends its replicas itself"


def test_no_secret_is_written_into_the_task():
    """The files are shared and committed: they name secrets and hold none."""
    spec = ServingSpec(env={"HF_TOKEN": SECRET, "VLLM_LOGGING_LEVEL": "INFO"})
    task = clouds.task(spec)
    assert SECRET not in str(task) + str(clouds.service(spec))
    assert task["secrets"] == {"HF_TOKEN": None, "VLLM_API_KEY": None}
    assert task["envs"] == {"VLLM_LOGGING_LEVEL": "INFO"}


def test_without_skypilot_one_sentence_says_how_to_install_it(settings, tmp_path):
    """The notebook goes on without the optional part."""
    missing = settings.model_copy(update={"sky_python": tmp_path / "python"})
    with pytest.raises(CourseError, match="SkyPilot is not installed") as told:
        clouds.Sky(missing)
    assert "assets/requirements-sky.txt" in told.value.hint


def test_skypilots_parser_accepts_the_task_for_all_four_clouds(sky):
    """What we render is what SkyPilot understands."""
    spec = ServingSpec(env={"HF_TOKEN": SECRET})
    wanted = sky.check(clouds.task(spec))
    assert [line.partition("(")[0] for line in wanted] == ["AWS", "Azure", "RunPod", "Vast"]
    assert all(f"docker:{spec.image}" in line and "8000" in line for line in wanted)


def test_skyserves_parser_understands_the_service(sky):
    """Replicas, the load of one and the probe arrive where SkyServe looks for them."""
    service = clouds.service(ServingSpec(), replicas=(2, 6), requests_per_s=2.5)
    assert sky.check_service(service) == {
        "replicas": [2, 6],
        "requests_per_s": 2.5,
        "probe": "/v1/models",
        "key": "Bearer -",  # a check stands in for the secret: so the probe carries it
        "seconds": clouds.READY_S,
    }
    service["service"]["replica_policy"]["max_replicas"] = 1
    with pytest.raises(CourseError, match="max_replicas must be greater than or equal"):
        sky.check_service(service)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(resourcs={}), "did you mean 'resources'"),
        (lambda t: t["resources"].update(accelerator="L4:1"), "did you mean 'accelerators'"),
        (lambda t: t["resources"]["any_of"][0].update(infra="mars"), "'mars' does not match"),
        (lambda t: t.update(run=5), "5 is not of type 'string'"),
        (lambda t: t["resources"].update(ports="abc"), "Invalid port range abc"),
    ],
)
def test_a_wrong_field_is_told_in_one_sentence(sky, change, told):
    """A typing error must not come as SkyPilot's traceback."""
    task = clouds.task(ServingSpec())
    change(task)
    with pytest.raises(CourseError, match=told) as error:
        sky.check(task)
    assert "\n" not in error.value.what and len(error.value.what) < 520


def test_a_worker_that_dies_is_told(settings, tmp_path):
    """An environment that is broken answers nothing: say so."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    sky = clouds.Sky(settings.model_copy(update={"sky_python": broken}))
    with pytest.raises(CourseError, match=r"without an answer \(exit status 3\)"):
        sky.check(clouds.task(ServingSpec()))
