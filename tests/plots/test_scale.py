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
    """Two that answer twice as many users in the same time; the title says no more than is sure."""
    runs = [closed_loop(users=2), closed_loop(users=4)]
    figure = plots.replicas(runs)
    assert figure.get_suptitle().startswith("Output tokens/s: 4 users against 2 users: +100% (95 %")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "2 users", "4 users"
    ]  # fmt: skip
    (ideal,) = {line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"}
    assert ideal == pytest.approx(2 * axes.patches[0].get_width())
    assert ideal < axes.get_xlim()[1]
    same = plots.replicas([runs[0], runs[0]]).get_suptitle()
    assert same.startswith("Output tokens/s: no difference beyond noise")


def test_policies_show_every_run_its_mean_and_its_interval():
    """The p95 of each run is a dot, the bar their mean; what the caches held likewise."""
    blind = [chats(0.3, 2), chats(0.5, 2), chats(0.4, 2)]
    aware = [chats(0.1, 8), chats(0.1, 7), chats(0.1, 9)]
    figure = plots.policies({"random": blind, "cache_aware": aware})
    left, right = figure.axes
    assert "TTFT p95" in left.get_xlabel()
    assert [bar.get_width() for bar in left.patches] == pytest.approx([0.4, 0.1])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([20, 80])
    whiskers = [line for line in left.get_lines() if line.get_marker() == "|"]
    assert whiskers[0].get_xdata() == pytest.approx([0.4 - 4.3 / 300**0.5, 0.4 + 4.3 / 300**0.5])
    dots = [line.get_xdata()[0] for line in left.get_lines() if line.get_marker() == "o"]
    assert dots == pytest.approx([0.3, 0.5, 0.4])


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
