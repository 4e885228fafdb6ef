"""The data and the adapter that make the rehearsal's model call functions."""

import hashlib
import random
import re
import sys

import jsonschema
import pytest
import yaml

from helpers.settings import ASSETS

FOLDER = ASSETS / "tool_calling"


@pytest.fixture(scope="module")
def data():
    sys.path.insert(0, str(FOLDER))
    try:
        import data
    finally:
        sys.path.remove(str(FOLDER))
    return data


def test_calls_fit_their_tools(data):
    """A call in the data that its tool's schema refuses would teach the model to be refused."""
    rng, calls, without = random.Random(1), 0, 0
    for _ in range(300):
        sheet = data.sheet(rng, data.FAMILIES)
        tools = {t["function"]["name"]: t["function"]["parameters"] for t in sheet.tools}
        assert len(tools) == len(sheet.tools) <= 8
        for kind, messages in zip(sheet.kinds, sheet.conversations, strict=True):
            made = [c["function"] for m in messages for c in m.get("tool_calls", [])]
            assert bool(made) == (kind != "none")
            calls, without = calls + len(made), without + (kind == "none")
            for call in made:
                jsonschema.validate(call["arguments"], tools[call["name"]])
    assert calls > 1500
    assert without > 600


def test_same_seed_same_data(data):
    """A training that cannot be repeated cannot be checked."""
    first, second = (data.sheet(random.Random(3), data.TRAINED, conversations=40) for _ in range(2))
    assert first == second


def test_the_evaluation_is_of_tools_never_seen(data):
    """A score on tools or questions that were trained on would flatter."""
    evaluation = yaml.safe_load((ASSETS / "tool_questions.yaml").read_text())
    names = {name for family in data.FAMILIES for name in family["names"]}
    assert not names & set(evaluation["tools"])
    assert not [f for f in data.HELD_OUT if f in data.TRAINED]
    asked = {_words(question["ask"]) for question in evaluation["questions"] if "ask" in question}
    rng, trained, needless = random.Random(2), [], 0
    for _ in range(100):
        sheet = data.sheet(rng, data.TRAINED, conversations=16)
        assert not {t["function"]["name"] for t in sheet.tools} & set(evaluation["tools"])
        for kind, messages in zip(sheet.kinds, sheet.conversations, strict=True):
            said = {_words(m["content"]) for m in messages if m["role"] == "user"}
            trained, needless = trained + list(said & asked), needless + (kind == "none")
    assert not trained
    assert needless > 400


def _words(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_most_values_are_made_up(data):
    """Values out of short lists are learnt by heart; new ones can only be copied."""
    listed = {word for row in data.WORDS.values() for word in row}
    rng = random.Random(4)
    values = [data.value(rng, {"words": "cities"})[0] for _ in range(1000)]
    assert sum(value in listed for value in values) < 500
    assert len(set(values)) > 400


@pytest.mark.parametrize("name", ["adapter.gguf", "adapter_model.safetensors"])
def test_adapter_is_the_one_of_the_card(name):
    """A card that describes another file describes nothing."""
    content = (FOLDER / name).read_bytes()
    assert len(content) <= 12e6
    digest = hashlib.sha256(content).hexdigest()
    row = next(r for r in (FOLDER / "README.md").read_text().splitlines() if f"`{name}`" in r)
    assert re.search(r"[0-9a-f]{64}", row)[0] == digest
