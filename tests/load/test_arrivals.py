"""When requests are sent: at the rate that was asked for."""

import json
from itertools import islice

import pytest

from helpers import load
from helpers.errors import CourseError
from helpers.load.arrivals import from_spec
from helpers.load.workload import to_spec


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


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (load.ClosedLoop, {"users": 0}),
        (load.ClosedLoop, {"users": 1.5}),
        (load.ClosedLoop, {"users": 1, "think_time_s": -1}),
        (load.Constant, {"every_s": 0}),
        (load.Gamma, {"rate_per_s": 1, "burstiness": 0}),
        (load.Poisson, {"rate_per_s": float("nan")}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, wrong):
    """Said where they are written, not by a process that breaks later."""
    with pytest.raises(CourseError):
        kind(**wrong)
