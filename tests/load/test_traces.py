"""Traces: read as they are published, drawn as they look, and played request for request."""

import gzip
import json
import math
import statistics
from datetime import datetime, timedelta
from itertools import pairwise

import numpy
import pytest

from helpers import load
from helpers.errors import CourseError
from helpers.load.arrivals import from_spec
from helpers.load.traces import AT, TRAFFIC
from helpers.load.workload import to_spec

QUIET = {"progress": False, "server_every_s": None}
BEGIN = datetime(2023, 11, 16, 18, 17, 3)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
SESSIONS = BURST.replace("Timestamp", "Timestamp,Session ID,Elapsed time")


def azure(at: float, prompt: int, answer: int) -> str:
    """A line of the trace of 2023: local time with seven digits."""
    return f"{BEGIN + timedelta(seconds=at):%Y-%m-%d %H:%M:%S.%f}0,{prompt},{answer}"


def azure_2024(at: float, prompt: int, answer: int) -> str:
    """A line of the trace of 2024: no fraction in a whole second, and a time zone."""
    return f"{BEGIN + timedelta(seconds=at)}+00:00,{prompt},{answer}"


def mooncake(at: float, prompt: int, answer: int) -> str:
    """Milliseconds, and the hashes of blocks of 512 tokens."""
    hashes = list(range(prompt // 512 + 1))
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return json.dumps(dict(zip(names, (round(at * 1000), prompt, answer, hashes), strict=True)))


def burst(at: float, prompt: int, answer: int) -> str:
    """Seconds since the collection began."""
    return f"{19440110 + at:.6f},GPT-4,{prompt},{answer},{prompt + answer},Conversation log"


def sessions(at: float, prompt: int, answer: int) -> str:
    """Likewise, with a session."""
    cells = burst(at, prompt, answer).split(",")
    return ",".join([cells[0], "1722ac82-0a46-4bf0-aa08-89794e7a2b3f", "43", *cells[1:]])


FORMS = {
    "azure": (AZURE, azure, 1e-6),
    "azure 2024": (AZURE, azure_2024, 1e-6),
    "azure in other letters": (f"\n{AZURE.casefold().replace(',', ', ')}", azure, 1e-6),
    "mooncake": ("", mooncake, 1e-3),
    "mooncake after a blank line": ("\n", mooncake, 1e-3),
    "burstgpt": (BURST, burst, 1e-6),
    "burstgpt with sessions": (SESSIONS, sessions, 1e-6),
}


def written(path, form: str, trace: load.Replay):
    """The trace as a file of that form, packed if its name says so."""
    head, line, _ = FORMS[form]
    rows = zip(trace.times_s, trace.input_tokens, trace.output_tokens, strict=True)
    text = "\n".join([head] * bool(head) + [line(*row) for row in rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def small(times: tuple, prompts: tuple = (700, 30, 5), answers: tuple = (9, 1, 40)) -> load.Replay:
    """A trace of three requests."""
    return load.Replay(times_s=times, input_tokens=prompts, output_tokens=answers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error::DeprecationWarning", "error::FutureWarning")
def test_published_traces_are_read_as_they_are(tmp_path, form):
    """8,819 requests like those of the code trace: each length, and each time from the first."""
    trace = load.traffic("code", rate_per_s=8819 / 3436, span_s=3436, seed=3)
    again = load.Replay.read(written(tmp_path / "trace.gz", form, trace))
    assert len(again.times_s) == 8819 and str(again) == "a trace of 8819 requests"
    assert (again.input_tokens, again.output_tokens) == (trace.input_tokens, trace.output_tokens)
    expected = [at - trace.times_s[0] for at in trace.times_s]
    assert again.times_s == pytest.approx(expected, abs=FORMS[form][2] + 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_is_scaled_and_cut(tmp_path, form):
    """The span is in the trace's own seconds and begins at time 0; its end is not in it."""
    path = written(tmp_path / "trace", form, small((10.0, 12.5, 14.0)))
    assert load.Replay.read(path, speed=2).times_s == (0.0, 1.25, 2.0)
    cut = load.Replay.read(path, start_s=1, span_s=3, speed=0.5)
    assert (cut.times_s, cut.input_tokens, cut.output_tokens) == ((3.0,), (30,), (1,))
    short = load.Replay.read(path).fitted(shorter=10, max_input_tokens=50)
    assert (short.input_tokens, short.output_tokens) == ((50, 3, 1), (1, 1, 4))
    assert str(short) == "a trace of 3 requests (1 of 3 prompts cut to 50 tokens)"
    with pytest.raises(CourseError, match=r"has 0 requests from 5 s.*\n.*ends after 4 s"):
        load.Replay.read(path, start_s=5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("span_s", [0.2, 0.2 + 1e-12])
def test_a_request_on_the_border_of_two_spans_is_in_the_second(tmp_path, form, span_s):
    """Tenths of a second are no exact numbers: it was in none of them, or in both."""
    path = written(tmp_path / "trace", form, small((0.1, 0.3, 0.5)))
    for number in range(3):
        span = load.Replay.read(path, start_s=number * 0.2, span_s=span_s)
        assert (span.times_s, span.input_tokens) == ((0.0,), ((700, 30, 5)[number],))


def test_failed_requests_are_left_out_and_counted(tmp_path):
    """BurstGPT keeps them, with no tokens in the answer; time 0 is still the first arrival."""
    path = written(tmp_path / "trace.csv", "burstgpt", small((1.0, 2.0, 4.0), answers=(0, 5, 0)))
    trace = load.Replay.read(path)
    assert (trace.times_s, trace.output_tokens) == ((1.0,), (5,))
    assert "2 without a prompt or an answer left out" in str(trace)
    with pytest.raises(CourseError, match="has 1 requests from 2 s for inf s, 0 answered"):
        load.Replay.read(path, start_s=2)
    written(path, "burstgpt", small((1.0, 2.0, 4.0), prompts=(-1, 3, 0)))
    asked = load.Replay.read(path)
    assert (str(asked), asked.workload().chat(0).turns[0][1]) == (str(trace), 1)


def test_a_trace_need_not_be_in_order(tmp_path):
    """Lengths stay with their times; those of the same time stay in the file's order."""
    lines = [AZURE, azure(3.0, 700, 9), azure(1.0, 30, 1), azure(1.0, 5, 40)]
    path = tmp_path / "trace.csv"
    path.write_text("\r\n".join(lines), "utf-8-sig")
    trace = load.Replay.read(path)
    assert (trace.times_s, trace.input_tokens) == ((0.0, 0.0, 2.0), (30, 5, 700))


def test_times_alone_are_a_trace(tmp_path):
    """Without lengths, which then nobody can ask for; as Windows writes it."""
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": at}) + "\n" for at in (3000, 1000, 1500)]
    path.write_text("".join(lines), "utf-8-sig")
    trace = load.Replay.read(path, unit_s=0.001)
    assert trace == load.Replay(times_s=(0.0, 0.5, 2.0))
    assert load.Replay.read(path).times_s == (0.0, 500.0, 2000.0)
    with pytest.raises(CourseError, match="input_tokens"):
        load.Synthetic(input_tokens=trace.input_tokens)


STAMP = "2023-11-16 18:17:03.9799600"
ASKED = '{"timestamp": 1, "input_length": 5, "output_length": 5}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}\n", "no timestamp"),
        ("name,at\nada,5\n", "no timestamp in its columns name, at"),
        ('{"timestamp": 1}\n{"timestamp": null}\n', "line 2 lacks"),
        ('{"timestamp": 1', ""),
        ("", "No columns"),
        (f"{AZURE}\n", "no requests"),
        (f"TIMESTAMP,ContextTokens\n{STAMP},5\n", "no GeneratedTokens"),
        (f"timestamp,prompt_tokens\n{STAMP},5\n", "no ContextTokens, GeneratedTokens"),
        ('{"timestamp": 1, "input_length": 5}\n', "no output_length"),
        ("Timestamp,Request tokens\n5,5\n", "no Response tokens"),
        (f"{AZURE}\n{STAMP},5,5\nyesterday,5,5\n", "line 3 lacks"),
        (f"{AZURE}\n{STAMP},many,5\n", "line 2 lacks"),
        (f"\n{AZURE}\n\n{STAMP},5,5\n{STAMP},,5\n", "line 5 lacks"),
        (f"{AZURE}\n{STAMP},5,3.7\n", "line 2 lacks a time or a whole number"),
        (f"\n{ASKED}\n\n" + ASKED.replace("5,", "null,"), "line 4 lacks"),
        (f"[{', '.join([ASKED] * 900)}]", "no TIMESTAMP"),
        ("\x00\xff", ""),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, why):
    """And told in a line which columns it lacks, or which line is wrong, and how it should be."""
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(CourseError, match=rf"is not a trace.*{why}(.|\n)*ContextTokens") as refused:
        load.Replay.read(path)
    assert len(refused.value.what) < 200 + len(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    """None is there, none is packed under a packed one's name, or half of it came."""
    for name in ("nowhere.jsonl", "plain.csv.gz", "half.csv.gz"):
        (tmp_path / "plain.csv.gz").write_text(AZURE)
        (tmp_path / "half.csv.gz").write_bytes(gzip.compress(AZURE.encode())[:-9])
        with pytest.raises(CourseError, match=r"cannot be read: [A-Z]"):
            load.Replay.read(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (load.Replay, {"times_s": ()}),
        (load.Replay, {"times_s": (2.0, 1.0)}),
        (load.Replay, {"times_s": (-1.0, 1.0)}),
        (load.Replay, {"times_s": (0.0, float("nan"))}),
        (load.traffic, {"kind": "video", "rate_per_s": 1, "span_s": 9}),
        (load.traffic, {"kind": "chat", "rate_per_s": 0.1, "span_s": 1}),
        (load.traffic, {"kind": "chat", "rate_per_s": math.inf, "span_s": 1}),
        (load.traffic, {"kind": "chat", "rate_per_s": 1, "span_s": 9, "burstiness": 0}),
        (load.Replay(times_s=(0.0,)).fitted, {"shorter": 0}),
        (load.Replay(times_s=(0.0,)).fitted, {"max_input_tokens": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, wrong):
    """Said where they are written."""
    with pytest.raises(CourseError):
        make(**wrong)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("speed", (0, -1, math.inf, math.nan)),
        ("unit_s", (0, -1, math.inf, math.nan)),
        ("start_s", (-1, math.inf, math.nan)),
        ("span_s", (0, -1, math.nan)),
    ],
)
def test_a_trace_is_not_played_at_no_speed(tmp_path, name, values):
    """Backwards or all at once, from before its beginning or for no time."""
    path = written(tmp_path / "trace", "azure", small((0.0, 1.0, 2.0)))
    for value in values:
        with pytest.raises(CourseError, match=str(value)):
            load.Replay.read(path, **{name: value})


@pytest.mark.parametrize(
    ("kind", "rate", "span", "prompt", "answer"),
    [("code", 2.57, 3436, 2048, 28), ("chat", 5.53, 3502, 1155, 211)],
)
def test_drawn_traffic_looks_like_the_trace(kind, rate, span, prompt, answer):
    """The published means and quantiles, and gaps that vary as much as those of the trace."""
    trace = load.traffic(kind, rate_per_s=rate, span_s=span)
    assert statistics.mean(trace.input_tokens) == pytest.approx(prompt, rel=0.05)
    assert statistics.mean(trace.output_tokens) == pytest.approx(answer, rel=0.1)
    *published, variation = TRAFFIC[kind]
    for lengths, quantiles in zip(
        (trace.input_tokens, trace.output_tokens), published, strict=True
    ):
        found = numpy.quantile(lengths, AT[1:-1])
        assert found == pytest.approx(numpy.array(quantiles[1:-1]), rel=0.2)
    assert abs(numpy.corrcoef(trace.input_tokens, trace.output_tokens)[0, 1]) < 0.05
    gaps = [b - a for a, b in pairwise(trace.times_s)]
    found = statistics.pstdev(gaps) / statistics.mean(gaps)
    assert found == pytest.approx(variation, rel=0.3)


@pytest.mark.parametrize("burstiness", [None, 0.1, 1.0, 1e9])
def test_every_burstiness_has_the_same_rate_and_requests(burstiness):
    """Else a comparison of arrivals compares amounts of work; and a seed says which."""
    trace = load.traffic("code", rate_per_s=4, span_s=50, burstiness=burstiness)
    even = load.traffic("code", rate_per_s=4, span_s=50, burstiness=2.0)
    assert len(trace.times_s) == 200 and trace.times_s[-1] <= 50
    assert (trace.input_tokens, trace.output_tokens) == (even.input_tokens, even.output_tokens)
    assert trace.times_s != even.times_s
    if burstiness == 1e9:
        assert trace.times_s == pytest.approx([50 * n / 201 for n in range(1, 201)], abs=0.01)
    other = load.traffic("code", rate_per_s=4, span_s=50, burstiness=2.0, seed=1)
    assert other.input_tokens != even.input_tokens


def test_a_trace_is_played_as_it_is():
    """Also from another process, to which it went as JSON."""
    trace = load.traffic("chat", rate_per_s=2, span_s=9)
    assert from_spec(json.loads(json.dumps(to_spec(trace)))) == trace
    assert tuple(trace.times()) == trace.times_s


async def test_a_trace_is_asked_request_for_request(paced, tmp_path):
    """All 8,819 prompts and answers have the lengths of the file, each at its own time."""
    drawn = load.traffic("code", rate_per_s=8819 / 3436, span_s=3436)
    path = written(tmp_path / "trace.csv", "azure", drawn)
    trace = load.Replay.read(path, speed=300)
    endpoint = paced("--ttft", "0", "--itl", "0")
    run = await load.run(endpoint, trace.workload(), trace, path=tmp_path / "run.jsonl", **QUIET)
    records = sorted(run.records, key=lambda record: record.index)
    assert len(run.ok) == 8819 and "8819" in run.label
    assert tuple(record.prompt_tokens for record in records) == drawn.input_tokens
    assert tuple(record.output_tokens for record in records) == drawn.output_tokens
    assert tuple(record.scheduled_s for record in records) == trace.times_s
    assert all(record.lag_s >= 0 for record in records)


def test_a_trace_brings_its_workload_unless_it_has_no_lengths():
    """Another seed asks for the same tokens in other words, which no prefix cache knows."""
    trace = load.traffic("chat", rate_per_s=2, span_s=9)
    one, two = trace.workload(), trace.workload(seed=7)
    assert one.chat(3).turns[0][1] == two.chat(3).turns[0][1] == trace.output_tokens[3]
    words = [work.chat(3).turns[0][0]["content"] for work in (one, two)]
    assert words[0] != words[1]
    assert [len(text.split()) for text in words] == [trace.input_tokens[3]] * 2
    with pytest.raises(CourseError):
        load.Replay(times_s=(1, 2)).workload()
