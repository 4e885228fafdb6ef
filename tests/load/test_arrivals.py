"""When requests are sent: at the rate that was asked for, and as a trace says."""

import json
from itertools import islice

import pytest

from helpers import load
from helpers.errors import CourseError
from helpers.load.workload import from_spec, to_spec


@pytest.mark.parametrize(
    "arrivals",
    [
        load.Constant(every_s=0.5),
        load.Poisson(rate_per_s=2),
        load.Gamma(rate_per_s=2, burstiness=0.3, seed=7),
        load.Gamma(rate_per_s=2, burstiness=9),
    ],
    ids=str,
)
def test_arrivals_have_their_rate(arrivals):
    """Each open loop sends at its rate in the long run, in order, and survives being a spec."""
    times = list(islice(arrivals.times(), 4000))
    assert times == sorted(times) and times[-1] == pytest.approx(2000, rel=0.12)
    again = from_spec(json.loads(json.dumps(to_spec(arrivals))))
    assert again == arrivals and list(islice(again.times(), 50)) == times[:50]


def test_traces_are_read(tmp_path):
    """A trace with millisecond stamps becomes arrival times from zero; others are refused."""
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": at}) + "\n" for at in (3000, 1000, 1500)]
    path.write_text("".join(lines), "utf-8-sig")  # as Windows writes it
    assert load.Replay.read(path, unit_s=0.001).times_s == (0.0, 0.5, 2.0)
    path.write_text("{}\n")
    with pytest.raises(CourseError, match="is not a trace"):
        load.Replay.read(path)
    with pytest.raises(CourseError, match="cannot be read"):
        load.Replay.read(tmp_path / "nowhere.jsonl")


def test_a_trace_is_played_as_it_is():
    """Also from another process, to which it went as JSON."""
    trace = load.Replay(times_s=[0.0, 0.5, 2.0])
    assert from_spec(json.loads(json.dumps(to_spec(trace)))) == trace
    assert list(trace.times()) == [0.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (load.ClosedLoop, {"users": 0}),
        (load.ClosedLoop, {"users": 1.5}),
        (load.ClosedLoop, {"users": 1, "think_time_s": -1}),
        (load.Constant, {"every_s": 0}),
        (load.Gamma, {"rate_per_s": 1, "burstiness": 0}),
        (load.Poisson, {"rate_per_s": float("nan")}),
        (load.Replay, {"times_s": ()}),
        (load.Replay, {"times_s": (2.0, 1.0)}),
        (load.Replay, {"times_s": (-1.0, 1.0)}),
        (load.Replay, {"times_s": (0.0, float("nan"))}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, wrong):
    """Said where they are written, not by a process that breaks later."""
    with pytest.raises(CourseError):
        kind(**wrong)
