"""A request's record and the file of a run, also of one that an older version wrote."""

import inspect
import json
from dataclasses import replace

import pytest
from support.made_runs import closed_loop

from helpers import measure, plots
from helpers.errors import CourseError
from helpers.records import Record, Run

HEADER = {  # as it was written until November 2026
    "type": "run",
    "format": 1,
    "label": "a request every 0.5 s",
    "endpoint": {"title": "m, vLLM 0.33 on 1x RTX 4090", "model": "m"},
    "arrivals": {"kind": "Interval", "every_s": 0.5},
    "processes": 1,
}
REQUEST = {
    "type": "request", "index": 0, "scheduled_s": 0.0, "sent_s": 0.001, "end_s": 0.4,
    "token_us": [100_000, 300_000], "output_tokens": 2, "status": 200, "cause": "",
    "a field that is gone": 1,
}  # fmt: skip
END = {"type": "end", "ended": "complete", "wall_s": 1.0, "cpu_s": 0.1, "lag_p99_ms": 0.2}


def test_a_run_of_an_older_version_still_loads(tmp_path):
    """What is in it is there under today's names."""
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (HEADER, REQUEST, END)))
    run = Run.read(path)
    assert run.title == HEADER["endpoint"]["title"] and not run.interrupted
    assert measure.level(run) == (2.0, "requests/s")
    assert run.ok[0].ttft_s == pytest.approx(0.101) and run.ok[0].tpot_s == pytest.approx(0.2)
    assert "1 requests, 0 failed, 2 output tokens" in repr(run)


def test_a_run_begins_when_its_clock_does(tmp_path):
    """The file is made before the clock starts; which is told as soon as it does."""
    path = tmp_path / "run.jsonl"
    begin = {"type": "begin", "at": 1795176001.25}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (HEADER, begin, REQUEST, END)))
    assert Run.read(path).began == 1795176001.25


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([REQUEST], "is not a run"),
        ([HEADER, {"type": "request"}, END], "line 2 is damaged"),
        ([HEADER, {"type": "begin"}, END], "line 2 is damaged"),
        ([HEADER, 5, END], "line 2 is damaged"),
    ],
)
def test_what_is_no_run_is_said_so(tmp_path, lines, said):
    """A sentence instead of a traceback; a last line that was cut is no damage."""
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CourseError, match=said):
        Run.read(path)
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(REQUEST)[:-9])
    assert Run.read(path).records == []


def test_connecting_is_not_the_clients_lag():
    """On a distant line a connection takes longer than a tenth of the TTFT; no client is late."""
    records = [
        Record(index=i, scheduled_s=i, sent_s=i + 0.06, connect_s=0.06, end_s=i + 1, token_us=(1,))
        for i in range(5)
    ]
    run = Run({}, records, ends=[END])
    assert records[0].lag_s == 0 and not run.client_limited
    assert records[0].e2e_s == 1


def made(annotation: str, run: Run):
    """What a parameter takes, with a run where it takes runs."""
    if "Sequence" in annotation:
        return [run, run]
    if "Mapping" in annotation:
        return {"one": run} if "Run" in annotation else {}
    return run if "Run" in annotation else measure.Objective()


ABOUT_RUNS = [
    function
    for room in (measure, plots)
    for function in map(vars(room).get, room.__all__)
    if inspect.isfunction(function) and "Run" in str(inspect.signature(function))
    if function.__name__ not in ("level", "most_at_once", "token_times", "window")
]


@pytest.mark.parametrize("function", ABOUT_RUNS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_a_stopped_run_is_refused_unless_it_was_asked_for(function):
    """By everything that makes a figure or an answer of runs."""
    run = closed_loop()
    run.records[-1] = replace(run.records[-1], cause="interrupted")
    run.ends = [run.ends[0] | {"ended": "interrupted"}]
    run.samples = [{"t_s": t, "running": 1.0, "waiting": 0.0, "kv_cache_usage": 0.2}
                   for t in range(4)]  # fmt: skip
    needed = inspect.signature(function).parameters.values()
    given = [str(one.annotation) for one in needed if one.default is one.empty]
    with pytest.raises(CourseError, match=r"2 users \(stopped after 39 requests\) is no result"):
        function(*(made(what, run) for what in given))
    run.allow_partial = True
    function(*(made(what, run) for what in given))


def test_a_figure_made_of_runs_is_noticed():
    """Else the test above proves nothing."""
    assert {plots.throughput, plots.events, measure.table, measure.agreement} <= {*ABOUT_RUNS}
    assert len(ABOUT_RUNS) >= 17
