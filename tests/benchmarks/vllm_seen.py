"""What the notebooks may say of vLLM because it was seen here: writes ``assets/vllm_seen.json``.

``python tests/benchmarks/vllm_seen.py`` on a quiet machine, in two minutes, with the environment
that ``tests/vllm_env.sh`` makes. ``tests/serve/test_vllm.py`` holds the file against the vLLM that
it runs.
"""

import asyncio
import json
import os
import re
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.vllm_asked import REFUSALS, ask, plain
from support.vllm_server import DETAILS, serve

from helpers import load, measure
from helpers.endpoint import Endpoint
from helpers.load.metrics import NAMES
from helpers.settings import ASSETS

USERS = (1, 2, 4, 8, 16)
PREFIX = 600  # tokens that the prompts share, of which vLLM keeps whole blocks


async def throughput(endpoint: Endpoint, folder: Path) -> list[dict]:
    """Output tokens a second, TTFT and ITL against the number of users."""
    work = load.Synthetic(input_tokens=64, output_tokens=64)
    runs = await load.sweep(endpoint, work, users=USERS, answer_times=5, folder=folder)
    columns = ["users", "requests", "failed", "output_tokens_per_s", "ttft_p50_ms", "itl_p50_ms"]
    return measure.table(runs)[columns].round(1).to_dict("records")


async def refusals(endpoint: Endpoint) -> list[dict]:
    """Each kind of refused request: status and what vLLM says."""
    replies = {
        what: await ask(endpoint, plain(**changed)) for what, (changed, _) in REFUSALS.items()
    }
    replies["broken JSON"] = await ask(endpoint, b"{nope")
    replies["an unknown route"] = await ask(endpoint, plain(), "/nope")
    stranger = Endpoint(base_url=endpoint.base_url, model=endpoint.model, api_key="wrong")
    replies["a wrong API key"] = await ask(stranger, plain())
    return [
        {"asked": what, "status": int(reply.cause.removeprefix("http ")), "answer": reply.error}
        for what, reply in replies.items()
    ]


async def prefix_cache(endpoint: Endpoint, folder: Path) -> dict:
    """Prompts with a long beginning in common: what the first costs and what the later ones do."""
    work = load.Synthetic(input_tokens=16, output_tokens=4, shared_prefix_tokens=PREFIX, seed=1)
    run = await load.run(
        endpoint, work, load.ClosedLoop(users=1), requests=9, path=folder / "prefix.jsonl"
    )
    first, *later = run.records
    middle = sorted(later, key=lambda record: record.ttft_s)[len(later) // 2]
    return {
        "prompt_tokens": first.prompt_tokens,
        "cached_tokens": middle.cached_tokens,
        "ttft_first_ms": round(first.ttft_s * 1e3, 1),
        "ttft_later_ms": round(middle.ttft_s * 1e3, 1),
    }


def main() -> None:
    """Start vLLM, look, and write down."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        serve(
            Path(name), "--max-num-seqs", "32", DETAILS, api_key="a-key", name="smollm2"
        ) as server,
    ):
        ready_s = time.monotonic() - began
        endpoint, folder = server.endpoint, Path(name)
        text = requests.get(f"{endpoint.origin}/metrics", timeout=5).text
        seen = {
            "engine": endpoint.engine,
            "model": "SmolLM2-135M-Instruct, bfloat16",
            "hardware": f"{os.cpu_count()} CPU cores ({_cpu()})",
            "date": datetime.now(UTC).date().isoformat(),
            "ready_s": round(ready_s, 1),
            "throughput": asyncio.run(throughput(endpoint, folder)),
            "prefix_cache": asyncio.run(prefix_cache(endpoint, folder)),
            "refusals": asyncio.run(refusals(endpoint)),
            "metrics": {
                ours: f"vllm:{name}"
                for ours, names in NAMES.items()
                for name in reversed(names)  # of several the first is kept
                if re.search(rf"^vllm:{name}[{{ ]", text, re.M)
            },
        }
    (ASSETS / "vllm_seen.json").write_text(json.dumps(seen, indent=1) + "\n")
    print(json.dumps(seen, indent=1))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
