"""The figures of several replicas show the numbers of their runs."""

from dataclasses import replace

import pytest
from support.made_runs import closed_loop

from helpers import plots
from helpers.records import Run
from helpers.serve.fleet import Serverless, fleet

NIGHT_AND_DAY = [0.0] * 8 + [10.0] * 16
SECONDS = Serverless(usd_per_hour=0.5, cold_start_s=180, idle_s=600)


def chats(ttft_s, cached) -> Run:
    """Two users' chats of four turns, of whose later prompts so much comes from the cache."""
    run = closed_loop(ttft_s=ttft_s)
    turned = [replace(r, turn=r.index // 2 % 4, prompt_tokens=10, cached_tokens=cached)
              for r in run.records]  # fmt: skip
    return Run(run.header, turned, ends=run.ends)


def test_replicas_are_compared():
    """Two that answer twice as many users in the same time."""
    runs = [closed_loop(users=2), closed_loop(users=4)]
    figure = plots.replicas(runs)
    assert figure.get_suptitle() == "4 users give 2.00 times the tokens of 2 users"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "2 users", "4 users"
    ]  # fmt: skip


def test_policies_show_waits_by_turn_and_what_the_cache_had():
    """A line and a bar of the same colour for each policy."""
    figure = plots.policies({"random": chats(0.3, 2), "cache_aware": chats(0.1, 8)})
    left, right = figure.axes
    assert figure.get_suptitle() == (
        "Chats wait 3.0 times as long (TTFT p95) under random as under cache_aware"
    )
    assert list(left.get_lines()[0].get_xdata()) == [1, 2, 3, 4]
    assert list(left.get_lines()[1].get_ydata()) == pytest.approx([0.1] * 4)
    assert [bar.get_width() for bar in right.patches] == [20, 80]


def test_events_mark_what_happened_and_each_request_that_was_lost():
    """The title counts them, with their causes; without one it says so."""
    figure = plots.events(closed_loop(failed=2), {"one joins": 1.5})
    assert figure.get_suptitle() == "4 of 40 requests were lost (timeout), the others went on"
    (axes,) = figure.axes
    crosses = axes.get_lines()[-1]
    assert len(crosses.get_xdata()) == 4 and [t.get_text() for t in axes.texts] == [" one joins"]
    tokens = sum(axes.patches[0].get_data().values)
    assert tokens == pytest.approx(40 * 11)  # steps of a second
    assert plots.events(closed_loop(), {}).get_suptitle() == "0 of 40 requests were lost"


def test_a_day_shows_the_plan():
    """The bars are the table, the green steps the replicas, the title the cheapest way."""
    plan = fleet(NIGHT_AND_DAY, 4, usd_per_hour=0.5, serverless=SECONDS, headroom=0)
    figure = plots.day(plan, "by hand")
    left, right = figure.axes
    assert [bar.get_width() for bar in right.patches] == list(plan.costs.usd_per_day)
    assert list(left.patches[0].get_data().values) == [4] * 8 + [12] * 16
    assert figure.get_suptitle() == (
        "From 1 to 3 replicas: serverless costs 33% less than the peak all day"
    )
    assert "requests/s" in left.get_ylabel() and "dollars" in right.get_xlabel()
