"""What fits on a GPU and how fast it can go: VRAM, KV cache and roofline, each with its source.

Every figure here is arithmetic on published specifications, none is a measurement. A *bound* is
what no software can beat on that hardware; *expected* is the bound times :data:`EFFICIENCY`, or
times what :func:`efficiency` makes of your own runs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from helpers.choose import prices
from helpers.choose.gpus import Gpu, gpu
from helpers.choose.models import ModelShape, shape
from helpers.errors import CourseError
from helpers.settings import ASSETS

GIB = 2**30
#: Share of the roofline that vLLM reaches: about the middle of what the published runs in
#: ``assets/measurements.csv`` reach (median 68 %; with a single user 52-81 %).
EFFICIENCY = 0.7
#: VRAM that is neither weights nor KV cache, GiB: activation peak 1.26 and non-PyTorch memory
#: 0.35 in published start-up logs of 8B models (vLLM PR 10511, issue 10517). Your own log says it
#: exactly; long prompts without chunked prefill need far more (9.5 in issue 12330).
REST_GIB = 1.6
#: vLLM's default ``--gpu-memory-utilization``.
UTILIZATION = 0.92
#: Measured / bound: one number, or one for each way to the roofline's bend (its index).
Share = float | pd.Series


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the VRAM goes, GiB; ``idle_gib`` is what ``--gpu-memory-utilization`` leaves unused.

    ``copies`` is how often the GPUs together hold the same piece of the cache.
    """

    model: ModelShape
    weights_gib: float
    rest_gib: float
    kv_gib: float
    idle_gib: float
    copies: float = 1.0

    def sequences(self, context: float) -> float:
        """How many sequences of ``context`` tokens the KV cache holds at once (vLLM logs it)."""
        return self.kv_gib * GIB / (self.model.kv_bytes(context) * self.copies)

    @property
    def kv_tokens(self) -> int:
        """Tokens in the cache when every sequence is as long as the model allows, as vLLM says."""
        return int(self.sequences(self.model.context) * self.model.context)


def kv_cache_gib(total: float, weights: float, rest: float, utilization: float) -> float:
    """What vLLM gives to the KV cache, all GiB: ``total x utilization - weights - rest``.

    ``rest`` is the activation peak plus non-PyTorch memory (vLLM, ``gpu_worker.py``,
    ``determine_available_memory``; the start-up log prints each term). Never below zero.

    >>> kv = kv_cache_gib(39.50, weights=14.96, rest=9.37 + 0.10, utilization=0.90)
    >>> round(kv, 2)  # vLLM issue 12330
    11.12
    """
    return max(0.0, total * utilization - weights - rest)


def memory(
    model: ModelShape, gpu: Gpu, utilization: float = UTILIZATION, rest_gib: float = REST_GIB
) -> Memory:
    """Split the VRAM into weights, KV cache and the rest, as vLLM does at its start.

    Args:
        model: what is served.
        gpu: on which GPU, or GPUs.
        utilization: vLLM's ``--gpu-memory-utilization``.
        rest_gib: activation peak and non-PyTorch memory of one GPU, GiB.
    """
    weights, rest = model.weights_gb() * 1e9 / GIB, rest_gib * gpu.count
    kv = kv_cache_gib(gpu.usable_gib, weights, rest, utilization)
    # With more GPUs than KV heads the heads are replicated, and with them the cache.
    copies, idle = max(1.0, gpu.count / model.kv_heads), gpu.usable_gib * (1 - utilization)
    gib = {"weights_gib": weights, "rest_gib": rest, "kv_gib": kv, "idle_gib": idle}
    return Memory(model=model, copies=copies, **gib)


def decode_step_s(model: ModelShape, gpu: Gpu, batch: int, context: float) -> float:
    """Shortest time of one decode step (one token for each of ``batch`` sequences), seconds.

    The roofline (Williams et al., CACM 52(4), 2009) with every weight and every cached key and
    value read once, and 2 FLOPs a parameter and token (arXiv:2001.08361, section 2.1; for
    inference arXiv:2211.05102): ``max(bytes / bandwidth, FLOPs / rate)``.
    """
    gigabytes, flops = _decode_work(model, batch, context)
    return max(gigabytes / gpu.bandwidth_gb_s, flops / gpu.tflops(model.precision) / 1e12)


def _share(efficiency: Share, model: ModelShape, gpu: Gpu, batch: int, context: float) -> float:
    """The share expected of such a decode step: between two runs straight over a logarithm, before
    the first run and beyond the last as in that one.
    """
    if not isinstance(efficiency, pd.Series):
        return efficiency
    far = np.log(_to_bend(model, gpu, batch, context))
    return float(np.interp(far, np.log(efficiency.index), efficiency))


def _to_bend(model: ModelShape, gpu: Gpu, batch: int, context: float) -> float:
    """Time for the arithmetic of a decode step / for its reading: from 1 on it is compute-bound."""
    gigabytes, flops = _decode_work(model, batch, context)
    return flops / gpu.tflops(model.precision) / 1e12 * gpu.bandwidth_gb_s / gigabytes


def _batch(model: ModelShape, gpu: Gpu, users: int, context: float) -> int:
    """How many of the users' sequences are computed at once: those that fit into the cache."""
    return max(1, min(users, int(memory(model, gpu).sequences(context))))


def _decode_work(model: ModelShape, batch: int, context: float) -> tuple[float, float]:
    kv_gb = batch * model.kv_bytes(context) / 1e9
    return model.weights_gb(batch) + kv_gb, 2 * model.linear(model.experts_per_token) * batch


def prefill_s(model: ModelShape, gpu: Gpu, tokens: int) -> float:
    """Shortest time to read a prompt of ``tokens``, seconds: the floor of time to first token.

    As :func:`decode_step_s` with all tokens in one step, plus the ``2 x layers x heads x head_dim
    x tokens^2`` FLOPs of causal attention, of which a sliding window leaves out what is too old.
    """
    read_s = model.weights_gb(tokens) / gpu.bandwidth_gb_s
    return max(read_s, _prefill_compute_s(model, gpu, tokens))


def _prefill_compute_s(model: ModelShape, gpu: Gpu, tokens: int) -> float:
    flops = 2 * model.linear(model.experts_per_token) * tokens
    for layer in model.layers:
        near = min(tokens, layer.window or tokens)
        flops += layer.scores * near * (2 * tokens - near)
    return flops / gpu.tflops(model.precision) / 1e12


def tokens_per_s(
    model: ModelShape, gpu: Gpu, users: int, prompt_tokens: int, output_tokens: int
) -> float:
    """Most output tokens per second of ``users`` who each ask again as soon as they are answered.

    One round serves a request of each: the prompts are computed (their weights are read along with
    a decode step's), and every output token is one step of the batch at its half-way context. The
    cache holds sequences of every age, so that context also says how many fit; the others wait.

    Args:
        model: what is served.
        gpu: on which GPU, or GPUs.
        users: concurrent users.
        prompt_tokens: tokens of a prompt.
        output_tokens: tokens of an answer.

    Returns:
        A bound, over all users; :data:`EFFICIENCY` times that is expected.
    """
    context = prompt_tokens + output_tokens / 2
    batch = _batch(model, gpu, users, context)
    step_s = decode_step_s(model, gpu, batch, context)
    round_s = batch * _prefill_compute_s(model, gpu, prompt_tokens) + output_tokens * step_s
    return batch * output_tokens / round_s


def rank(
    offers: pd.DataFrame,
    model: ModelShape,
    *,
    users: int,
    context: int,
    min_tokens_per_s: float = 0.0,
    efficiency: Share = EFFICIENCY,
) -> pd.DataFrame:
    """The cheapest offers that carry a load, and why the others do not.

    Args:
        offers: what :func:`helpers.choose.prices.offers` returned.
        model: what is served.
        users: sequences that must be in the KV cache at the same time.
        context: tokens of each of them, prompt and answer.
        min_tokens_per_s: objective for each user's stream, tokens a second.
        efficiency: share of the bound that is expected, or what :func:`efficiency` made of runs.

    Returns:
        The offers with ``sequences`` (how many of that context fit), ``user_tokens_per_s``
        (expected when every context is full), ``confidence`` in the GPU's published figures, and
        ``reason``, empty where nothing speaks against it. Those come first, the cheapest on top.
    """
    machines = offers[["gpu", "gpu_count"]].drop_duplicates().to_dict("records")
    load = (users, context, min_tokens_per_s, efficiency)
    judged = [_judge(model, machine, load) for machine in machines]
    names = ["gpu", "gpu_count", "sequences", "user_tokens_per_s", "reason"]
    table = offers.merge(pd.DataFrame(judged, columns=names), on=names[:2], how="left")
    table = table.merge(prices.gpus()[["gpu", "confidence"]], on="gpu", how="left")
    table["fails"] = table.reason != ""
    return table.sort_values(["fails", "usd_per_hour"], ignore_index=True).drop(columns="fails")


def _judge(model: ModelShape, found: dict[Any, Any], load: tuple) -> dict[Any, Any]:
    """What so many GPUs can be expected to do, and why the load does not fit on them, if so."""
    users, context, min_tokens_per_s, efficiency = load
    if context > model.context:
        return found | {"reason": f"the model was made for {model.context:,} tokens"}
    try:
        machine = gpu(found["gpu"], found["gpu_count"])
    except CourseError:
        return found | {"reason": "no published specification in assets/gpus.csv"}
    split = memory(model, machine)
    sequences = split.sequences(context)
    share = _share(efficiency, model, machine, users, context)
    speed = share / decode_step_s(model, machine, users, context)
    found = found | {"sequences": sequences, "user_tokens_per_s": speed, "reason": ""}
    if not split.kv_tokens:
        needed, room = split.weights_gib + split.rest_gib, machine.usable_gib - split.idle_gib
        found["reason"] = f"weights and the rest need {needed:.1f} of {room:.1f} GiB: no KV cache"
    elif sequences < users:
        found["reason"] = f"KV cache holds {sequences:.1f} of {users} sequences"
    elif speed < min_tokens_per_s:
        found["reason"] = f"{speed:.0f} tokens/s a user, {min_tokens_per_s:.0f} wanted"
    return found


def measurements(runs: pd.DataFrame | None = None, efficiency: Share = EFFICIENCY) -> pd.DataFrame:
    """Measured vLLM runs beside what :func:`tokens_per_s` says of the same.

    Args:
        runs: rows of ``gpu, model, precision, users, prompt_tokens, output_tokens, tokens_per_s``;
            by default the published ones of ``assets/measurements.csv``.
        efficiency: as in :func:`rank`.

    Returns:
        The runs with ``bound`` and ``expected`` (output tokens per second over all users),
        ``of_bound`` (measured / bound), ``error`` (expected / measured - 1), and ``to_bend``: time
        for the arithmetic of a decode step / for its reading, 1 at the roofline's bend.

    Raises:
        CourseError: there are no runs, a column is missing, a number is not one above 0, or a GPU
            or a model is not in the tables.
    """
    if runs is None:
        runs = pd.read_csv(ASSETS / "measurements.csv", dtype={"date": str}).fillna({"note": ""})
    names = ["users", "prompt_tokens", "output_tokens", "tokens_per_s"]
    numbers = runs.infer_objects().select_dtypes("number").reindex(columns=names)
    if runs.empty or {"gpu", "model", "precision"} - {*runs} or not (numbers > 0).all(axis=None):
        what = f"no run, or one without gpu, model, precision or {', '.join(names)} above 0"
        raise CourseError(what, "run 04 on a rented GPU, and leave out what failed")
    table, rows = runs.copy(), []
    for run in runs.to_dict("records"):
        model, machine = shape(run["model"], run["precision"]), gpu(str(run["gpu"]))
        users, prompt, output = run["users"], run["prompt_tokens"], run["output_tokens"]
        batch = _batch(model, machine, users, context := prompt + output / 2)
        share = _share(efficiency, model, machine, batch, context)
        bound = tokens_per_s(model, machine, users, prompt, output)
        rows.append((bound, share * bound, _to_bend(model, machine, batch, context)))
    table[["bound", "expected", "to_bend"]] = rows
    table["of_bound"] = table.tokens_per_s / table.bound
    table["error"] = table.expected / table.tokens_per_s - 1
    return table


def efficiency(runs: pd.DataFrame) -> pd.Series:
    """What share of the bound vLLM reaches, by runs on your GPU, to predict the same on others.

    Take runs of the model and precision that you mean to serve: another format of the weights is
    another program on the GPU. Of several equal runs the median counts.

    Args:
        runs: as in :func:`measurements`; their bound is worked out anew.

    Returns:
        Measured / bound over ``to_bend``, ascending; its minimum and maximum are the spread.

    Raises:
        CourseError: as in :func:`measurements`, or a run is much faster than its bound: it was of
            another GPU, model or precision, or prompts came from a cache.
    """
    table = measurements(runs)
    if not (table.of_bound <= 1.2).all():  # a little, since data sheets differ
        raise CourseError("a run beats its bound", "check gpu, model, precision, cached prompts")
    return table.groupby("to_bend").of_bound.median()
