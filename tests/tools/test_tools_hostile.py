"""Function calling among enemies: whatever model, tools and server do, a conversation comes out."""

import asyncio
import collections
import dataclasses
import decimal
import itertools
import json
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from pydantic import AfterValidator, BaseModel
from support.scripted import Scripted, call, said, wants
from typing_extensions import Annotated  # noqa: UP035

from helpers import tools
from helpers.errors import CourseError
from helpers.tools.run import as_text


class Leaf(BaseModel):
    value: Any = None


@dataclasses.dataclass
class Box:
    value: Any = None


class Evil(str):
    """A text that lies about itself."""

    def encode(self, *_):
        return 7

    def __len__(self):
        return 0

    def __str__(self):
        raise KeyboardInterrupt


class Mute(Exception):
    def __str__(self):
        raise SystemExit(1)


class Endless(Exception):
    def __str__(self):
        time.sleep(3)
        return "at last"


def ring(kind):
    """Something that holds itself."""
    if kind is dict:
        found = {}
        found["self"] = found
    elif kind is list:
        found = []
        found.append(found)
    else:
        found = kind()
        found.value = found
    return found


def deep(levels, wrap):
    found = 1
    for _ in range(levels):
        found = wrap(found)
    return found


def forever():
    while True:
        yield 1


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.binary(max_size=9), st.decimals(), st.datetimes(), st.uuids(),
    st.complex_numbers(), st.fractions(), st.builds(Evil, st.text(max_size=5)), st.builds(object),
    st.just(sys), st.just(len),
    st.builds(forever), st.builds(itertools.count), st.builds(threading.Lock),
    st.sampled_from([dict, list, Leaf, Box]).map(ring), st.just(range(10**9)),
    st.just("x" * 10**6), st.builds(pow, st.just(10), st.just(5000)), st.just("\ud83d"),
)  # fmt: skip
RESULTS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
        st.builds(lambda value: Leaf(value=value), inner),
        st.builds(Box, inner),
        st.builds(lambda value: collections.deque([value]), inner),
        st.builds(lambda value: iter([value]), inner),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(value=RESULTS, limit=st.integers(1, 200))
def test_every_result_is_written_or_refused(value, limit):
    """Text of limited length that can be sent, or an ordinary exception; never for ever."""
    try:
        text = as_text(value, limit)
    except Exception:
        return
    assert type(text) is str and len(text) <= limit + 60
    text.encode()


@pytest.mark.parametrize(
    "value",
    [
        deep(100_000, lambda inner: [inner]),
        deep(2_000, lambda inner: {"a": inner}),
        deep(2_000, Box),
        deep(300, lambda inner: Leaf(value=inner)),
        Box(forever()),
        Leaf(value=forever()),
        {forever()},
        [forever() for _ in range(10)],
        frozenset({1, 2}),
        decimal.Decimal("NaN"),
        b"\xff",
        Evil("x"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_strange_results_go_back_as_text(value):
    """Nested ten thousand times, or endless within: the conversation goes on."""

    @tools.tool
    def give() -> object:
        return value

    limits = tools.Limits(result_chars=300, tool_s=5)
    async with Scripted(wants(call("give")), said("end")) as (server, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [give], limits=limits)
    sent = server.asked[1]["messages"][-1]["content"]
    assert isinstance(sent, str) and len(sent) < 400 and talk.answer == "end"


@pytest.mark.parametrize("way", ["str", "property", "error"])
async def test_writing_a_result_has_the_tools_time(way):
    """A result that takes for ever to be written must not hold up the reader's notebook."""

    class Slow:
        def __str__(self):
            time.sleep(3)
            return "late"

    @dataclasses.dataclass
    class Lazy:
        value: int = 0

        def __getattribute__(self, name):
            if name == "value":
                time.sleep(3)
            return super().__getattribute__(name)

    def give() -> object:
        if way == "error":
            raise Endless
        return Slow() if way == "str" else Lazy()

    async def heartbeat():
        while True:
            beats.append(time.perf_counter())
            await asyncio.sleep(0.02)

    beats = []
    async with Scripted(wants(call("give")), said("end")) as (_, endpoint):
        beating = asyncio.ensure_future(heartbeat())
        talk = await tools.run_tools(endpoint, "Hi", [give], limits=tools.Limits(tool_s=0.3))
        beating.cancel()
    assert talk.answer == "end" and "no result within" in talk.problems[0]
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1.5


RAISED = [
    KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, StopIteration,
    StopAsyncIteration, TimeoutError, RecursionError, MemoryError, BaseException, Mute,
    lambda: BaseExceptionGroup("two", [SystemExit(1), KeyboardInterrupt()]),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), lambda: OSError(2, "no", "/secret"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["plain", "async", "returned"])
async def test_nothing_that_a_tool_raises_comes_out(how, stream):
    """Not even what is meant to end a program; the other tools of the round still run."""
    for kind in RAISED:

        def plain(kind=kind) -> str:
            raise kind()

        async def later(kind=kind) -> str:
            await asyncio.sleep(0)
            raise kind()

        def returned(kind=kind) -> object:
            return later(kind)

        function = {"plain": plain, "async": later, "returned": returned}[how]
        bad = tools.tool(lambda_free(function))

        @tools.tool
        def good() -> str:
            return "fine"

        both = wants(call("fail", id="1"), call("good", id="2"))
        async with Scripted(both, said("end")) as (server, endpoint):
            talk = await tools.run_tools(endpoint, "Hi", [bad, good], stream=stream)
        texts = [m["content"] for m in server.asked[1]["messages"] if m["role"] == "tool"]
        assert "error" in json.loads(texts[0]) and texts[1] == "fine", kind
        assert "/secret" not in texts[0] and "Traceback" not in texts[0]
        assert talk.answer == "end" and len(talk.problems) == 1


def lambda_free(function):
    """Return the function under the name ``fail``, without parameters."""
    if asyncio.iscoroutinefunction(function):

        async def fail():
            return await function()
    else:

        def fail():
            return function()

    return fail


async def test_a_tool_may_print_and_start_loops_of_its_own(capsys):
    """Tools are ordinary code: they print, and some call ``asyncio.run``."""

    @tools.tool
    def busy() -> int:
        print("working \ud83d".encode("utf-8", "replace"))
        return asyncio.run(asyncio.sleep(0, 41)) + 1

    async with Scripted(wants(call("busy")), said("42")) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [busy])
    assert [step.result for step in talk.calls] == ["42"] and "working" in capsys.readouterr().out


async def test_arguments_may_have_any_name():
    """Also the names that the code around uses for its own."""

    @tools.tool
    def odd(
        function: int, self: int, cls: int, arguments: int, limit: int, value: int
    ) -> list[int]:
        return [function, self, cls, arguments, limit, value]

    given = {"function": 1, "self": 2, "cls": 3, "arguments": 4, "limit": 5, "value": 6}
    async with Scripted(wants(call("odd", given)), said()) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [odd])
    assert [step.result for step in talk.calls] == ["[1, 2, 3, 4, 5, 6]"]


@pytest.mark.parametrize("kind", [ValueError, KeyError, SystemExit, RuntimeError])
async def test_a_validator_of_the_tools_own_may_fail(kind):
    """What checks an argument is the reader's code as well."""

    def check(value: str) -> str:
        raise kind("secret detail" if kind is not ValueError else "wrong town")

    ran = []

    @tools.tool
    def visit(town: Annotated[str, AfterValidator(check)]) -> str:
        ran.append(town)
        return town

    async with Scripted(wants(call("visit", {"town": "x"})), said("end")) as (server, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [visit])
    told = server.asked[1]["messages"][-1]["content"]
    assert not ran and talk.answer == "end" and len(talk.problems) == 1
    assert "secret detail" not in told and ("wrong town" in told) == (kind is ValueError)


def test_functions_that_yield_are_refused():
    """Their result is an iterator, of which a model could read nothing."""

    def one_by_one() -> list:
        yield 1

    async def later() -> list:
        yield 1

    for function in (one_by_one, later):
        with pytest.raises(CourseError, match="yields"):
            tools.tool(function)


def test_models_that_hold_each_other_are_refused():
    """A schema without end cannot be written out; said when the tool is made."""

    class Left(BaseModel):
        right: "Right | None" = None

    class Right(BaseModel):
        lefts: list[Left] = []

    Left.model_rebuild(_types_namespace={"Right": Right})

    def connect(left) -> str:
        return ""

    connect.__annotations__["left"] = Left
    with pytest.raises(CourseError, match="holds itself"):
        tools.tool(connect)


async def test_a_chat_may_hold_what_the_client_returned():
    """Readers append the message object itself, as the library's own examples do."""
    mine = ChatCompletionMessage(role="assistant", content="Hello")
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, mine,
            {"role": "user", "content": "Again"}]  # fmt: skip
    async with Scripted(said("Yes")) as (server, endpoint):
        talk = await tools.run_tools(endpoint, chat, [])
        assert server.asked[0]["messages"][1] == {"role": "assistant", "content": "Hello"}
        assert talk.answer == "Yes" and "asked" in repr(talk)
        for wrong in ([1], [None], ["Hi"], [{}]):
            with pytest.raises(CourseError, match="list of messages"):
                await tools.run_tools(endpoint, wrong, [])


# Everything at once: rounds of any wishes, to tools that do anything.

BEHAVIOURS = st.one_of(
    RESULTS.map(lambda value: ("give", value)),
    st.sampled_from(RAISED).map(lambda kind: ("raise", kind)),
    st.just(("hang", None)),
)
WISHES = st.lists(
    st.tuples(
        st.sampled_from(["plain", "later", "forbidden", "Plain", "plain ", "", "os.system"])
        | st.text(max_size=6),
        st.sampled_from(["", "{}", '{"number": 1}', '{"number": "1"}', "{", "null", "[]",
                         '{"number": 1, "x": 2}', '{"number": 1e999}', '{"number": [[[1]]]}',
                         '{"number": null}', "[" * 9999, '{"a"' * 999])
        | st.text(max_size=9),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(WISHES, min_size=1, max_size=4),
    behaviours=st.lists(BEHAVIOURS, min_size=1, max_size=4),
    ends=st.booleans(),
    stream=st.booleans(),
)
async def test_any_model_with_any_tools_ends_in_a_conversation(rounds, behaviours, ends, stream):
    """No exception comes out, only what is allowed ran, and what goes back could be sent."""
    ran, turns, release = [], itertools.cycle(behaviours), threading.Event()

    def behave():
        what, value = next(turns)
        if what == "raise":
            raise value()
        if what == "hang":
            release.wait(5)
        return value

    def forbidden(number: int = 0) -> str:
        ran.append("forbidden")
        return ""

    def plain(number: int) -> object:
        ran.append("plain")
        assert type(number) is int
        return behave()

    async def later(number: int = 0) -> object:
        ran.append("later")
        what, value = next(turns)
        if what == "hang":
            await asyncio.sleep(5)
        if what == "raise":
            raise value()
        return value

    tools.tool(forbidden)
    asked = [wants(*(call(name, given, "") for name, given in wishes)) for wishes in rounds]
    limits = tools.Limits(rounds=5, calls=3, tool_s=0.05, result_chars=500)
    async with Scripted(*asked, *([said("end")] if ends else [])) as (server, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [plain, later], limits=limits, stream=stream)
    release.set()
    assert set(ran) <= {"plain", "later"} and len(server.asked) <= 5
    assert len(ran) <= 3 * len(server.asked)
    assert bool(talk.stopped) == (talk.steps[-1].phase == "executing")
    for body in server.asked:
        for message in body["messages"]:
            assert isinstance(message["content"] or "", str) and len(message["content"] or "") < 900
    repr(talk), talk.frame(), talk.problems, talk.seconds("executing")
