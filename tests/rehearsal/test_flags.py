"""vLLM's options on the rehearsal's llama.cpp: each has the effect that it has on vLLM.

A reader who measures what an option changes must measure that option, and not nothing.
"""

import shlex

import pytest
import xllamacpp
from support.machines import Idle

from helpers import load, rent
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
    drafts = ahead.speculative.ngram_simple
    assert (drafts.size_n, drafts.size_m) == (3, 4)


def test_as_vllm_reads_its_command_line():
    """Underscores, and what nobody would notice here: a line from a blog has to start."""
    words = "--max_model_len=512 --enforce-eager --seed 7 --enable-prompt-tokens-details"
    assert translated(*words.split()).n_ctx == 4 * 512


@pytest.mark.parametrize(
    "words",
    [
        "--enable-expert-parallel",
        "--no-such-option 1",
        "--kv-cache-dtype nvfp4",
        """--speculative-config '{"method": "eagle", "num_speculative_tokens": 3}'""",
        """--speculative-config '{"method": "ngram"}'""",
        """--speculative-config '{"method": "ngram", "num_speculative_tokens": 3, "x": 1}'""",
        "--max-num-batched-tokens 0",
    ],
)
def test_what_cannot_be_translated_is_named(words, capsys):
    """Silence would be read as: this option does not help."""
    with pytest.raises(SystemExit):
        translated(*shlex.split(words))
    told = capsys.readouterr().err
    assert "nothing like" in told and words.split()[0] in told and "ENGINE=vllm" in told


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
