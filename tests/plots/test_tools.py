"""The figures of function calling show what was counted, and survive what models write."""

import numpy as np
import pandas as pd
import pytest

from helpers import plots
from helpers.errors import CourseError
from helpers.tools import Conversation, Evaluation, Step

PHASES = pd.DataFrame(
    {"deciding_ms": [300.0, 800.0], "executing_ms": [5.0, 9.0], "answering_ms": [195.0, 691.0],
     "whole_p95_ms": [600.0, 1800.0], "per_minute": [100.0, 200.0]},
    index=[1, 4],
)  # fmt: skip


def evaluation(*rows: tuple[str, str]) -> Evaluation:
    frame = pd.DataFrame(rows, columns=["kind", "cause"])
    return Evaluation(title="m", tool_choice="auto", seconds=1.0, frame=frame)


def test_a_conversation_about_money_is_drawn(tmp_path):
    """Two dollar signs are no formula."""
    steps = [
        Step(phase="deciding", round=1, start_s=0, end_s=3, what='{"min": "$10", "max": "$2_"}'),
        Step(phase="answering", round=2, start_s=3, end_s=4, what="x" * 60),
    ]
    figure = plots.conversation(Conversation(messages=[], steps=steps), "costs $1 to $2_")
    assert figure.get_suptitle() == "75% of the wait went into deciding what to call"
    assert [bar.get_width() for bar in figure.axes[0].patches] == [3, 1]
    figure.savefig(tmp_path / "talk.png")


def test_the_commonest_mistake_is_in_the_title():
    """It is what a reader takes home."""
    figure = plots.mistakes(
        evaluation(("one", "right"), ("one", "wrong arguments"), ("none", "wrong arguments"),
                   ("none", "needless call"))
    )  # fmt: skip
    assert figure.get_suptitle() == "3 of 4 questions went wrong, most often: wrong arguments (2)"
    (axes,) = figure.axes
    labels = [" ".join(label.get_text().split()) for label in axes.get_xticklabels()]
    assert labels == ["right", "needless call", "wrong arguments"]
    assert [text.get_text() for text in axes.texts] == ["1", "", "1", "", "1", "1"]
    assert axes.images[0].get_array().tolist() == [[0.5, 0, -0.5], [0, -0.5, -0.5]]


def test_without_a_mistake_the_title_says_so():
    """There is no commonest one."""
    assert plots.mistakes(evaluation(("k", "right"))).get_suptitle() == ("All 1 questions right")


def test_phases_add_up_and_users_without_an_answer_are_left_out():
    """A row of nothing must not become a title that says "0.0 times as long"."""
    lost = pd.DataFrame({name: [np.nan] for name in PHASES}, index=[8]).assign(per_minute=0.0)
    figure = plots.phases(pd.concat([PHASES, lost]), "m")
    assert figure.get_suptitle() == (
        "4 users wait 3.0 times as long as 1, and get 2.0 times the answers"
    )
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [300, 800, 5, 9, 195, 691]
    assert [bar.get_y() for bar in axes.patches] == [0, 0, 300, 800, 305, 809]
    assert list(axes.get_lines()[0].get_ydata()) == [600, 1800]
    with pytest.raises(CourseError, match="no conversation"):
        plots.phases(lost, "m")
