"""A question set asked once, and rounds of it compared: what is right, what is the same."""

import math

import pandas
import pytest
from support.scripted import Scripted, counting, said

from helpers import measure
from helpers.endpoint import Endpoint
from helpers.errors import CourseError

ASKED = {
    "capitals": {"France?": "Paris", "Japan?": ["Tokyo", "Edo"]},
    "sums": {"2 + 3?": [5, "five"]},
}


def told(*texts, cause=""):
    """A round with these answers to the questions A?, B?, ...; right is what says yes."""
    rows = [
        (f"{chr(65 + at)}?", "yes", text, "yes" in text, cause) for at, text in enumerate(texts)
    ]
    return pandas.DataFrame(rows, columns=["question", "expected", "answer", "right", "cause"])


async def test_each_question_is_asked_once_greedily():
    """With sampling, or one question asked twice, two rounds would differ by chance alone."""
    async with Scripted(lambda body: said(body["messages"][0]["content"])) as (server, endpoint):
        found = measure.answers(endpoint, ASKED, output_tokens=7)
    assert found["question"].tolist() == ["France?", "Japan?", "2 + 3?"]
    assert found["kind"].tolist() == ["capitals", "capitals", "sums"]
    assert found["expected"].tolist() == ["Paris", "Tokyo, Edo", "5, five"]
    assert [text.split("?")[0] + "?" for text in found["answer"]] == found["question"].tolist()
    assert len(server.asked) == 3
    assert {(one["temperature"], one["max_tokens"]) for one in server.asked} == {(0, 7)}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Paris.", True),
        ("It is PARIS, of course", True),
        ("Parisian", False),
        ("the answer is 5.", True),
        ("5, I think", True),
        ("**five**", True),
        ("_Paris_", True),
        ("__five__", True),
        ("_Parisian_", False),
        ("15", False),
        ("5.5", False),
        ("1,005 or 0.5", False),
        ("-5", False),
        ("twenty-five", False),
        ("", False),
    ],
)
async def test_whole_words_are_looked_for(text, right):
    """A 5 inside 15 would make a model look better than it is."""
    asked = {"any": {"?": ["Paris", 5, "five"]}}
    async with Scripted(said(text)) as (_, endpoint):
        assert measure.answers(endpoint, asked)["right"].tolist() == [right]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ((400, '{"error": {"message": "no"}}'), "http 400"),
        ((200, "<html>"), "http 200"),
        ((200, '{"choices": []}'), "http 200"),
        (said(None), ""),
    ],
)
async def test_what_gets_no_answer_is_wrong_and_says_why(answer, cause):
    """One refused question must neither be lost nor cost the others their answers."""
    async with Scripted(answer, said("Paris"), said("Paris")) as (_, endpoint):
        found = measure.answers(endpoint, ASKED, users=1)
    assert found["cause"].tolist() == [cause, "", ""]
    assert found["answer"].tolist() == ["", "Paris", "Paris"] and not found["right"].any()


def test_a_server_that_is_not_there_scores_nothing():
    """Every row says so, and no exception takes the other answers with it."""
    found = measure.answers(Endpoint(base_url="http://127.0.0.1:9/v1", model="m"), ASKED)
    assert len(found) == 3 and found["cause"].all() and not found["right"].any()


async def test_no_more_questions_in_flight_than_users():
    """More than the server has room for would measure its queue."""
    most: list[int] = []
    async with Scripted(counting(most)) as (_, endpoint):
        measure.answers(endpoint, {"k": {f"{n}?": "a" for n in range(9)}}, users=3)
    assert max(most) <= 3


def test_rounds_stand_beside_the_reference():
    """Lost and gained must not be exchanged, and a right answer in other words is not the same."""
    first = told("yes it is", "yes it is", "no", "no it is not")
    other = told("yes  it\nis", "no", "yes", "no it is")
    found = measure.quality({"first": first, "again": first, "other": other})
    assert found.loc["again"][["words", "lost", "gained", "chance"]].isna().tolist()[0]
    assert (found["same"]["again"].value, found["right"]["first"].value) == (100, 50)
    row = found.loc["other"]
    assert (row["lost"], row["gained"], row["chance"]) == (1, 1, 1)
    assert (row["same"].value, row["words"]) == (25, 0)  # they differ after 0, 0 and 3 words


def test_no_answer_is_not_the_same_answer():
    """Two dead servers would agree word for word."""
    dead = told("", "", cause="http 500")
    found = measure.quality({"dead": dead, "again": dead})
    assert found["same"]["again"].value == 0


def test_rounds_of_other_questions_are_refused():
    """Their figures could not be compared."""
    with pytest.raises(CourseError, match="'b' is of other questions"):
        measure.quality({"a": told("yes", "no"), "b": told("yes")})


async def test_no_question_has_no_quality():
    """And nobody who asks none gets the course's own hundred asked."""
    async with Scripted(said("Paris")) as (server, endpoint):
        none = measure.answers(endpoint, {})
    assert none.empty and not server.asked
    for ask in (lambda: measure.quality({}), lambda: measure.quality({"a": none})):
        with pytest.raises(CourseError, match="questions_in_each_round must be above 0"):
            ask()
    with pytest.raises(CourseError, match="above 0"):
        measure.wilson(0, 0)


@pytest.mark.parametrize(
    ("lost", "gained", "chance"),
    [(0, 0, 1), (1, 0, 1), (5, 5, 1), (7, 2, 0.1796875), (2, 7, 0.1796875), (0, 12, 2 / 2**12)],
)
def test_chance_is_the_binomial_test(lost, gained, chance):
    """A p-value that is too small calls noise a loss (the values: R's binom.test)."""
    first = told(*["yes"] * lost, *["no"] * gained, "yes")
    other = told(*["no"] * lost, *["yes"] * gained, "yes")
    found = measure.quality({"first": first, "other": other})
    assert found["chance"]["other"] == pytest.approx(chance)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0, 16), (10, 30, 70), (20, 84, 100)])
def test_intervals_are_wilsons(right, low, high):
    """The usual formula would say that 0 of 20 is 0 % for sure (Wilson 1927; R's prop.test)."""
    found = measure.quality({"first": told(*["yes"] * right, *["no"] * (20 - right))})
    one = found["right"]["first"]
    assert (one.value, one.low, one.high) == (5 * right, low, high)
    assert math.isnan(found["words"]["first"])


@pytest.mark.parametrize("of", [1, 2, 32, 97])
def test_no_interval_leaves_what_a_share_can_be(of):
    """Rounding once put the ends of none and of all below 0 and above 1."""
    for hits in range(of + 1):
        share, low, high = measure.wilson(hits, of)
        assert 0 <= low <= share <= high <= 1
        # What both ends solve: as many standard errors away as the interval has.
        for end in (low, high):
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / of)
