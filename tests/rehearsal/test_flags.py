"""vLLM's options on the rehearsal's llama.cpp: each has the effect that it has on vLLM.

A reader who measures what an option changes must measure that option, and not nothing.
"""

import shlex

import pytest
import xllamacpp
from support.machines import Idle

from helpers import load, rent
from helpers.choose import models
from helpers.errors import CourseError
from helpers.rehearsal import engine_vllm, flags
from helpers.rent import guard, ssh
from helpers.serve.spec import ServingSpec

SILENT = {"progress": lambda line: None}
NGRAM = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}'


def translated(*words: str, slots: int = 4) -> xllamacpp.CommonParams:
    """What llama.cpp is told."""
    params = xllamacpp.CommonParams()
    params.n_parallel = slots
    asked, kept, _ = engine_vllm.parse(["m", *words])
    flags.translate(params, asked, kept)
    return params


def test_each_option_becomes_llama_cpps_own():
    """What has no effect is measured as an option that does not help."""
    plain = translated()
    assert (plain.n_ctx, plain.n_batch, plain.cache_prompt) == (4 * 2048, 2048, True)
    assert plain.cache_type_k == plain.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_F16
    kinds = xllamacpp.common_speculative_type
    assert plain.speculative.types == [kinds.COMMON_SPECULATIVE_TYPE_NONE]

    assert translated("--max-model-len", "512").n_ctx == 4 * 512
    assert translated("--max-model-len=8192").n_ctx == 4 * 2048  # no laptop reads more
    steps = translated("--max-num-batched-tokens", "64")
    assert (steps.n_batch, steps.n_ubatch) == (64, 64)
    whole = translated("--no-enable-chunked-prefill", "--max-num-batched-tokens", "64")
    assert whole.n_batch == 2048
    alone = translated("--no-enable-prefix-caching")
    assert (alone.cache_prompt, alone.cache_ram_mib) == (False, 0)
    small = translated("--kv-cache-dtype", "fp8")
    assert small.cache_type_k == small.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    ahead = translated("--speculative-config", NGRAM)
    assert ahead.speculative.types == [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    unasked = translated("--speculative-config", "null")
    assert unasked.speculative.types == plain.speculative.types


@pytest.mark.parametrize(
    ("length", "tokens"),
    [
        *(("512", 512), ("1k", 1000), ("1.5k", 1500), ("1K", 1024)),
        *(("8k", 2048), ("8K", 2048), ("auto", 2048), ("-1", 2048)),
    ],
)
def test_a_length_as_vllm_reads_it(length, tokens):
    """k is 1,000 and K is 1,024; longer than a laptop can is what a laptop can."""
    assert translated("--max_model_len", length).n_ctx == 4 * tokens
    if length not in ("auto", "-1"):
        asked = translated(f"--max-num-batched-tokens={length}")
        assert asked.n_batch == {"8k": 8000, "8K": 8192}.get(length, tokens)


@pytest.mark.parametrize(
    "words",
    [
        "--max_model_len=512 --trust-remote-code --enable-prompt-tokens-details",
        "--no-enforce-eager --no-trust-remote-code --no-enable-auto-tool-choice",
        "--enforce-eager --seed 7 --disable-log-stats --swap-space=4",
        "--quantization awq --dtype half --gpu-memory-utilization 0.9 -tp 2 -pp=2",
        *sorted(set(models.table().vllm_args)),
    ],
)
def test_as_vllm_reads_its_command_line(words):
    """What restates a default, and what the course asks of a GPU or for its models."""
    assert translated(*shlex.split(words)).n_batch == 2048


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (f"--speculative-config '{NGRAM}'", (3, 4)),
        ("--speculative-config.method ngram --speculative-config.num_speculative_tokens=6", (5, 6)),
        ("-sc.method ngram -sc.num_speculative_tokens 2 -sc.prompt_lookup_min=7", (7, 2)),
        ("--speculative_config.method=ngram --speculative_config.num_speculative_tokens 2", (5, 2)),
    ],
)
def test_a_draft_in_each_spelling(words, sizes):
    """As JSON, or key by key after a dot; a single limit of the lookup is both, as in vLLM."""
    drafts = translated(*shlex.split(words)).speculative.ngram_simple
    assert (drafts.size_n, drafts.size_m) == sizes


@pytest.mark.parametrize(
    ("words", "model", "rest"),
    [
        ("MODEL --port 8000", "MODEL", []),
        ("--port 8000 MODEL", "MODEL", []),
        ("--port 8000 MODEL --no-enforce-eager", "MODEL", ["--no-enforce-eager"]),
        ("--kv-cache-dtype fp8 MODEL", "MODEL", ["--kv-cache-dtype", "fp8"]),
        ("--model MODEL --kv-cache-dtype fp8", "MODEL", ["--kv-cache-dtype", "fp8"]),
        ("", "vLLM's default model", []),
    ],
)
def test_the_model_stands_where_vllm_looks_for_it(words, model, rest):
    """First, last or by name; vLLM serves a small one where none is named."""
    asked, kept, _ = engine_vllm.parse(words.split())
    assert (asked.model, kept) == (model, rest)


@pytest.mark.parametrize(
    "words",
    [
        "--enable-expert-parallel",
        "--no-such-option 1",
        "--kv-cache-dtype nvfp4",
        """--speculative-config '{"method": "eagle", "num_speculative_tokens": 3}'""",
        """--speculative-config '{"method": "ngram"}'""",
        """--speculative-config '{"method": "ngram", "num_speculative_tokens": 3, "x": 1}'""",
        *("--cpu-offload-gb 8", "-dp 2"),
        "--speculative-config.method eagle",
        "--speculative-config {}",
        *(f"--speculative-config '{value}'" for value in ("[1]", '"ngram"', "5")),
        *(
            f"""--speculative-config '{{"method": "ngram", "num_speculative_tokens": {value}}}'"""
            for value in ("0", "-2", "true", "null", '"5"', "65536")
        ),
        *(
            f"--speculative-config '{NGRAM[:-1]}, \"prompt_lookup_min\": {value}}}'"
            for value in ("4", "null", '"2"', "0")
        ),
    ],
)
def test_what_cannot_be_translated_is_named(words, capsys):
    """Silence would be read as: this option does not help."""
    with pytest.raises(SystemExit):
        translated(*shlex.split(words))
    told = capsys.readouterr().err
    option = words.split()[0].split(".")[0]
    assert f"nothing like {option}" in told and "ENGINE=vllm" in told


@pytest.mark.parametrize(
    "words",
    [
        *(f"--max-model-len {value}" for value in ("0", "-2", "1.5K", "infk", "long", "0.0001k")),
        *(f"--max-num-batched-tokens {value}" for value in ("0", "-1", "auto")),
        *(f"--max-num-seqs {value}" for value in ("0", "-3", "1k")),
        "--speculative-config.num_speculative_tokens 0",
        "--speculative-config ngram",
    ],
)
def test_a_value_that_vllm_refuses_is_refused(words, capsys):
    """With the option's name, not as an error of Python's."""
    with pytest.raises(SystemExit):
        translated(*words.split())
    told = capsys.readouterr().err
    assert "error: argument " in told and words.split()[0] in told


async def test_an_option_changes_a_rented_server_without_renting_anew(own_rehearsal, tmp_path):
    """The notebook's way: other options on the same instance, through the same tunnel."""
    provider = rent.connect(own_rehearsal)
    machine = guard.rent(provider, ServingSpec(), "tests", own_rehearsal, **SILENT)

    def log() -> str:
        return provider.logs(machine.id, 200)

    with ssh.tunnel(machine, own_rehearsal) as tunnel:

        async def asked(*words: str, users: int = 2, prompt: int = 40) -> load.Run:
            spec = ServingSpec(extra_args=words)
            ssh.restart(machine, spec, own_rehearsal)
            endpoint = tunnel.endpoint(timeout_s=60, poll_s=0.2, log=log)
            work = load.Synthetic(
                input_tokens=prompt, output_tokens=8, shared_prefix_tokens=60, turns=2
            )
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
            people, options = load.ClosedLoop(users=users), {"requests": 4, "progress": False}
            return await load.run(endpoint, work, people, path=path, **options)

        tunnel.endpoint(timeout_s=60, poll_s=0.2, log=log)
        cached = await asked()
        assert len(cached.ok) == 4 and sum(r.cached_tokens for r in cached.ok) > 0
        fresh = await asked("--no-enable-prefix-caching")
        assert len(fresh.ok) == 4 and sum(r.cached_tokens for r in fresh.ok) == 0
        few = await asked("--max-num-seqs", "1", users=4)
        assert {s["running"] for s in few.samples} <= {0, 1} and len(few.ok) == 4
        short = await asked("--max-model-len", "128", prompt=200)
        assert [record.cause for record in short.records] == ["http 400"] * len(short.records)
        with pytest.raises(CourseError, match=r"(?s)gave up.*nothing like --enable-expert-par"):
            await asked("--enable-expert-parallel")
        again = await asked("--kv-cache-dtype", "fp8", "--speculative-config", NGRAM)
        assert len(again.ok) == 4  # also after one that refused to start


def test_a_machine_without_the_courses_server_is_left_alone(own_rehearsal):
    """Somebody else's start script has nothing that could be started anew."""
    provider = rent.connect(own_rehearsal)
    machine = guard.rent(provider, Idle(), "tests", own_rehearsal, **SILENT)
    with pytest.raises(CourseError, match="no server of this course is here"):
        ssh.restart(machine, ServingSpec(), own_rehearsal)
