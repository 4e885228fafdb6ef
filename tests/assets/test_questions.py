"""The question set of ``measure.answers``, and the recording of notebook 12 made with it."""

import json
import re

import pandas
import pytest

from helpers import measure
from helpers.measure.quality import _stands_in
from helpers.settings import ASSETS

ROWS = [
    (kind, question, right if isinstance(right, list) else [right])
    for kind, some in measure.questions().items()
    for question, right in some.items()
]
SEEN = json.loads((ASSETS / "quantized.json").read_text())


def test_a_hundred_questions_of_equal_kinds():
    """The notebook works with a hundred; YAML silently drops a question that it has twice."""
    text = (ASSETS / "questions.yaml").read_text()
    lines = re.findall(r"^  (.*\?): ", text, re.M)
    assert len(lines) == len(set(lines)) == len(ROWS) == 100
    assert {len(some) for some in measure.questions().values()} == {20}


@pytest.mark.parametrize(("_kind", "question", "right"), ROWS, ids=[row[1] for row in ROWS])
def test_a_question_does_not_hold_its_answer(_kind, question, right):
    """A model that repeats the question would be right; yes and no are booleans in YAML."""
    assert question.endswith("?") and all(isinstance(word, str | int) for word in right)
    assert not any(isinstance(word, bool) for word in right)
    assert not _stands_in(question, [str(word) for word in right])


def test_the_recording_is_of_these_questions():
    """Else the figures in the notebook are of others than those that its reader asks."""
    asked = pandas.DataFrame(SEEN["asked"])
    assert asked["question"].tolist() == [question for _, question, _ in ROWS]
    assert asked["expected"].tolist() == [", ".join(map(str, right)) for *_, right in ROWS]


@pytest.mark.parametrize("name", SEEN["formats"])
def test_the_recording_was_judged_as_today(name):
    """A change of the judge must not leave figures by the old one."""
    one = SEEN["formats"][name]
    judged = [
        _stands_in(answer, [str(word) for word in right])
        for answer, (*_, right) in zip(one["answer"], ROWS, strict=True)
    ]
    assert judged == one["right"]


def test_the_recording_says_where_it_comes_from():
    """A reader must know engine, machine and date of every figure."""
    assert all(SEEN[key] for key in ("engine", "model", "hardware", "date"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", SEEN["date"])
