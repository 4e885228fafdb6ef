"""The figures for choosing a GPU (00, 06, 09): its memory, its speed, the price of a token."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.choose import sizing
from helpers.choose.api_prices import Server, three
from helpers.choose.models import ModelShape, shape
from helpers.plots.style import BLUE, GREEN, GREY, ORANGE, PALE, RED, Picture, picture, styled

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
    """Each GPU's bound over its users in each precision, where it bends, and published runs.

    Args:
        measured: rows of :func:`helpers.choose.sizing.measurements`, one model for each GPU.
    """
    low, high = 100 * measured.of_bound.min(), 100 * measured.of_bound.max()
    title = f"{len(measured)} published runs reach {low:.0f} to {high:.0f} % of their bound"
    names, users = [*measured.gpu.unique()], np.unique(np.geomspace(1, 1000, 99).astype(int))
    figure, panels = picture(title, "", columns=len(names), height=4.2)
    for _, runs in measured.groupby(["gpu", "precision"], sort=False):
        run, coarse = runs.iloc[0], int(runs.precision.iloc[0] == "awq")
        axes, model, gpu = panels[names.index(run.gpu)], shape(run.model), sizing.gpu(run.gpu)
        asked, color, mark = (run.prompt_tokens, run.output_tokens), _COLORS[coarse], "os"[coarse]
        bound = np.array([sizing.tokens_per_s(model, gpu, n, *asked) for n in users])
        bend = np.argmax(bound > 0.999 * bound.max())  # arithmetic or the KV cache is used up
        axes.plot(users, bound, color=color, label=f"{run.precision.upper()}: bound")
        axes.plot(users[bend], bound[bend], "D", color=color, mfc="w", label="its bend")
        axes.plot(runs.users, runs.tokens_per_s, mark, color=color, mec="w", label="runs")
        axes.set(xscale="log", yscale="log", xlabel="concurrent users")
        axes.set_title(f"{run.gpu}\n{run.model.removesuffix(' AWQ')}")
    panels[0].set_ylabel("output tokens/s, all users")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


@styled
def break_even(servers: Sequence[Server]) -> Picture:
    """What a million tokens cost over the use of the rented time, and where APIs cost the same.

    Args:
        servers: what is rented, a panel each; the title speaks of the first.
    """
    use = np.geomspace(1, 100, 199)  # % of the rented time
    even = 100 * servers[0].usd_per_million / three(servers[0].offers()).of_mix["median"]
    when = f"from {even:.0f} % use on" if even < 100 else "at no use"
    title = f"Renting costs less than the median API {when}{' (left)' * (len(servers) > 1)}"
    figure, panels = picture(title, "", columns=len(servers), height=4.6)
    for axes, server in zip(panels, servers, strict=True):
        table, full = server.offers(), 100 * server.usd_per_million
        axes.plot(use, full / use, color=BLUE, label="one rented server")
        axes.plot(use, 2 * full / use, "--", color=BLUE, label="two, one as a spare")
        for color, (word, api) in zip((GREEN, ORANGE, RED), three(table).iterrows(), strict=True):
            price, name = api.of_mix, api.provider
            axes.axhline(price, color=color, label=f"{word} of {len(table)} APIs")
            axes.plot(full / price, price, "o", color=color, mec="black")
            axes.text(99, price, f"{name} ${price:.3f}", ha="right", va="top", fontsize=9)
            ha, va = ("right", "top") if full < 60 * price else ("left", "bottom")  # beside names
            axes.annotate(f"{full / price:.0f} %", (full / price, price), ha=ha, va=va)
        size = f"{server.prompt_tokens:.0f} + {server.output_tokens:.0f} tokens a request"
        axes.set_title(f"{server.name}\n{size}, ${server.usd_per_hour:.2f}/h", parse_math=False)
        axes.set(yscale="log", xlim=(0, 100), xlabel="use of the rented time, %")
        axes.yaxis.set_major_formatter("${x:g}")
    panels[0].set_ylabel("a million tokens cost")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
