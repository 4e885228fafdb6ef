"""One ServingSpec, four ways to run it: each must give vLLM the arguments that it understands.

``-m vllm`` lets vLLM's own parser read them, in the environment that ``vllm_env.sh`` makes.
"""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from helpers.choose import models
from helpers.errors import CourseError
from helpers.rent import guard
from helpers.rent import skypilot as clouds
from helpers.rent.runpod import container
from helpers.serve.spec import ServingSpec
from helpers.settings import PROJECT

TOKEN = "hf_" + "s3cret" * 4  # looks like a token, is none
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
for words in json.load(sys.stdin):
    options = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    print(json.dumps([options.model_tag, options.host, options.port, options.max_model_len,
                      options.tensor_parallel_size, options.pipeline_parallel_size]))
"""


@pytest.fixture
def with_token(settings):
    """Settings of a reader who has a Hugging Face token."""
    return settings.model_copy(update={"hf_token": SecretStr(TOKEN)})


def renderings(spec: ServingSpec) -> dict[str, list[str]]:
    """The words after ``vllm serve`` in each rendering."""
    public = replace(spec, host="0.0.0.0")
    docker = shlex.split(spec.docker())
    _, _, script = shlex.split(container(spec)["args"])  # bash -c SCRIPT
    return {
        "docker": docker[docker.index(spec.image) + 1 :],
        "vast": _in_script(spec.onstart()),
        "runpod": shlex.split(container(public)["args"]),
        "runpod, SSH": _in_script(script),
        "skypilot": shlex.split(clouds.task(spec)["run"])[2:],
    }


def _in_script(script: str) -> list[str]:
    """The words of the one ``vllm serve`` command in a shell script."""
    (command,) = re.findall(r"exec vllm serve (.*)", script)
    return shlex.split(command)


@pytest.mark.parametrize("name", ["default", *models.table().model])
def test_every_rendering_serves_the_same(with_token, name):
    """The four ways differ in the address they listen on, and in nothing else."""
    spec = ServingSpec() if name == "default" else models.spec(name, with_token)
    words = renderings(spec)
    for way, found in words.items():
        host = spec.host if way in ("vast", "runpod, SSH") else "0.0.0.0"
        assert found == replace(spec, host=host).vllm_args(), way
    shown = spec.docker() + spec.onstart() + str(clouds.task(spec)) + repr(spec)
    assert TOKEN not in shown


def test_the_token_goes_to_gated_models_only(settings, with_token):
    """A token is the reader's identity: it is not handed to machines that do not need it."""
    assert models.spec("Llama-3.1-8B-Instruct", with_token).env == {"HF_TOKEN": TOKEN}
    assert models.spec("Mistral-7B-Instruct-v0.3 AWQ", with_token).env == {}
    with pytest.raises(CourseError, match="is gated and HF_TOKEN is not set"):
        models.spec("Llama-3.1-8B-Instruct", settings)
    with pytest.raises(CourseError, match="no model called 'nope'"):
        models.spec("nope", settings)


def test_several_gpus_are_asked_for_and_used():
    """Two flags, only where they are needed; and a machine with as many GPUs is rented."""
    spec = ServingSpec(tensor_parallel=4, pipeline_parallel=2)
    for way, words in renderings(spec).items():
        at = words.index("--tensor-parallel-size")
        assert words[at : at + 4] == [
            "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2"
        ], way  # fmt: skip
    assert spec.gpus == 8 and ServingSpec().gpus == 1
    assert "parallel" not in ServingSpec().command()


def test_a_spec_for_two_gpus_rents_a_machine_with_two(provider, settings):
    """vLLM would not start on the cheapest machine, which has one."""
    rich = settings.model_copy(update={"max_usd_per_hour": 2})
    with guard.rented(
        provider, ServingSpec(tensor_parallel=2), "pair", rich, progress=print
    ) as instance:
        assert instance.gpu_count == 2


@pytest.mark.vllm
def test_vllms_own_parser_takes_the_arguments_of_every_model(with_token):
    """A flag that vLLM has renamed would show on a rented machine, at the reader's cost."""
    python = Path(os.environ.get("VLLM_ENV", PROJECT / ".venv-vllm")) / "bin" / "python"
    if not python.exists():
        pytest.skip("no vLLM environment: bash tests/vllm_env.sh")
    specs = [ServingSpec(), *(models.spec(name, with_token) for name in models.table().model)]
    specs += [ServingSpec(tensor_parallel=4, pipeline_parallel=2)]
    lines = [words for spec in specs for words in renderings(spec).values()]
    done = subprocess.run(
        [python, "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parsed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(parsed) == len(lines)
    assert parsed[-1][-2:] == [4, 2]
    for words, (model, host, port, length, *_) in zip(lines, parsed, strict=True):
        assert (model, port) == (words[0], 8000) and host in ("127.0.0.1", "0.0.0.0")
        assert length == int(words[words.index("--max-model-len") + 1])
