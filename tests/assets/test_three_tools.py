"""The recording of three tools on one server: notebook 10 shows it, a reader believes it."""

import datetime
import json

import pytest
from benchmarks.three_tools import as_guidellm, as_vllm

from helpers.records import Record
from helpers.settings import ASSETS

SEEN = json.loads((ASSETS / "three_tools.json").read_text())
OTHERS = ("vllm bench serve", "GuideLLM")
SCENES = ("vllm", "paced", "role first")
NOTICED = 0.03  # a difference that a reader asks about


def test_it_says_what_was_measured_where():
    """A figure without version, date and machine cannot be compared with the reader's own."""
    assert set(SEEN["versions"]) == {"ours", *OTHERS} and all(SEEN["versions"].values())
    assert datetime.date.fromisoformat(SEEN["date"]).year >= 2026
    assert SEEN["vllm"]["engine"].startswith("vLLM ") and "cores" in SEEN["machine"]
    assert SEEN["vllm"]["rounds"] >= 3 and SEEN["model"]


@pytest.mark.parametrize("scene", SCENES)
def test_the_tools_did_the_same_work(scene):
    """Otherwise the table compares two loads, not three tools."""
    work = SEEN["work"]
    for tool in SEEN[scene]["tools"].values():
        assert tool["says"]["requests"] == tool["server"]["requests"] == work["requests"]
        assert tool["says"]["output tokens"] == work["requests"] * work["output_tokens"]
        if scene == "vllm":  # the paced server counts words
            for kind in ("prompt tokens", "output tokens"):
                assert tool["says"][kind] == tool["server"][kind]
    prompts = [tool["server"].get("prompt tokens", 1) for tool in SEEN[scene]["tools"].values()]
    assert max(prompts) <= 1.02 * min(prompts)


@pytest.mark.parametrize("scene", SCENES)
def test_no_other_program_took_part(scene):
    """The tools and the server share two cores: a third program's work would be in the figures."""
    for tool in SEEN[scene]["tools"].values():
        assert tool["others_cores"] < 0.25


@pytest.mark.parametrize("tool", OTHERS)
def test_every_difference_has_its_reason(tool):
    """A difference without one teaches nothing but distrust."""
    ours, said = SEEN["vllm"]["tools"]["ours"]["says"], SEEN["vllm"]["tools"][tool]["says"]
    for quantity, value in ours.items():
        if abs(said[quantity] - value) > NOTICED * value:
            assert SEEN["reasons"][tool][quantity], quantity


def test_the_definitions_explain_what_the_prose_says_they_do():
    """Notebook 10 says so: by the other's definition our own records give the other's number."""
    tools = SEEN["vllm"]["tools"]
    said, ours = (tools[tool]["says"]["TPOT mean, ms"] for tool in ("GuideLLM", "ours"))
    assert abs(tools["ours"]["by"]["GuideLLM"]["TPOT mean, ms"] - said) < 0.5 * abs(ours - said)
    for tool in SEEN["paced"]["tools"].values():  # no rate depends on where a window cuts
        assert tool["says"]["requests/s"] == pytest.approx(tool["server"]["requests/s"], rel=0.02)
    gaps = SEEN["paced"]["tools"]["GuideLLM"]
    said, sent, by = (gaps[kind]["ITL p99, ms"] for kind in ("says", "server", "server_by"))
    assert said < 0.95 * sent and abs(by - said) < 0.5 * abs(sent - said)
    late = SEEN["role first"]["tools"]["vllm bench serve"]
    assert late["says"]["TTFT p50, ms"] < 0.5 * late["server"]["TTFT p50, ms"]  # of the text
    for tool in ("ours", "GuideLLM"):
        right = SEEN["role first"]["tools"][tool]
        assert right["says"]["TTFT p50, ms"] > 0.95 * right["server"]["TTFT p50, ms"]


# -- the definitions ----------------------------------------------------------------------------


def record(sent_s: float, *token_ms: int) -> Record:
    """An answer whose connection took 10 ms to open and whose last byte came 5 ms late."""
    return Record(
        index=0,
        sent_s=sent_s,
        connect_s=0.01,
        end_s=sent_s + token_ms[-1] / 1e3 + 0.005,
        token_us=tuple(1000 * ms for ms in token_ms),
        output_tokens=len(token_ms),
    )


@pytest.fixture
def records() -> list[Record]:
    """Two answers of three tokens, one with a long gap."""
    return [record(1.0, 100, 110, 120), record(2.0, 100, 110, 210)]


def test_vllms_definition(records):
    """From before the connection, a gap that is no gap, the last text, the whole run."""
    found = as_vllm(records)
    assert found["requests/s"] == pytest.approx(2 / 1.225)  # 0.99 to 2.215
    assert found["output tokens/s"] == pytest.approx(6 / 1.225)
    assert found["TTFT p50, ms"] == pytest.approx(110)
    assert found["ITL p50, ms"] == pytest.approx(10)  # of 0, 10, 10 and 0, 10, 100
    assert found["TPOT mean, ms"] == pytest.approx((10 + 55) / 2)
    assert found["end to end p50, s"] == pytest.approx((0.13 + 0.22) / 2)
    at_once = as_vllm(records, role_at_once=True)
    assert at_once["TTFT p50, ms"] == pytest.approx(10)  # the text came 100 ms later
    assert at_once["TPOT mean, ms"] == pytest.approx((60 + 105) / 2)


def test_guidellms_definition(records):
    """From the open connection, a mean an answer, the first token's wait in each token's time."""
    found = as_guidellm(records)
    assert found["requests/s"] == pytest.approx(2 / 1.215)
    assert found["TTFT p50, ms"] == pytest.approx(100)
    assert (found["ITL p50, ms"], found["ITL p99, ms"]) == pytest.approx((10, 55))  # not 100
    assert found["TPOT mean, ms"] == pytest.approx((40 + 70) / 2)
    assert found["end to end p50, s"] == pytest.approx((0.125 + 0.215) / 2)
