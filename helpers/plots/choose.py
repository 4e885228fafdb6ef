"""Pictures for choosing a GPU: where its memory goes, how fast it can be, what a token costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter

from helpers.choose import sizing
from helpers.choose.models import ModelShape, shape
from helpers.plots.load import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE
from helpers.plots.picture import Picture

_PARTS = (("weights", BLUE), ("rest", ORANGE), ("kv", GREEN), ("idle", "#d0d7de"))
_NAMES = {
    "weights": "weights",
    "rest": "activations and the rest",
    "kv": "KV cache",
    "idle": "left alone",
}


def vram(models: Sequence[ModelShape], gpus: Sequence[str], context: int = 4096) -> Picture:
    """How each GPU's memory is split, one panel a model; beside it, what the KV cache holds.

    Args:
        models: what is served, one panel each.
        gpus: names of ``assets/gpus.csv``, one bar each.
        context: length of the sequences that are counted, tokens.
    """
    with rc_context(STYLE):
        figure = Picture(figsize=(9, 1.8 + 0.26 * len(gpus)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(models), sharey=True))
        for axes, model in zip(panels, models, strict=True):
            for row, name in enumerate(gpus):
                _bar(axes, row, model, sizing.gpu(name), context)
            axes.set_title(f"{model.precision.upper()}: {model.weights_gb():.1f} GB of weights")
            axes.text(102, -0.65, f"sequences\nof {context:,}", fontsize=8, color=GREY, va="bottom")
            axes.set_xlim(0, 128)
            axes.set_xticks(range(0, 101, 25))
            axes.set_xlabel("share of the GPU's memory, %")
            axes.grid(axis="y", visible=False)
        labels = [f"{name} ({sizing.gpu(name).usable_gib:.0f} GiB)" for name in gpus]
        panels[0].set_yticks(range(len(gpus)), labels)
        panels[0].invert_yaxis()
        handles = [Patch(color=color, label=_NAMES[part]) for part, color in _PARTS]
        if not all(_fits(model, name) for model in models for name in gpus):
            handles.insert(1, Patch(color=RED, label="weights that do not fit"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        held = (
            f"{sum(_fits(model, name) for name in gpus)} in {model.precision.upper()}"
            for model in models
        )
        title = f"Of {len(gpus)} GPUs, {' and '.join(held)} can serve {models[0].name}"
        figure.alt = (
            f"Stacked bars, a GPU each, {gpus[0]} to {gpus[-1]}: weights, activations, KV cache, "
            f"memory left alone. {title}."
        )
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _bar(axes, row: int, model: ModelShape, gpu: sizing.Gpu, context: int) -> None:
    split = sizing.memory(model, gpu)
    left = 0.0
    for part, color in _PARTS:
        width = 100 * getattr(split, f"{part}_gib") / gpu.usable_gib
        if not split.kv_tokens and part == "weights":
            color = RED
        axes.barh(row, min(width, 100 - left), left=left, color=color, height=0.7)
        left = min(100, left + width)
    count = split.sequences(context)
    axes.text(102, row, f"{count:,.0f}" if count >= 1 else "none", va="center", fontsize=9)


def _fits(model: ModelShape, name: str) -> bool:
    return sizing.memory(model, sizing.gpu(name)).kv_tokens > 0


def roofline(measured: pd.DataFrame) -> Picture:
    """Roofs of the measured GPUs and what was reached under them.

    Args:
        measured: what :func:`helpers.choose.sizing.measurements` returned.
    """
    names = list(dict.fromkeys(measured.gpu))
    colors = dict(zip(names, (BLUE, PURPLE, GREEN, ORANGE, RED), strict=False))
    with rc_context(STYLE):
        figure = Picture(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        x = np.geomspace(0.7, 1000, 200)
        for name in names:
            gpu = sizing.gpu(name)
            roof = np.minimum(x * gpu.bandwidth_gb_s / 1000, gpu.fp16_tflops)
            axes.plot(x, roof, color=colors[name], label=f"roof of the {name}")
            axes.scatter(*_points(measured[measured.gpu == name]), color=colors[name], zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FormatStrFormatter("%g"))
        axes.set_xlabel("FLOPs for each byte read from memory (grows with the batch)")
        axes.set_ylabel("TFLOP/s spent on tokens")
        axes.set_title("lines: published bandwidth and tensor rate; dots: published vLLM runs")
        axes.legend(loc="upper left")
        axes.text(1.2, 0.2, "sloped: memory-bound", color=GREY, fontsize=9)
        axes.text(250, 60, "flat: compute-bound", color=GREY, fontsize=9)
        low, high = 100 * measured.of_bound.min(), 100 * measured.of_bound.max()
        title = f"No run is above its roof: {low:.0f}-{high:.0f} % of the bound is reached"
        figure.alt = (
            "Log-log plot of TFLOP/s against FLOPs for each byte: a rising and then flat roof for "
            f"each of {', '.join(names)}, and {len(measured)} published runs under them. {title}."
        )
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _points(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Where each run lies: its decode step's intensity, and the FLOP/s its tokens took."""
    x, y = [], []
    for row in rows.itertuples():
        model = shape(row.model, row.precision)
        x.append(sizing.intensity(model, row.users, row.prompt_tokens + row.output_tokens / 2))
        y.append(2 * model.linear(model.experts_per_token) * row.tokens_per_s / 1e12)
    return x, y


def cost(table: pd.DataFrame) -> Picture:
    """What a million output tokens cost on each GPU, from published runs and listed prices.

    Args:
        table: columns ``gpu``, ``model``, ``precision``, ``users`` and ``usd_per_million``.
    """
    rows = table.sort_values("usd_per_million").reset_index(drop=True)
    first, last = rows.iloc[0], rows.iloc[-1]
    with rc_context(STYLE):
        figure = Picture(figsize=(8, 1.4 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        times = last.usd_per_million / first.usd_per_million
        title = f"A token from the {last.gpu} costs {times:.1f} times one from the {first.gpu}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        axes.set_title("published vLLM runs at full load, cheapest listed price")
        axes.barh(rows.index, rows.usd_per_million, color=BLUE, height=0.6)
        for row in rows.itertuples():
            precision = row.precision.upper()
            model = row.model if precision in row.model else f"{row.model} {precision}"
            what = f" ${row.usd_per_million:.3f}: {model}, {row.users} users"
            axes.annotate(what, (row.usd_per_million, row.Index), va="center", fontsize=9)
        axes.set_yticks(rows.index, rows.gpu)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 2 * rows.usd_per_million.max())
        axes.set_xlabel("US dollars per million output tokens")
    return figure
