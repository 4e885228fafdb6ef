"""The same quantities from three tools on one server: writes ``assets/three_tools.json``.

``python tests/benchmarks/three_tools.py --guidellm VENV`` on a quiet machine, in fifteen minutes,
with the environment that ``tests/vllm_env.sh`` makes (vLLM's CPU build and ``vllm bench serve``)
and one with GuideLLM in it. Two scenes, the tools in turn, three rounds, medians:

* ``vllm``: a real server, whose own counters say what each tool made of it;
* ``paced``: the paced server, whose log says when it sent each token, and once more sending the
  first event of a stream, which carries no text, at once (``role first``).

``as_vllm`` and ``as_guidellm`` are the other tools' definitions, read in their code. Applied to
*our* records of the same work, and to the paced server's log of a tool's own run, they tell how
much of a difference is the definition.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import compare
from compare import PROMPT, TOKENS, PacedServer, measured
from support.vllm_server import MODEL, VLLM_ENV, serve
from vllm_seen import _cpu

from helpers import load, measure
from helpers.endpoint import Endpoint
from helpers.measure.steady import samples
from helpers.records import Record, Run
from helpers.settings import ASSETS

USERS, REQUESTS = 8, 48
TTFT, ITL = 0.1, 0.01  # of the paced server
QUIET = 0.15  # of a core, by other programs during a turn
COUNTED = {  # of the server's own counters, as ``load.server_metrics`` names them
    "requests": "ttft_count",
    "prompt tokens": "prompt_tokens_total",
    "output tokens": "output_tokens_total",
}

_RATES = {
    "requests/s": "all requests over the whole run, its beginning and end with it; ours: in the "
    "steady window, an answer that it cuts counted by the share of its tokens",
    "output tokens/s": "all tokens over the whole run, its beginning and end with it; ours: the "
    "tokens that arrived in the steady window",
    "TTFT p99, ms": "of all requests, the first ones among them; ours of the steady window",
}
REASONS = {  # why a tool's value is not ours: what its code does, and what the scenes show of it
    "vllm bench serve": _RATES | {
        "TTFT p50, ms": "from before its request's bytes leave (left late, ms) to the first event, "
        "which carries the role and no text; below that, how the server groups what comes together",
        "ITL p50, ms": "the gap from the first event to the first text is one of the gaps",
        "ITL p99, ms": "as p50; below that, how the server groups what comes together",
        "TPOT mean, ms": "from the first event, over all requests",
        "end to end p50, s": "to the last text, ours to the last byte; from before the bytes leave",
    },
    "GuideLLM": _RATES | {
        "TTFT p50, ms": "from when the connection is open",
        "ITL p50, ms": "one value an answer, the mean of its gaps; and its processes compute "
        "beside the server, whose own ITL mean is higher meanwhile",
        "ITL p99, ms": "one value an answer, the mean of its gaps: of answers, not of gaps",
        "TPOT mean, ms": "the time to the last text over all tokens: the first one's wait is in it",
        "end to end p50, s": "its processes compute beside the server, whose own ITL mean is "
        "higher meanwhile",
    },
}  # fmt: skip


# -- what each tool calls by the same name ------------------------------------------------------


def as_ours(run: Run) -> dict[str, float]:
    """Ours: the steady window, first text, every gap, the last byte."""
    found = measure.summary(run)
    return {
        "requests/s": found.requests_per_s,
        "output tokens/s": found.output_tokens_per_s,
        "TTFT p50, ms": found.ttft_p50_ms,
        "TTFT p99, ms": found.ttft_p99_ms,
        "ITL p50, ms": found.itl_p50_ms,
        "ITL p99, ms": found.itl_p99_ms,
        "TPOT mean, ms": float(np.mean(np.concatenate(samples(run, "tpot")))) * 1e3,
        "end to end p50, s": found.e2e_p50_s,
    }


def as_vllm(records: list[Record], role_at_once: bool = False) -> dict[str, float]:
    """``vllm bench serve``: its ``endpoint_request_func`` and ``calculate_metrics``.

    The first event of a stream is its first token, although it carries the role and no text; so
    the gap to the text is one of its gaps. An answer ends with its last token. The whole run
    counts. ``role_at_once``: the server sends that event when the request comes; otherwise it
    comes with the first text.
    """
    begins = [record.origin_s for record in records]
    firsts, gaps, tpots, ends = [], [], [], []
    for record, begin in zip(records, begins, strict=True):
        times = [record.sent_s + us / 1e6 for us in record.token_us]
        times.insert(0, record.sent_s if role_at_once else times[0])
        firsts.append(times[0] - begin)
        gaps.extend(np.diff(times))
        tpots.append((times[-1] - times[0]) / (record.output_tokens - 1))
        ends.append(times[-1] - begin)
    return {
        **_rates(records, max(record.end_s for record in records) - min(begins)),
        **_milliseconds("TTFT", firsts),
        **_milliseconds("ITL", gaps),
        "TPOT mean, ms": float(np.mean(tpots)) * 1e3,
        "end to end p50, s": float(np.median(ends)),
    }


def as_guidellm(records: list[Record]) -> dict[str, float]:
    """GuideLLM: its ``GenerativeRequestStats`` and ``GenerativeMetrics``.

    Times begin when the connection is open. Each answer has one inter-token latency, its mean, and
    percentiles are those of answers. Time per output token is the whole time to the last token
    over all tokens, so the first one's wait is in it. The whole run counts.
    """
    begin = min(record.sent_s for record in records)
    spans = [(r.token_us[0] / 1e6, r.token_us[-1] / 1e6, r.output_tokens) for r in records]
    means = [(last - first) / (tokens - 1) for first, last, tokens in spans]
    return {
        **_rates(records, max(record.end_s for record in records) - begin),
        **_milliseconds("TTFT", [first for first, _, _ in spans], method="inverted_cdf"),
        **_milliseconds("ITL", means, method="inverted_cdf"),
        "TPOT mean, ms": float(np.mean([last / tokens for _, last, tokens in spans])) * 1e3,
        "end to end p50, s": float(np.median([record.end_s - record.sent_s for record in records])),
    }


DEFINITIONS = {"vllm bench serve": as_vllm, "GuideLLM": as_guidellm}


def _rates(records: list[Record], span_s: float) -> dict[str, float]:
    tokens = sum(record.output_tokens for record in records)
    return {"requests/s": len(records) / span_s, "output tokens/s": tokens / span_s}


def _milliseconds(name: str, values: list[float], method: str = "linear") -> dict[str, float]:
    found = np.percentile(values, (50, 99), method=method) * 1e3
    return {f"{name} p{rank}, ms": float(one) for rank, one in zip((50, 99), found, strict=True)}


# -- the tools ----------------------------------------------------------------------------------


def ours(endpoint: Endpoint, seed: int, folder: Path, options, count: int = REQUESTS) -> dict:
    """Run ours; return what it says, and the same records by the others' definitions."""
    work = load.Synthetic(input_tokens=PROMPT, output_tokens=TOKENS, seed=seed)
    run = asyncio.run(
        load.run(
            endpoint, work, load.ClosedLoop(users=USERS), requests=count,
            path=folder / f"ours-{seed}.jsonl", server_every_s=None, progress=False,
        )
    )  # fmt: skip
    tokens = {
        "prompt tokens": sum(record.prompt_tokens for record in run.ok),
        "output tokens": sum(record.output_tokens for record in run.ok),
    }
    by = {tool: definition(run.ok) for tool, definition in DEFINITIONS.items()}
    return {"says": as_ours(run) | {"requests": len(run.ok)} | tokens, "by": by}


def vllm(endpoint: Endpoint, seed: int, folder: Path, options) -> dict:
    """Run ``vllm bench serve``."""
    command, how = compare.vllm(endpoint.origin, {"users": USERS}, REQUESTS, folder, options)
    more = (
        f"--model {endpoint.model} --temperature 0 --seed {seed} "
        "--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99 --save-detailed"
    )
    measured([*command, *more.split()], how, folder / "vllm.log")
    found = json.loads((folder / "vllm.json").read_text())
    return {
        "started": found["start_times"],
        "says": {
            "requests/s": found["request_throughput"],
            "output tokens/s": found["output_throughput"],
            "TTFT p50, ms": found["p50_ttft_ms"],
            "TTFT p99, ms": found["p99_ttft_ms"],
            "ITL p50, ms": found["p50_itl_ms"],
            "ITL p99, ms": found["p99_itl_ms"],
            "TPOT mean, ms": found["mean_tpot_ms"],
            "end to end p50, s": found["p50_e2el_ms"] / 1e3,
            "requests": found["completed"],
            "prompt tokens": found["total_input_tokens"],
            "output tokens": found["total_output_tokens"],
        },
    }


def guidellm(endpoint: Endpoint, seed: int, folder: Path, options) -> dict:
    """Run GuideLLM."""
    command, how = compare.guidellm(endpoint.origin, {"users": USERS}, REQUESTS, folder, options)
    model = f"model={endpoint.model},extras.body.temperature=0"
    words = [str(word).replace("model=mock", model) for word in command]
    measured([*words, "--seed", f"kind=static,value={seed}"], how, folder / "guidellm.log")
    [found] = json.loads((folder / "guidellm.json").read_text())["benchmarks"]
    told = {name: value["successful"] for name, value in found["metrics"].items() if _told(value)}
    ttft, itl = (
        told[name]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return {
        "says": {
            "requests/s": told["requests_per_second"]["mean"],
            "output tokens/s": told["output_tokens_per_second"]["mean"],
            "TTFT p50, ms": ttft["p50"],
            "TTFT p99, ms": ttft["p99"],
            "ITL p50, ms": itl["p50"],
            "ITL p99, ms": itl["p99"],
            "TPOT mean, ms": told["time_per_output_token_ms"]["mean"],
            "end to end p50, s": told["request_latency"]["percentiles"]["p50"],
            "requests": told["request_latency"]["count"],
            "prompt tokens": round(told["prompt_token_count"]["total_sum"]),
            "output tokens": round(told["output_token_count"]["total_sum"]),
        }
    }


TOOLS = {"ours": ours, "vllm bench serve": vllm, "GuideLLM": guidellm}


def _told(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("successful"), dict)


# -- the scenes ---------------------------------------------------------------------------------


def turns(rounds: int) -> Iterator[tuple[int, str]]:
    """Every tool once a round, beginning with another one in each: drift hits all alike."""
    for number in range(rounds):
        names = list(TOOLS)
        yield from ((number + 1, name) for name in names[number:] + names[:number])


def turn(endpoint: Endpoint, seed: int, tool: str, options, counted) -> dict:
    """Let a tool make its requests on a warm server, and see what other programs took meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        ours(endpoint, 1000 + seed, Path(name), options, count=2 * USERS)
        before, mine, begin = psutil.cpu_times(), _mine_s(), time.perf_counter()
        got = counted(seed, tool, Path(name))
        after, wall_s = psutil.cpu_times(), time.perf_counter() - begin
    busy_s = after.user + after.system - before.user - before.system
    got["others_cores"] = round((busy_s - (_mine_s() - mine)) / wall_s, 2)
    print(seed, tool, json.dumps(got), file=sys.stderr, flush=True)
    return got


def played(endpoint: Endpoint, options, counted) -> dict[str, list[dict]]:
    """Take all turns; one that other programs disturbed is repeated, the quietest counts."""
    found: dict[str, list[dict]] = {name: [] for name in TOOLS}
    for seed, tool in turns(options.rounds):
        tries: list[dict] = []
        while len(tries) < options.tries and not (tries and tries[-1]["others_cores"] < QUIET):
            tries.append(turn(endpoint, seed + 10 * len(tries), tool, options, counted))
        found[tool].append(min(tries, key=lambda one: one["others_cores"]))
    return found


def _mine_s() -> float:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in family)


def real(options) -> dict:
    """Run the tools on vLLM; what each says and what the server counted meanwhile."""
    with tempfile.TemporaryDirectory() as name, serve(Path(name), "--max-num-seqs", "32") as server:
        endpoint = server.endpoint

        def counted(seed: int, tool: str, folder: Path) -> dict:
            before = load.server_metrics(endpoint)
            got = TOOLS[tool](endpoint, seed, folder, options)
            got.pop("started", None)
            after = load.server_metrics(endpoint)
            grown = {key: after[key] - before[key] for key in after}
            means = {
                f"{name} mean, ms": grown[f"{key}_s_sum"] / grown[f"{key}_count"] * 1e3
                for name, key in {"TTFT": "ttft", "ITL": "itl"}.items()
            }
            tokens = {name: round(grown[key]) for name, key in COUNTED.items()}
            return got | {"server": tokens | means}

        return {"engine": endpoint.engine, **gathered(played(endpoint, options, counted))}


class Paced(PacedServer):
    """It, and whether the first event of a stream, which carries no text, comes at once."""

    def __init__(self, role_first: bool) -> None:
        command = [
            sys.executable,
            compare.HERE / "paced_server.py",
            "--ttft",
            str(TTFT),
            "--itl",
            str(ITL),
        ]
        pipe = subprocess.PIPE
        words = ["--role-first"] * role_first
        self.process = subprocess.Popen([*command, *words], stdin=pipe, stdout=pipe)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"


def sent(server: PacedServer) -> list[Record]:
    """The paced server's log as records: what a client without error would have seen."""
    with urllib.request.urlopen(f"{server.url}/log") as answer:
        log = json.load(answer)
    server.truth()  # which empties it
    return [
        Record(
            index=number,
            sent_s=arrived,
            end_s=times[-1],
            token_us=tuple(round((time - arrived) * 1e6) for time in times),
            output_tokens=len(times),
        )
        for number, (arrived, times) in enumerate(log)
        if times
    ]


def paced(options, role_first: bool) -> dict:
    """Run the tools on the paced server; what each says beside the log of that very run."""
    server = Paced(role_first)

    def counted(seed: int, tool: str, folder: Path) -> dict:
        server.truth()
        got = TOOLS[tool](endpoint, seed, folder, options)
        log = sent(server)
        by = {"vllm bench serve": lambda: as_vllm(log, role_first)}
        by["GuideLLM"] = lambda: as_guidellm(log)
        if started := got.pop("started", ()):
            arrived = sorted(record.sent_s for record in log)
            got["left late, ms"] = float(np.median(np.subtract(arrived, sorted(started)))) * 1e3
        return got | {
            "server": {
                "requests": len(log),
                "requests/s": len(log) / (max(one.end_s for one in log) - log[0].sent_s),
                **_milliseconds("TTFT", [record.ttft_s for record in log]),
                **_milliseconds("ITL", [gap for record in log for gap in record.itl_s]),
                "end to end p50, s": float(np.median([record.e2e_s for record in log])),
            },
            "server_by": by[tool]() if tool in by else {},
        }

    try:
        endpoint = Endpoint(base_url=f"{server.url}/v1", model="mock")
        return gathered(played(endpoint, options, counted))
    finally:
        server.close()


def gathered(found: dict[str, list[dict]]) -> dict:
    """Medians over the rounds, of each tool; and between which values they lay."""

    def middle(values: list) -> object:
        if isinstance(values[0], dict):
            return {key: middle([one[key] for one in values]) for key in values[0]}
        return float(f"{median(values):.4g}") if isinstance(values[0], float) else median(values)

    tools = {}
    for tool, rounds in found.items():
        says = [one["says"] for one in rounds]
        lowest = {key: min(one[key] for one in says) for key in says[0]}
        highest = {key: max(one[key] for one in says) for key in says[0]}
        tools[tool] = middle(rounds) | {
            "range": {key: [float(f"{low:.4g}"), float(f"{highest[key]:.4g}")]
                      for key, low in lowest.items()}
        }  # fmt: skip
    return {"rounds": max(len(rounds) for rounds in found.values()), "tools": tools}


def versions(options) -> dict[str, str]:
    """Of the tools, as their environments say."""

    def of(python: Path, name: str) -> str:
        code = f"import importlib.metadata; print(importlib.metadata.version('{name}'))"
        return subprocess.check_output([python, "-c", code], text=True).strip()

    return {
        "ours": of(Path(sys.executable), "llm-serving-course"),
        "vllm bench serve": of(options.vllm / "bin" / "python", "vllm"),
        "GuideLLM": of(options.guidellm / "bin" / "python", "guidellm"),
    }


def main() -> None:
    """Run both scenes and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", type=Path, default=VLLM_ENV)
    parser.add_argument("--guidellm", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--scenes", nargs="*", default=["vllm", "paced", "role first"])
    parser.add_argument("--path", type=Path, default=ASSETS / "three_tools.json")
    options = parser.parse_args()
    seen = json.loads(options.path.read_text()) if options.path.exists() else {}
    seen |= {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores ({_cpu()}), the tools beside the server",
        "model": "SmolLM2-135M-Instruct, bfloat16",
        "versions": versions(options),
        "reasons": REASONS,
        "work": {
            "users": USERS, "requests": REQUESTS, "prompt_tokens": PROMPT, "output_tokens": TOKENS,
            "paced_ttft_ms": TTFT * 1e3, "paced_itl_ms": ITL * 1e3,
        },
    }  # fmt: skip
    for scene in options.scenes:
        seen[scene] = real(options) if scene == "vllm" else paced(options, scene == "role first")
    options.path.write_text(json.dumps(seen, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
