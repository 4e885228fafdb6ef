"""Our client beside others on the same work in one run, against the paced server's own log.

``python tests/benchmarks/compare.py --tokenizer DIR --vllm VENV --guidellm VENV --aiperf VENV``

Each named environment's tool is run; ours, a plain AsyncOpenAI loop and the floor (a protocol that
only stamps what it reads, ``bare_protocol.py``) always are. ``DIR`` is a Hugging Face tokenizer for
the tools that count tokens themselves. What is printed, a tool a line:

* tokens per second, and CPU per token of the whole run, of all processes of the tool;
* steady CPU per token: start-up is taken out by a second, short run of the same command,
* peak memory of the process tree,
* TTFT error: what the tool reports minus what the server's log says, mean and p99,
* ITL p99 as reported and as the server sent it.

Then ours alone: 5,000 streams at once, and open loops of 2,000 requests a second, fixed and
Poisson: what was lost, the rate that was kept, how late requests were sent, CPU and memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

HERE = Path(__file__).resolve().parent
TOKENS, PROMPT = 64, 32
SCENES = {
    "client-bound": {"ttft": 0.0, "itl": 0.0, "users": 256, "requests": 2000, "short": 256},
    "paced": {"ttft": 0.1, "itl": 0.01, "users": 512, "requests": 4096, "short": 1024},
}
ALONE = {  # arrivals, tokens an answer, the limit, and the server's pace
    "5,000 streams": ("ClosedLoop(users=5000)", 4, "requests=5000", (6.0, 1.0)),
    "2,000/s fixed": ("Constant(every_s=0.0005)", 2, "duration_s=8", (0.02, 0.001)),
    "2,000/s Poisson": ("Poisson(rate_per_s=2000)", 2, "duration_s=8", (0.02, 0.001)),
}


class PacedServer:
    """The mock server in a process of its own."""

    def __init__(self, ttft: float, itl: float) -> None:
        command = [sys.executable, HERE / "paced_server.py", "--ttft", str(ttft), "--itl", str(itl)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def truth(self) -> dict[str, float]:
        """What the log says since it was last emptied; empties it."""
        with urllib.request.urlopen(f"{self.url}/log") as answer:
            log = json.load(answer)
        request = urllib.request.Request(f"{self.url}/log", method="DELETE")
        urllib.request.urlopen(request).close()
        ttft = [times[0] - arrived for arrived, times in log if times]
        gaps = np.concatenate([np.diff(times) for _, times in log if times])
        span = max(times[-1] for _, times in log) - min(arrived for arrived, _ in log)
        return {
            "requests": len(log),
            "ttft_mean": np.mean(ttft) * 1e3,
            "ttft_p99": np.percentile(ttft, 99) * 1e3,
            "itl_p99": np.percentile(gaps, 99) * 1e3,
            "span_s": span,
        }

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def our_run(url: str, arrivals: str, tokens: int, limit: str, folder: Path) -> tuple[list, dict]:
    code = (
        "import asyncio\nfrom helpers import load\nfrom helpers.endpoint import Endpoint\n"
        f"work = load.Synthetic(input_tokens={PROMPT}, output_tokens={tokens})\n"
        f"run = asyncio.run(load.run(Endpoint(base_url='{url}/v1', model='mock'), work,\n"
        f"    load.{arrivals}, {limit}, progress=False,\n"
        f"    server_every_s=None, path='{folder}/run.jsonl'))\nprint(run)\n"
    )
    return [sys.executable, "-c", code], {"cwd": HERE.parents[1]}


def ours(url: str, scene: dict, count: int, folder: Path, options) -> tuple[list, dict]:
    return our_run(url, f"ClosedLoop(users={scene['users']})", TOKENS, f"requests={count}", folder)


def read_ours(folder: Path) -> dict:
    from helpers.records import Run

    run = Run.read(folder / "run.jsonl")
    ttft = [record.ttft_s * 1e3 for record in run.ok]
    gaps = [gap * 1e3 for record in run.ok for gap in record.itl_s]
    return _reported(len(run.ok), ttft, gaps) | {"says": repr(run).rpartition(", ")[2].rstrip(")")}


def script(name: str) -> Callable:
    """Return what makes the command of a client that is a script beside this one."""

    def command(url: str, scene: dict, count: int, folder: Path, options) -> tuple[list, dict]:
        numbers = [str(scene["users"]), str(count), str(TOKENS)]
        return [sys.executable, HERE / name, f"{url}/v1", *numbers, folder / "script.json"], {}

    return command


def read_script(folder: Path) -> dict:
    found = json.loads((folder / "script.json").read_text())
    return _reported(len(found["ttft"]), found["ttft"], found["gaps"])


def vllm(url: str, scene: dict, count: int, folder: Path, options) -> tuple[list, dict]:
    words = (
        f"bench serve --backend openai-chat --base-url {url} --endpoint /v1/chat/completions "
        f"--model mock --tokenizer {options.tokenizer} --dataset-name random --random-input-len "
        f"{PROMPT} --random-output-len {TOKENS} --num-prompts {count} --max-concurrency "
        f"{scene['users']} --ignore-eos --save-result --result-dir {folder} "
        f"--result-filename vllm.json --percentile-metrics ttft,itl --metric-percentiles 99"
    )
    return [options.vllm / "bin" / "vllm", *words.split()], {"offline": True}


def read_vllm(folder: Path) -> dict:
    found = json.loads((folder / "vllm.json").read_text())
    return {
        "done": found["completed"],
        "ttft_mean": found["mean_ttft_ms"],
        "ttft_p99": found["p99_ttft_ms"],
        "itl_p99": found["p99_itl_ms"],
    }


def guidellm(url: str, scene: dict, count: int, folder: Path, options) -> tuple[list, dict]:
    words = (
        f"benchmark run --backend kind=openai_http,target={url},model=mock "
        f"--profile kind=concurrent,streams={scene['users']} "
        f"--constraint kind=max_requests,count={count} "
        f"--tokenizer kind=hf_auto,model={options.tokenizer} "
        f"--data kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS} "
        f"--output kind=json,path={folder}/guidellm.json --disable-console-interactive"
    )
    words = words.removeprefix("benchmark ")
    return [options.guidellm / "bin" / "guidellm", *words.split()], {"offline": True}


def read_guidellm(folder: Path) -> dict:
    found = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    ttft = found["time_to_first_token_ms"]["successful"]
    itl = found["inter_token_latency_ms"]["successful"]
    return {
        "done": ttft["count"],
        "ttft_mean": ttft["mean"],
        "ttft_p99": ttft["percentiles"]["p99"],
        "itl_p99": itl["percentiles"]["p99"],
    }


def aiperf(url: str, scene: dict, count: int, folder: Path, options) -> tuple[list, dict]:
    words = (
        f"profile -m mock --url {url} --endpoint-type chat --streaming --tokenizer "
        f"{options.tokenizer} --concurrency {scene['users']} --request-count {count} "
        f"--synthetic-input-tokens-mean {PROMPT} --output-tokens-mean {TOKENS} --ui none "
        f"--use-server-token-count --output-artifact-dir {folder}/aiperf"
    )
    return [options.aiperf / "bin" / "aiperf", *words.split()], {}


def read_aiperf(folder: Path) -> dict:
    found = json.loads(next((folder / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    ttft, gaps = found["time_to_first_token"], found.get("inter_chunk_latency", {})
    return {
        "done": int(found["request_count"]["avg"]),
        "ttft_mean": ttft["avg"],
        "ttft_p99": ttft["p99"],
        "itl_p99": gaps.get("p99", float("nan")),
    }


def _reported(done: int, ttft: list[float], gaps: list[float]) -> dict:
    return {
        "done": done,
        "ttft_mean": np.mean(ttft),
        "ttft_p99": np.percentile(ttft, 99),
        "itl_p99": np.percentile(gaps, 99),
    }


CLIENTS = {
    "ours": (ours, read_ours),
    "bare protocol": (script("bare_protocol.py"), read_script),
    "AsyncOpenAI": (script("openai_loop.py"), read_script),
    "vllm": (vllm, read_vllm),
    "guidellm": (guidellm, read_guidellm),
    "aiperf": (aiperf, read_aiperf),
}


def measured(command: list, how: dict, log: Path) -> dict[str, float]:
    """Run a command; return wall and CPU seconds and the peak memory of its process tree."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # aiperf fails with these
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    if how.get("offline"):
        environment |= offline
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env=environment, cwd=how.get("cwd"),
        )  # fmt: skip
        peak, over = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, over))
        watcher.start()
        process.wait()
        over.set()
        watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{log.read_text()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - begin, "cpu": cpu, "peak_mb": peak[0]}


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    while not over.wait(0.1):
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            peak[0] = max(peak[0], sum(one.memory_info().rss for one in tree) / 1e6)
        except psutil.NoSuchProcess:
            continue


def compare(name: str, options) -> pd.DataFrame:
    """Run every client on one scene."""
    scene, rows = SCENES[name], {}
    for client, (make, read) in CLIENTS.items():
        if client not in options.only or (
            client in ("vllm", "guidellm", "aiperf") and not getattr(options, client)
        ):
            continue
        server = PacedServer(scene["ttft"], scene["itl"])
        try:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                short = measured(*make(server.url, scene, scene["short"], folder, options),
                                 folder / "log")  # fmt: skip
                server.truth()
                cost = measured(*make(server.url, scene, scene["requests"], folder, options),
                                folder / "log")  # fmt: skip
                truth, said = server.truth(), read(folder)
        except RuntimeError as failure:  # one tool that fails does not spoil the others' rows
            print(f"{name}: {client}: {failure}", file=sys.stderr, flush=True)
            continue
        finally:
            server.close()
        tokens = said["done"] * TOKENS
        more = (scene["requests"] - scene["short"]) * TOKENS
        rows[client] = {
            "done": said["done"],
            "tokens_per_s": tokens / truth["span_s"],
            "cpu_us_per_token": cost["cpu"] / tokens * 1e6,
            "steady_cpu_us_per_token": (cost["cpu"] - short["cpu"]) / more * 1e6,
            "wall_s": cost["wall"],
            "peak_mb": cost["peak_mb"],
            "ttft_true_ms": truth["ttft_mean"],
            "ttft_error_ms": said["ttft_mean"] - truth["ttft_mean"],
            "ttft_p99_error_ms": said["ttft_p99"] - truth["ttft_p99"],
            "itl_p99_ms": said["itl_p99"],
            "itl_p99_true_ms": truth["itl_p99"],
        }
        print(f"{name}: {client} done, {said.get('says', '')}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).T
    for place, cpu in ((3, "cpu"), (5, "steady_cpu")):
        column = table[f"{cpu}_us_per_token"]
        table.insert(place, f"{cpu}_x_ours", column / column["ours"])
    return table


def alone() -> pd.DataFrame:
    """Run what only ours is asked to carry."""
    from helpers.records import Run

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = {}
    for name, (arrivals, tokens, limit, pace) in ALONE.items():
        server = PacedServer(*pace)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            command = our_run(server.url, arrivals, tokens, limit, folder)
            cost = measured(*command, folder / "log")
            run = Run.read(folder / "run.jsonl")
        server.close()
        sent = sorted(record.sent_s for record in run.records)
        late = [record.lag_s * 1e3 for record in run.records]
        rows[name] = {
            "asked": len(run.records),
            "lost": sum(not record.ok or record.output_tokens != tokens for record in run.records),
            "per_s": (len(sent) - 1) / (sent[-1] - sent[0]),
            "lag_p50_ms": np.percentile(late, 50),
            "lag_p99_ms": np.percentile(late, 99),
            "probe_p99_ms": run.ends[0]["lag_p99_ms"],
            "core": max(end["cpu_s"] / end["wall_s"] for end in run.ends),
            "peak_mb": cost["peak_mb"],
        }
    return pd.DataFrame(rows).T


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("tokenizer", "vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--scenes", nargs="+", default=[*SCENES, "alone"],
                        choices=[*SCENES, "alone"])  # fmt: skip
    parser.add_argument("--only", nargs="+", default=list(CLIENTS), choices=CLIENTS)
    options = parser.parse_args()
    for name in [name for name in options.scenes if name in SCENES]:
        table = compare(name, options)
        print(
            f"\n{name}: {SCENES[name]}, {TOKENS} tokens each, load average {os.getloadavg()[0]:.1f}"
        )
        print(table.round(2).to_string())
    if "alone" in options.scenes:
        print(f"\nours alone, load average {os.getloadavg()[0]:.1f}")
        print(alone().round(2).to_string())


if __name__ == "__main__":
    main()
