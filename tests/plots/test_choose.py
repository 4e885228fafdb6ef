"""The pictures of notebook 00 show what the formulas and the published runs say."""

import pandas as pd
import pytest

from helpers import plots
from helpers.choose import models, sizing


@pytest.fixture(scope="module")
def mistral():
    """The course's model in both precisions."""
    return [models.shape("Mistral-7B-Instruct-v0.3"), models.shape("Mistral-7B-Instruct-v0.3 AWQ")]


def test_memory_picture_counts_what_fits(mistral, tmp_path):
    """The number beside a bar is the number the table gives; bars stay within the memory."""
    figure = plots.vram(mistral, ["T4", "RTX 4090"], context=4096)
    assert figure.get_suptitle().startswith("Of 2 GPUs, 1 in FP16 and 2 in AWQ")
    for axes, model in zip(figure.axes, mistral, strict=True):
        assert "%" in axes.get_xlabel()
        held = sizing.memory(model, sizing.gpu("RTX 4090")).sequences(4096)
        assert f"{held:,.0f}" in [text.get_text() for text in axes.texts]
        for row in (0, 1):
            total = sum(p.get_width() for p in axes.patches if p.get_y() == row - 0.35)
            assert total <= 100.01
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 120_000


def test_roofline_picture_has_every_run_under_its_roof(tmp_path):
    """A dot above its roof would mean a wrong specification or a wrong formula."""
    measured = sizing.measurements()
    figure = plots.roofline(measured)
    (axes,) = figure.axes
    assert "byte" in axes.get_xlabel() and "TFLOP/s" in axes.get_ylabel()
    names = list(dict.fromkeys(measured.gpu))
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == len(measured)
    for name, dots in zip(names, axes.collections, strict=True):
        gpu = sizing.gpu(name)
        for x, y in dots.get_offsets():
            assert y <= min(x * gpu.bandwidth_gb_s / 1000, gpu.fp16_tflops) * 1.001
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 120_000


def test_weights_that_do_not_fit_fill_the_bar(mistral):
    """A T4 does not hold Mistral in 16 bit; an L4 does."""
    for name, share in (("T4", 100), ("L4", 0)):
        figure = plots.vram(mistral, [name])
        (legend,) = figure.legends
        assert legend.get_texts()[-1].get_text() == "weights that do not fit"
        assert figure.axes[0].patches[-1].get_width() == share


def test_costs_are_in_order_and_name_the_run():
    """The cheapest stands on top; two runs on one GPU are two bars."""
    columns = ["gpu", "model", "users", "usd_per_million"]
    rows = [("L4", "M AWQ", 8, 0.3), ("L4", "M", 1, 0.9), ("T4", "M", 4, 0.6)]
    figure = plots.cost(pd.DataFrame(rows, columns=columns))
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Tokens from the L4 cost 3.0 times those from the L4"
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.6, 0.9]
    assert [text.get_text().strip() for text in axes.texts] == [
        "$0.300: M AWQ, 8 users", "$0.600: M, 4 users", "$0.900: M, 1 users"
    ]  # fmt: skip
