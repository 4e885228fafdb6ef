"""What a server's answers are worth: a set of questions asked once, and rounds of it compared.

Made to see what quantization loses. Two measures, because they say different things: how many
answers are right, and how many are the same words as those of a reference. An answer in other
words may be as good, and the same server gives one now and then: which requests are computed
together changes the order in which numbers are added. So the second round of a comparison should
be the reference asked again.
"""

import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import pandas
import yaml

from helpers.endpoint import Endpoint
from helpers.errors import CourseError, above_zero
from helpers.measure.steady import Interval
from helpers.settings import ASSETS

SHORT = " Answer in one short sentence."  # after every question: long answers would list guesses
REQUEST_S = 120.0  # from sending a question to its answer
ROW = ["kind", "question", "expected", "answer", "right", "cause"]
COLUMNS = ["right", "same", "words", "lost", "gained", "chance"]


def questions() -> dict[str, dict[str, Any]]:
    """Return the course's own questions by kind, each with what is right; their file says more."""
    return yaml.safe_load((ASSETS / "questions.yaml").read_text(encoding="utf-8"))


def answers(
    endpoint: Endpoint, asked: Mapping | None = None, *, output_tokens: int = 32, users: int = 8
) -> pandas.DataFrame:
    """Ask every question once, greedily (temperature 0), and say which answers are right.

    Args:
        endpoint: any OpenAI-compatible server.
        asked: by default the course's own ``questions``; others in the same form.
        output_tokens: longest answer, in tokens.
        users: questions in flight at the same time.

    Returns:
        One row a question: ``kind``, ``question``, ``expected``, ``answer``, ``right``, and
        ``cause``, why there is no answer. One that fails counts as wrong.
    """
    path = endpoint.base_url.removeprefix(endpoint.origin) + "/chat/completions"
    request = {"model": endpoint.model, "temperature": 0, "max_tokens": output_tokens}

    def one(kind: str, question: str, expected: Any) -> tuple:
        said, cause, message = "", "", {"role": "user", "content": question + SHORT}
        try:
            reply = endpoint.call(path, request | {"messages": [message]}, REQUEST_S)
            said = reply.json()["choices"][0]["message"]["content"] or ""
        except ConnectionError as error:
            cause = str(error)
        except (LookupError, TypeError, ValueError):  # no completion
            cause = f"http {reply.status_code}"
        wanted = [str(word) for word in (expected if isinstance(expected, list) else [expected])]
        return kind, question, ", ".join(wanted), said, _stands_in(said, wanted), cause

    asked = questions() if asked is None else asked
    rows = [(kind, *pair) for kind, some in asked.items() for pair in some.items()]
    with ThreadPoolExecutor(users) as pool:
        return pandas.DataFrame(pool.map(one, *zip(*rows, strict=True)), columns=ROW)


def quality(rounds: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Set rounds of the same questions beside the first of them, the reference.

    Args:
        rounds: what ``answers`` returned, by name; the second should be the reference again.

    Returns:
        One row a round. ``right``: percentage of right answers, and ``same``: of those that are
        the reference's word for word, each with its 95 % interval; ``words`` with which the others
        begin like the reference (median). ``lost`` and ``gained``: how many only the reference has
        right, and only this round. ``chance``: the probability of a split so uneven, or more, if
        neither is better (McNemar 1947, exact: each of the ``lost + gained`` questions falls to
        either side with probability 1/2).

    Raises:
        CourseError: there is no round, one has no questions, or they are of different ones.
    """
    above_zero(questions_in_each_round=min(map(len, rounds.values()), default=0))
    first, rows = next(iter(rounds.values())), {}
    for name, this in rounds.items():
        if not first[["question", "expected"]].equals(this[["question", "expected"]]):
            raise CourseError(f"the round {name!r} is of other questions", "ask the same in each")
        alike = first["answer"].combine(this["answer"], _alike)
        alike[(first["cause"] != "") | (this["cause"] != "")] = 0  # nothing to be the same as
        better = this["right"].astype(int) - first["right"]
        lost, gained = (better < 0).sum(), (better > 0).sum()
        shares = _percent(this["right"]), _percent(alike.isna())
        rows[name] = [*shares, alike.median(), lost, gained, _chance(lost, gained)]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)


def wilson(hits: Any, of: Any) -> tuple[Any, Any, Any]:
    """Return a share and the ends of its 95 % interval (Wilson 1927), from 0 to 1.

    Args:
        hits: how many did; a number, or a column of a table.
        of: how many could have, likewise.

    Raises:
        CourseError: nobody could have.

    >>> [round(share, 2) for share in wilson(50, 100)]
    [0.5, 0.4, 0.6]
    """
    above_zero(of=pandas.Series(of).min())
    z = 1.959964
    # Usually written as a middle and a distance from it: that ends below 0 or above 1, by rounding.
    wide = z**2 / 2 + z * (hits * (of - hits) / of + z**2 / 4) ** 0.5
    low, high = hits**2 / of / (hits + wide), 1 - (of - hits) ** 2 / of / (of - hits + wide)
    return hits / of, low, high


def _percent(hits: pandas.Series) -> Interval:
    value, low, high = (round(100 * float(share)) for share in wilson(hits.sum(), len(hits)))
    return Interval(value=value, low=low, high=high)


def _stands_in(text: str, wanted: list[str]) -> bool:
    """Whether one of them is there as whole words; a number not as a part of another one.

    A ``_`` is no part of a word: it emphasizes, as ``*`` does.
    """
    words = "|".join(map(re.escape, wanted))
    return bool(re.search(rf"(?i)(?<![^\W_]|-)(?<!\d[.,])({words})(?![^\W_]|[.,]\d)", text))


def _alike(one: str, other: str) -> float:
    """With how many words both begin before they differ; NaN if they never do."""
    pairs = zip_longest(one.split(), other.split())
    return next((float(at) for at, (a, b) in enumerate(pairs) if a != b), math.nan)


def _chance(lost: int, gained: int) -> float:
    """The two-sided p-value of McNemar's exact test."""
    ways = sum(math.comb(lost + gained, few) for few in range(min(lost, gained) + 1))
    return min(1.0, 2 * ways / 2 ** (lost + gained))
