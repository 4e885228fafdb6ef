"""Every command that notebook 06 shows: run here, read by its program's own parser, or cited.

The table ``assets/commands.csv`` says which; these tests hold it to that.
"""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from helpers import load
from helpers.serve import router
from helpers.settings import ASSETS, PROJECT, Settings

NOTEBOOK = PROJECT / "notebooks" / "08_scale_out.ipynb"
TABLE = pd.read_csv(ASSETS / "commands.csv").fillna("")
VLLM_ENV = Path(os.environ.get("VLLM_ENV", PROJECT / ".venv-vllm"))
SKY_PYTHON = Path(os.environ.get("SKY_PYTHON") or Settings().sky_python)
VLLM = """
import json, sys, vllm
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
print("version", vllm.__version__)
for words in json.load(sys.stdin):
    found = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
    print(json.dumps([found.model_tag, found.tensor_parallel_size, found.pipeline_parallel_size,
                      found.distributed_executor_backend]))
"""
# Click's programs: the words of a group lead to a command, whose own parser reads the rest.
CLICK = """
import json, sys, click
from {module} import cli
import {package}
print("version", {package}.__version__)
for words in json.load(sys.stdin):
    command, rest, context = cli, words[1:], None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        command = command.get_command(context, rest.pop(0))
    made = command.make_context(command.name, rest, parent=context)
    print(json.dumps({{k: str(v) for k, v in made.params.items() if v not in (None, (), False)}}))
"""


def rows(by: str, checked: str = "parsed") -> list[list[str]]:
    """The words of each command that is checked so, by that program; never none."""
    found = TABLE[TABLE.by.str.startswith(by) & (TABLE.checked == checked)].command
    assert len(found)
    return [shlex.split(command) for command in found]


def parse(python: Path | str, script: str, by: str, home: Path) -> list:
    """What the program's own parser makes of its rows, in its own environment."""
    done = subprocess.run(
        [python, "-c", script],
        input=json.dumps(rows(by)), capture_output=True, text=True, cwd=PROJECT,
        env={**os.environ, "HOME": str(home), "VLLM_API_KEY": "k"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    version = re.search(r"^version ([\d.]+)", done.stdout, re.M)[1]
    assert f"{by} {version}" in set(TABLE.by), f"tested with {by} {version}: say so in the table"
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "[{"]


def test_every_command_in_the_notebook_is_in_the_table():
    """A command that nobody checks would be found broken by a reader, on rented machines."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    shown = [line for block in blocks for line in block.strip().splitlines()]
    assert len(shown) > 8 and set(shown) <= set(TABLE.command)
    for command in TABLE.command:
        assert command in text, f"{command} is in the table and not in the notebook"


def test_the_table_claims_nothing_empty():
    """Run or parsed names the program with its version; cited names its source."""
    assert set(TABLE.checked) == {"run", "parsed", "cited"}
    assert (TABLE[TABLE.checked != "cited"].by != "").all()
    assert (TABLE[TABLE.checked != "run"].source != "").all()
    checked_here = {"vllm-router", "distributed", "vLLM", "Ray", "SkyPilot", "vastai", "Vast.ai's"}
    assert {by.split()[0] for by in TABLE.by if by} == checked_here


def test_the_router_takes_its_command():
    """And `helpers.serve.router` starts the same program, as test_router shows."""
    parser = pytest.importorskip("vllm_router.launch_router").parse_router_args
    (words,) = rows("vllm-router", "run")
    options = parser(words[1:])
    assert options.policy == "cache_aware" and len(options.worker_urls) == 2
    ours = router.command(options.worker_urls, options.policy, options.port, 1)
    assert [word for word in words[1:] if word not in ours] == []  # the program is run as a module
    assert f"vllm-router {importlib.metadata.version('vllm-router')}" in set(TABLE.by)


@pytest.mark.vllm
def test_vllms_parser_takes_its_commands(tmp_path):
    """Tensor, pipeline, and both over Ray."""
    python = VLLM_ENV / "bin" / "python"
    if not python.exists():
        pytest.skip("no vLLM environment: bash tests/vllm_env.sh")
    awq = "casperhansen/llama-3.3-70b-instruct-awq"
    found = parse(python, VLLM, "vLLM", tmp_path)
    assert found == [[awq, 2, 1, None], [awq, 1, 2, None], ["MODEL", 8, 2, "ray"]]


def test_rays_parser_takes_its_commands(tmp_path):
    """A head, and the machines that join it."""
    pytest.importorskip("ray")
    script = CLICK.format(module="ray.scripts.scripts", package="ray")
    head, joins = parse(sys.executable, script, "Ray", tmp_path)
    assert head["head"] == "True" and head["port"] == "6379"
    assert joins["address"] == "HEAD_IP:6379"


def test_skypilots_parser_takes_its_commands(tmp_path):
    """One machine, and a service: up, where it is, down; with the files that the room renders."""
    if not SKY_PYTHON.exists():
        pytest.skip("SkyPilot is not installed (assets/requirements-sky.txt)")
    script = CLICK.format(module="sky.client.cli.command", package="sky")
    commands = iter(parse(SKY_PYTHON, script, "SkyPilot", tmp_path))
    assert {"aws", "azure"} <= set(ast.literal_eval(next(commands)["infra_list"]))
    launched, where, down = (next(commands) for _ in range(3))
    assert "assets/sky_task.yaml" in launched["entrypoint"] and "VLLM_API_KEY" in launched["secret"]
    assert launched["cluster"] == "llm-course" and where["endpoint"] == "8000"
    assert where["clusters"] == down["clusters"] == "('llm-course',)"
    up, status, service_down = commands
    assert "assets/sky_service.yaml" in up["service_yaml"] and "VLLM_API_KEY" in up["secret"]
    assert up["service_name"] == "llm-course"
    assert status["service_names"] == service_down["service_names"] == "('llm-course',)"


def test_vastais_parser_takes_its_commands():
    """The program that ends what a lost notebook left."""
    from vastai.cli.commands import endpoints  # noqa: F401 (it registers its commands)
    from vastai.cli.main import parser

    shown, deleted = (parser.parse_args(words[1:]) for words in rows("vastai"))
    assert shown.func.__name__ == "show__endpoints"
    assert deleted.func.__name__ == "delete__endpoint" and deleted.id == 12345
    assert f"vastai {importlib.metadata.version('vastai')}" in set(TABLE.by)


async def test_dasks_programs_carry_a_run(endpoint, tmp_path, free_port):
    """A scheduler and two workers, each started by its command line, make one run."""
    import distributed

    assert f"distributed {distributed.__version__}" in set(TABLE.by)
    commands = [
        [word.replace("8786", str(free_port)) for word in words]
        for words in rows("distributed", "run")
    ]
    programs = []
    try:
        for words in [commands[0], commands[1], commands[1]]:
            extra = ["--no-dashboard"] if words[1] == "scheduler" else []
            programs.append(_start([*words, *extra], tmp_path))
        with distributed.Client(f"tcp://127.0.0.1:{free_port}", timeout=30) as client:
            client.wait_for_workers(2, timeout=30)
            run = await load.run(
                endpoint,
                load.Synthetic(input_tokens=8, output_tokens=4),
                load.ClosedLoop(users=4),
                requests=8, where=load.OnExecutor(client.get_executor(), processes=2),
                path=tmp_path / "run.jsonl", progress=False,
            )  # fmt: skip
    finally:
        for program in reversed(programs):
            program.terminate()
            program.wait(10)
    assert [record.output_tokens for record in run.ok] == [4] * 8
    assert sorted(record.index for record in run.records) == list(range(8))
    assert len(run.ends) == 2, "both workers played their part"


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(words: list[str], folder: Path) -> subprocess.Popen:
    program = Path(sys.executable).with_name(words[0])
    return subprocess.Popen(
        [program, *words[1:]], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
