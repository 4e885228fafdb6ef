"""The pictures of notebooks 00, 06 and 09 show what formulas, published runs and prices say."""

import numpy as np
import pytest

from helpers import plots
from helpers.choose import models, sizing
from helpers.choose.api_prices import Server


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


def test_published_runs_stay_below_the_bound_that_is_drawn(tmp_path):
    """A dot above its line would mean a wrong specification or a wrong formula."""
    measured = sizing.measurements()
    shown = measured[measured.gpu.isin(["L4", "RTX 4090"]) & ~measured.model.str.contains("Qwen3")]
    figure = plots.roofline(shown)
    low, high = (f"{100 * share:.0f}" for share in (shown.of_bound.min(), shown.of_bound.max()))
    title = f"{len(shown)} published runs reach {low} to {high} % of their bound"
    assert figure.get_suptitle() == title
    assert [axes.get_title("left").split("\n")[0] for axes in figure.axes] == ["L4", "RTX 4090"]
    for axes, kinds in zip(figure.axes, (2, 1), strict=True):
        assert axes.get_xlabel() == "concurrent users"
        assert len(axes.lines) == 3 * kinds
        for at in range(0, 3 * kinds, 3):
            bound, bend, runs = (line.get_xydata() for line in axes.lines[at : at + 3])
            for users, rate in runs:
                assert rate <= np.interp(users, *bound.T)
            [(users, rate)] = bend
            assert rate == pytest.approx(bound[:, 1].max(), rel=0.001)
            assert (bound[bound[:, 0] < users, 1] < rate).all()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 120_000


def test_awq_bends_at_fewer_users_than_fp16():
    """Its weights are read faster, and computed with no faster."""
    measured = sizing.measurements()
    figure = plots.roofline(measured[measured.gpu == "A100 40GB"].iloc[:6])
    [axes] = figure.axes
    fp16, awq = (float(axes.lines[at].get_xdata()[0]) for at in (1, 4))
    assert 2 < fp16 / awq < 4
    tops = [axes.lines[at].get_ydata().max() for at in (0, 3)]
    assert tops[0] == pytest.approx(tops[1], rel=0.01)


def test_weights_that_do_not_fit_fill_the_bar(mistral):
    """A T4 does not hold Mistral in 16 bit; an L4 does."""
    for name, share in (("T4", 100), ("L4", 0)):
        figure = plots.vram(mistral, [name])
        (legend,) = figure.legends
        assert legend.get_texts()[-1].get_text() == "weights that do not fit"
        assert figure.axes[0].patches[-1].get_width() == share


@pytest.mark.parametrize(("usd_per_hour", "crossings"), [(0.4, 2), (40.0, 0)])
def test_renting_and_buying_cross_where_both_cost_the_same(usd_per_hour, crossings, tmp_path):
    """The dots lie on the curve and on their API's line; the title is the median's."""
    server = Server(
        name="RTX 4090", usd_per_hour=usd_per_hour, tokens_per_s=1190,
        prompt_tokens=256, output_tokens=128,
    )  # fmt: skip
    apis = server.offers()
    figure = plots.break_even([server, server])
    for axes in figure.axes:
        one, two, *lines = axes.get_lines()
        assert two.get_ydata() == pytest.approx(2 * one.get_ydata())
        assert one.get_ydata()[-1] == pytest.approx(server.usd_per_million)
        flat, dots = lines[::2], lines[1::2]
        prices = [line.get_ydata()[0] for line in flat]
        assert prices == [apis.of_mix.min(), apis.of_mix[len(apis) // 2], apis.of_mix.max()]
        seen = 0
        for price, dot in zip(prices, dots, strict=True):
            [(share, height)] = dot.get_xydata()
            assert height == price
            assert server.usd_per_million / (share / 100) == pytest.approx(price)
            seen += share <= 100
        assert seen >= crossings
        assert "%" in axes.get_xlabel() and axes.get_title("left").startswith("RTX 4090")
    even = 100 * server.usd_per_million / apis.of_mix[len(apis) // 2]
    when = f"from {even:.0f} % use on" if crossings else "at no use"
    assert figure.get_suptitle() == f"Renting costs less than the median API {when} (left)"
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 120_000
