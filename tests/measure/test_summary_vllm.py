"""Our numbers against those of real vLLM, in the environment that ``vllm_env.sh`` makes."""

import pytest
from support.vllm_server import needs_vllm

from helpers import load, measure

pytestmark = needs_vllm


async def test_our_numbers_are_the_servers(vllm, tmp_path):
    """Output tokens equal its counter; TTFT and time per token agree with its histograms."""
    # Long prompts: what the client cannot see of TTFT, some 2 ms, is then a small part of it.
    work = load.Synthetic(input_tokens=192, output_tokens=48)
    for users in (1, 8):
        run = await load.run(
            vllm.endpoint,
            work,
            load.ClosedLoop(users=users),
            requests=4 * users + 4,
            path=tmp_path / f"{users}.jsonl",
            progress=False,
        )
        assert all(record.ok and record.output_tokens == 48 for record in run.records), run
        table = measure.agreement(run)
        print(f"\n{run}\n{table.round(4)}")
        assert table.loc["output tokens", "ratio"] == 1
        assert table["ratio"].to_list() == pytest.approx([1, 1, 1], rel=0.05)
