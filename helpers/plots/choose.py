"""The figures for choosing a GPU (notebook 00): its memory, its speed, the price of a token."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.choose import sizing
from helpers.choose.models import ModelShape
from helpers.plots.style import BLUE, GREEN, GREY, ORANGE, PALE, RED, Picture, bars, picture, styled

_PARTS = ["weights", "activations", "KV cache", "left unused", "weights that do not fit"]
_COLORS = BLUE, ORANGE, GREEN, PALE, RED


@styled
def vram(models: Sequence[ModelShape], gpus: Sequence[str], context: int = 4096) -> Picture:
    """How each GPU's memory is split; beside it, how many sequences the KV cache holds.

    Args:
        models: what is served, one panel each.
        gpus: names in ``assets/gpus.csv``, one bar each.
        context: length of the sequences that are counted, tokens.
    """
    machines = [sizing.gpu(name) for name in gpus]
    splits = [[sizing.memory(model, gpu) for gpu in machines] for model in models]
    counts = [sum(split.kv_tokens > 0 for split in column) for column in splits]
    served = [f"{n} in {m.precision.upper()}" for n, m in zip(counts, models, strict=True)]
    title = f"Of {len(gpus)} GPUs, {' and '.join(served)} can serve {models[0].name}"
    figure, panels = picture(title, "", columns=len(models), height=1.8 + 0.26 * len(gpus))
    figure.set_figwidth(9)
    for axes, model, column in zip(panels, models, splits, strict=True):
        parts = [(s.weights_gib, s.rest_gib, s.kv_gib, s.idle_gib, 0) for s in column]
        share = 100 * np.array(parts) / [[gpu.usable_gib] for gpu in machines]
        share[[not split.kv_tokens for split in column]] = 0, 0, 0, 0, 100
        names = [f"{gpu.name} ({gpu.usable_gib:.0f} GiB)" for gpu in machines]
        table = pd.DataFrame(share, index=names, columns=_PARTS)
        table.plot.barh(ax=axes, stacked=True, width=0.7, legend=False, color=[*_COLORS])
        for row, count in enumerate(split.sequences(context) for split in column):
            axes.text(102, row, f"{count:,.0f}" if count >= 1 else "none", va="center", fontsize=9)
        axes.set_title(f"{model.precision.upper()}: {model.weights_gb():.1f} GB of weights")
        axes.text(102, -0.65, f"sequences\nof {context:,}", fontsize=8, color=GREY, va="bottom")
        axes.set(xlim=(0, 128), xticks=range(0, 101, 25), xlabel="share of the GPU's memory, %")
        axes.label_outer()
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


@styled
def roofline(measured: pd.DataFrame) -> Picture:
    """The roofs of the measured GPUs, and what was reached under them.

    Args:
        measured: what :func:`helpers.choose.sizing.measurements` returned.
    """
    low, high = 100 * measured.of_bound.min(), 100 * measured.of_bound.max()
    title = f"No run is above its roof: {low:.0f}-{high:.0f} % of the bound is reached"
    subtitle = "lines: published bandwidth and tensor rate; dots: published vLLM runs"
    figure, (axes,) = picture(title, subtitle, height=4.6)
    x = np.geomspace(0.7, 1000, 200)
    for name, runs in measured.groupby("gpu", sort=False):
        gpu = sizing.gpu(str(name))
        roof = np.minimum(x * gpu.bandwidth_gb_s / 1000, gpu.fp16_tflops)
        (line,) = axes.plot(x, roof, label=f"roof of the {name}")
        axes.scatter(runs.flops_per_byte, runs.tflops_per_s, color=line.get_color(), zorder=3)
    axes.set(xscale="log", yscale="log", ylabel="TFLOP/s spent on tokens")
    axes.set_xlabel("FLOPs for each byte read from memory (grows with the batch)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left")
    axes.text(1.2, 0.2, "sloped: memory-bound", color=GREY, fontsize=9)
    axes.text(250, 60, "flat: compute-bound", color=GREY, fontsize=9)
    return figure


@styled
def cost(table: pd.DataFrame) -> Picture:
    """What a million output tokens cost on each GPU, from published runs and listed prices.

    Args:
        table: columns ``gpu``, ``model``, ``users`` and ``usd_per_million``.
    """
    table = table.sort_values("usd_per_million")
    usd, gpus = table["usd_per_million"].tolist(), table["gpu"].tolist()
    runs = zip(usd, table["model"], table["users"], strict=True)
    texts = [f"${price:.3f}: {model}, {users} users" for price, model, users in runs]
    times = f"{usd[-1] / usd[0]:.1f} times those from the {gpus[0]}"
    title, height = f"Tokens from the {gpus[-1]} cost {times}", 1.4 + 0.45 * len(usd)
    subtitle = "published vLLM runs at full load, cheapest listed price"
    figure, (axes,) = picture(title, subtitle, height=height)
    bars(axes, gpus, usd, texts)
    axes.set(xlim=(0, 2 * max(usd)), xlabel="US dollars per million output tokens")
    return figure
