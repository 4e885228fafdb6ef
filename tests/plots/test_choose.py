"""The pictures of notebook 00 show what the formulas and the published runs say."""

import pytest

from helpers.choose import models, sizing
from helpers.plots import choose as plots_sizing


@pytest.fixture(scope="module")
def mistral():
    """The course's model in both precisions."""
    return [models.shape("Mistral-7B-Instruct-v0.3"), models.shape("Mistral-7B-Instruct-v0.3 AWQ")]


def test_memory_picture_counts_what_fits(mistral, tmp_path):
    """The number beside a bar is the number the table gives; bars stay within the memory."""
    figure = plots_sizing.vram(mistral, ["T4", "RTX 4090"], context=4096)
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
    figure = plots_sizing.roofline(measured)
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


def test_a_picture_shows_itself_with_alternative_text(mistral):
    """Without it a notebook prints `<Figure size ...>` instead of the figure."""
    data, metadata = plots_sizing.vram(mistral, ["T4", "L4"])._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert "T4 to L4" in data["text/plain"]
