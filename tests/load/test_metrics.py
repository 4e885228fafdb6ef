"""The server's own figures, on llama.cpp; ``test_vllm.py`` has vLLM's."""

import asyncio
import time
from itertools import chain

import pytest

from helpers import load
from helpers.endpoint import Endpoint
from helpers.load import metrics


def test_llamacpp_says_what_it_can(endpoint):
    """While an answer runs it counts as one; what llama.cpp does not tell is missing, not 0."""
    before = load.server_metrics(endpoint)
    answer = endpoint.client().chat.completions.create(
        model=endpoint.model,
        messages=[{"role": "user", "content": "Count to a hundred."}],
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(answer))
    during = load.server_metrics(endpoint)
    answer.close()
    assert (before["running"], during["running"], during["waiting"]) == (0, 1, 0)
    deadline = time.monotonic() + 10
    while load.server_metrics(endpoint)["running"]:  # the client has gone: llama.cpp gives up, too
        assert time.monotonic() < deadline
        time.sleep(0.1)
    after = load.server_metrics(endpoint)
    assert (
        before["output_tokens_total"]
        < after["output_tokens_total"]
        < before["output_tokens_total"] + 400
    )
    assert after["prompt_tokens_total"] > before["prompt_tokens_total"]
    assert after["itl_s_sum"] > before["itl_s_sum"]
    assert metrics.NAMES.keys() - after.keys() == {
        *("kv_cache_usage", "prefix_cache_hits", "prefix_cache_queries"),
        *("ttft_s_sum", "ttft_count", "itl_count"),
    }


def test_several_engines_on_one_server():
    """Data parallel vLLM has a label for each engine: counts add up, a share stays a share."""
    text = "".join(
        f'vllm:{name}{{engine="{engine}",model_name="m"}} {value}\n'
        for engine in (0, 1)
        for name, value in (("num_requests_running", 3), ("kv_cache_usage_perc", 0.5 + engine / 4))
    )
    read = metrics.parse(text)
    assert read["running"] == 6
    assert read["kv_cache_usage"] == pytest.approx(0.625)


def test_older_names_of_vllm_are_read():
    """Renamed on the way to 0.11; a server that says both is not counted twice."""
    old = {
        "gpu_cache_usage_perc": 0.42,
        "cpu_cache_usage_perc": 0.0,
        "gpu_prefix_cache_hits_total": 7,
        "gpu_prefix_cache_queries_total": 9,
        "time_per_output_token_seconds_sum": 3,
        "time_per_output_token_seconds_count": 60,
    }
    text = "".join(f'vllm:{name}{{model_name="m"}} {value}\n' for name, value in old.items())
    read = metrics.parse(text)
    assert (read["kv_cache_usage"], read["prefix_cache_hits"], read["prefix_cache_queries"]) == (
        0.42,
        7,
        9,
    )
    assert (read["itl_s_sum"], read["itl_count"]) == (3, 60)
    assert metrics.parse(text + "vllm:kv_cache_usage_perc 0.42\n")["kv_cache_usage"] == 0.42


def test_not_a_number_is_not_said():
    """Prometheus allows NaN; one of two engines that says it must not spoil the other's share."""
    text = 'vllm:kv_cache_usage_perc{engine="0"} NaN\n'
    assert "kv_cache_usage" not in metrics.parse(text)
    text += 'vllm:kv_cache_usage_perc{engine="1"} 0.5\n'
    assert metrics.parse(text)["kv_cache_usage"] == 0.5


def test_the_table_names_every_metric():
    """What `load.server_metrics` documents is what is read."""
    table = load.server_metrics.__doc__
    for name in (*metrics.NAMES, *chain(*metrics.NAMES.values())):
        words = name.removesuffix("_count").removesuffix("_sum")
        assert words in table, name


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num_requests_running 1\n",
        b"NONSENSE\r\n\r\n",
    ],
)
async def test_broken_metrics_are_none(raw):
    """The server's own view is an extra: a broken one costs nothing else."""

    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m")
    assert await asyncio.to_thread(load.server_metrics, endpoint) is None
    server.close()
