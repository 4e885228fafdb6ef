"""``ENGINE``: what is refused before anything starts, and which arguments reach vLLM."""

from argparse import Namespace

import pytest
import xllamacpp
from support.machines import Idle

from helpers import rehearsal, rent
from helpers import settings as settings_module
from helpers.errors import CourseError
from helpers.rehearsal import engine, engine_vllm
from helpers.rent import guard
from helpers.serve import spec as serving
from helpers.serve.spec import ServingSpec


def test_an_engine_that_does_not_exist_is_a_wrong_setting(monkeypatch):
    """A typing mistake must not fall back to another engine: the figures would be its."""
    monkeypatch.setenv("ENGINE", "vlllm")
    with pytest.raises(CourseError, match="ENGINE: Input should be 'llamacpp' or 'vllm'"):
        settings_module.read()


@pytest.mark.parametrize(
    ("there", "local_model", "told"),
    [
        ([], "", "there is no vLLM in .*vllm_env.sh"),
        (["bin/vllm"], "", "no config.json.*vllm_env.sh .* writes one"),
        (["bin/vllm", "model/config.json"], "/no/such", "no config.json.*set LOCAL_MODEL"),
        (["bin/vllm", "model/config.json"], "weights.gguf", "no config.json.*set LOCAL_MODEL"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    own_rehearsal, tmp_path, there, local_model, told
):
    """The reader who sets ENGINE=vllm first gets the command that installs it."""
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = {"engine": "vllm", "vllm_env": tmp_path, "local_model": local_model}
    with pytest.raises(CourseError, match=f"(?s){told}"):
        rent.connect(own_rehearsal.model_copy(update=wanted))
    assert not rehearsal.running(own_rehearsal)


def test_a_rehearsal_keeps_its_engine(own_rehearsal, tmp_path):
    """A setting changed while it runs is refused; what is rented stays seen and destroyable."""
    provider = rent.connect(own_rehearsal)
    guard.rent(provider, Idle(), "tests", own_rehearsal, progress=print)
    other = own_rehearsal.model_copy(update={"engine": "vllm", "vllm_env": tmp_path})
    with pytest.raises(CourseError, match="serves with llamacpp, and ENGINE is vllm"):
        rent.connect(other)
    (seen,), _ = rent.accounts(other)
    (machine,) = seen.instances()
    assert rent.preflight(other).endswith("your instances now: 1 (1 on rehearsal)")
    guard.destroy(seen, machine.id)
    assert not seen.instances() and rent.preflight(other).endswith("your instances now: 0")


def test_threads_that_wait_for_the_next_token_sleep(monkeypatch):
    """Built without OpenMP, as for macOS, llama.cpp would spin through half of each pause."""
    monkeypatch.setenv("REHEARSAL_CORES", "2")
    params = xllamacpp.CommonParams()
    assert params.cpuparams.poll > 0
    engine._size(params, Namespace(max_num_seqs=None, api_key=None))
    assert params.cpuparams.poll == params.cpuparams_batch.poll == 0


def test_what_a_laptop_cannot_carry_is_said(monkeypatch, capsys):
    """Else 64 at once would be measured as 32."""
    monkeypatch.setenv("REHEARSAL_CORES", "2")
    params = xllamacpp.CommonParams()
    for asked, slots, told in ((None, 8, False), (32, 32, False), (64, 32, True)):
        engine._size(params, Namespace(max_num_seqs=asked, api_key=None))
        assert params.n_parallel == slots
        assert ("--max-num-seqs is 32 here, not 64" in capsys.readouterr().out) == told


def test_arguments_for_a_gpu_become_arguments_for_a_cpu(tmp_path):
    """What vLLM is asked for reaches it, but for what only a GPU or Mistral's files can answer."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    spec = ServingSpec(
        extra_args=(
            *("--load-format", "mistral", "-tp", "2", "--gpu-memory-utilization=0.9"),
            *("--max-num-seqs", "4", "--enable-prefix-caching"),
            "--speculative_config.num_speculative_tokens=5",
        )
    )
    asked, kept, dropped = engine_vllm.parse(spec.vllm_args())
    kept = engine_vllm.arguments(asked, kept, tmp_path, "tiny")
    assert kept[:4] == [str(tmp_path), "--served-model-name", "tiny", "--enforce-eager"]
    assert kept[4:] == [
        *(serving.DETAILS, "--enable-prefix-caching"),
        *("--speculative-config.num_speculative_tokens=5", "--max-num-seqs", "4"),
        *("--max-model-len", "2048"),
    ]
    assert (asked.model, asked.port) == (serving.MISTRAL_AWQ, 8000)
    gpu = ["--gpu-memory-utilization", "0.9", "--tensor-parallel-size", "2"]
    assert dropped == [*gpu, "--load-format", "mistral"]


def test_the_own_model_gets_its_adapter_only_when_tools_are_asked_for(tmp_path):
    """The adapter belongs to one model, and costs time where nobody calls a function."""
    (tmp_path / "config.json").write_text("{}")
    words = ["--model", "m", "--enable-auto-tool-choice", "--tool-call-parser", "mistral"]

    def made(words, name):
        return engine_vllm.arguments(*engine_vllm.parse(words)[:2], tmp_path, name)

    with_tools = made(words, engine_vllm.TOOL_CALLER)
    assert with_tools[with_tools.index("--tool-call-parser") + 1] == "hermes"
    assert "--lora-modules" in with_tools
    assert "--lora-modules" not in made(words, "other")
    assert "--lora-modules" not in made(["m"], engine_vllm.TOOL_CALLER)
