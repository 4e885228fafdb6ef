"""Whatever foreign input holds, the reader gets an answer or a sentence, never a traceback."""

import contextlib
import json
import string

import requests
from hypothesis import HealthCheck, given, settings, strategies

from helpers import rehearsal
from helpers import settings as settings_module
from helpers.errors import CourseError
from helpers.load import metrics
from helpers.records import Run
from helpers.rehearsal import model
from helpers.rent.calls import RUNPOD, VAST
from helpers.rent.runpod import RunPod
from helpers.rent.vast import Vast

QUICK = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
scalars = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(10**6), 10**12)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(max_size=12)
)
values = strategies.recursive(
    scalars,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
jsons = values.map(lambda value: json.dumps(value).encode())
VAST_FIELDS = (
    *("id", "label", "actual_status", "intended_status", "cur_state", "status_msg", "num_gpus"),
    *("gpu_name", "gpu_ram", "dph_total", "storage_total_cost", "start_date", "ports"),
    *("public_ipaddr", "ssh_host", "ssh_port"),
)
POD_FIELDS = (
    *("id", "name", "status", "cost", "createdAt", "mounts", "ssh", "gpu", "runtime", "ports"),
    "env",
)


def rows(fields):
    """Objects with some of the fields, each holding anything."""
    return strategies.dictionaries(strategies.sampled_from(fields), values)


@QUICK
@given(rows(VAST_FIELDS))
def test_vast_instance_of_any_shape(row):
    """An instance row becomes an Instance or a CourseError."""
    provider = Vast(api_key="k", server_url="http://127.0.0.1:9")
    with contextlib.suppress(CourseError):
        VAST.told("reading")(provider._instance)(row)


@QUICK
@given(rows([*VAST_FIELDS, "min_bid", "compute_cap", "verification"]))
def test_vast_offer_of_any_shape(row):
    """An offer row becomes an Offer or a CourseError."""
    provider = Vast(api_key="k", server_url="http://127.0.0.1:9")
    with contextlib.suppress(CourseError):
        VAST.told("reading")(provider._offer)(row, False)


@QUICK
@given(rows(POD_FIELDS))
def test_pod_of_any_shape(row):
    """A pod becomes an Instance or a CourseError."""
    provider = RunPod(api_key="k", server_url="http://127.0.0.1:9")
    with contextlib.suppress(CourseError):
        RUNPOD.told("reading")(provider._instance)(row)


@QUICK
@given(strategies.text(alphabet=string.printable, max_size=300))
def test_prometheus_text_of_any_shape(text):
    """Metrics of any server: what is understood is taken, the rest is left."""
    with contextlib.suppress(*metrics.BROKEN):
        metrics.parse(text)


@QUICK
@given(
    strategies.lists(strategies.binary(max_size=80) | values.map(lambda v: json.dumps(v).encode()))
)
def test_saved_run_of_any_shape(tmp_path, lines):
    """A file that is no run, or a damaged one, is told in a sentence."""
    file = tmp_path / "run.jsonl"
    file.write_bytes(b"\n".join(lines))
    with contextlib.suppress(CourseError):
        Run.read(file)


@QUICK
@given(strategies.binary(max_size=200))
def test_env_file_of_any_shape(tmp_path, content):
    """``.env`` may hold anything: settings, or a sentence."""
    file = tmp_path / ".env"
    file.write_bytes(content)
    file.chmod(0o600)
    before = settings_module.Settings.model_config["env_file"]
    settings_module.Settings.model_config["env_file"] = file
    try:
        with contextlib.suppress(CourseError):
            settings_module.read()
    finally:
        settings_module.Settings.model_config["env_file"] = before


@QUICK
@given(strategies.text(max_size=60) | strategies.text("abc/.-~", max_size=20).map("{}.gguf".format))
def test_local_model_of_any_name(name):
    """LOCAL_MODEL is a GGUF file or a sentence."""
    mine = settings_module.read().model_copy(update={"local_model": name or "x"})
    with contextlib.suppress(CourseError):
        model._local(mine)


ROUTES = (
    ("POST", "/api/v0/bundles/"),
    ("PUT", "/api/v0/asks/1103/"),
    ("PUT", "/api/v0/asks/{word}/"),
    ("POST", "/api/v0/ssh/"),
    ("POST", "/api/v0/template/"),
    ("PUT", "/api/v0/instances/{word}/"),
    ("DELETE", "/api/v0/instances/{word}/"),
    ("PUT", "/api/v0/instances/request_logs/{word}/"),
    ("GET", "/api/v1/instances/?select_filters={word}&limit={word}&after_token={word}"),
    ("GET", "/api/v0/template/?select_filters={word}"),
    ("POST", "/v2/pods"),
    ("PUT", "/v2/account/ssh-keys"),
    ("POST", "/v2/pods/{word}/action"),
    ("GET", "/v2/catalog/gpus?count={word}&minCudaVersion={word}"),
    ("POST", "/v2/templates"),
    ("POST", "/graphql"),
)
BODY_FIELDS = (
    *("image", "env", "price", "disk", "label", "onstart", "template_hash_id", "runtype", "args"),
    *("order", "limit", "num_gpus", "dph_total", "ssh_key", "keys", "name", "gpu", "ports"),
    *("action", "state", "allocated_storage", "query", "cloud"),
)


@QUICK
@given(
    strategies.sampled_from(ROUTES),
    strategies.text(string.ascii_letters + string.digits + '{}[]":-', max_size=10),
    rows(BODY_FIELDS) | values,
)
def test_rehearsal_api_meets_anything(own_rehearsal, route, word, body):
    """No request, however wrong, breaks the marketplace: it answers, and never with a 5xx."""
    server = rehearsal.ensure(own_rehearsal)
    method, path = route
    answer = requests.request(
        method,
        server.url + path.replace("{word}", requests.utils.quote(word, safe="")),
        json=body,
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=20,
    )
    assert answer.status_code < 500, (method, path, word, body, answer.text)
