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
    ("hardware", "cpus", "others", "disturbed"),
    [
        ("2 CPU cores", 2, 0.94, True),  # one busy loop in another terminal
        ("2 CPU cores", 2, 0.31, False),  # a browser and an editor that do nothing
        ("8 CPU cores", 16, 0.94, False),  # there is room beside it
        ("8 CPU cores", 16, 9.0, True),
        ("1x RTX 4090", 2, 0.94, False),  # the server is not on this machine
        ("2 CPU cores", 2, None, False),  # a run of an older version
    ],
)
def test_other_programs_on_the_machine_are_told(tmp_path, hardware, cpus, others, disturbed):
    """The rehearsal at half its speed looks as even as at its full one: only this tells them."""
    path, told = tmp_path / "run.jsonl", {"hardware": hardware, **HEADER["endpoint"]}
    lines = [{**HEADER, "endpoint": told, "client": {"cpus": cpus}}, REQUEST, END]
    lines += [] if others is None else [{"type": "others", "cores": others}]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    run = Run.read(path)
    assert run.disturbed is disturbed
    assert ("OTHER PROGRAMS SLOWED THIS MACHINE" in repr(run)) is disturbed


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


def test_a_stream_that_comes_in_one_piece_tells_no_time_between_tokens():
    """A proxy that hands over the whole answer at its end makes no server infinitely fast."""
    whole = {"sent_s": 0, "end_s": 1, "output_tokens": 30, "finish": "length"}
    records = [
        Record(index=0, token_us=(900_000,) * 30, **whole),
        Record(index=1, token_us=tuple(900_000 + 9 * number for number in range(30)), **whole),
        Record(index=2, token_us=tuple(20_000 * number for number in range(1, 31)), **whole),
    ]
    assert [record.tpot_s for record in records] == [None, None, pytest.approx(0.02)]
    assert [len(record.itl_s) for record in records] == [0, 0, 29]
    assert [record.ttft_s for record in records] == [0.9, 0.9, 0.02]
    run = Run(HEADER, records, ends=[END])
    assert run.held_back and "THE STREAM IS HELD BACK" in repr(run)
    assert "HELD" not in repr(Run(HEADER, records[1:], ends=[END]))
    assert "HELD" not in repr(Run(HEADER, [], ends=[END]))


def made(annotation: str, run: Run):
    """What a parameter takes, with a run where it takes runs."""
    many = [run, run] if "Sequence" in annotation else run
    if "Mapping" in annotation:
        return {"one": many} if "Run" in annotation else {}
    if "Sequence" in annotation:
        return many
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
