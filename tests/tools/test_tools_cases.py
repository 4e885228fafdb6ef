"""Function calling: what servers, readers and their tools really do, each case once met."""

import asyncio
import json
from datetime import date
from types import SimpleNamespace
from typing import Annotated

import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall as Wish
from pydantic import BaseModel, ConfigDict, Field
from support.asked import question
from support.scripted import Scripted, call, said, wants

from helpers import tools
from helpers.errors import CourseError
from helpers.plots import tools as plots_tools
from helpers.tools.conversation import Call, Conversation, Reply, Step, read_stream
from helpers.tools.questions import judge, read


class Book(BaseModel):
    title: str = "x"
    pages: int = 1


BOOK = Book()


def sender():
    sent = []

    @tools.tool(acts=True)
    def send(amount: int = 1) -> str:
        sent.append(amount)
        return "sent"

    @tools.tool
    def look() -> str:
        return "seen"

    return sent, send, look


async def test_a_call_against_the_choice_does_not_run():
    """A server that ignores ``tool_choice`` must not be what decides whether money is sent."""
    sent, send, look = sender()
    async with Scripted(wants(call("send")), said()) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [send, look], tool_choice="none")
    assert sent == [] and "tool_choice" in talk.problems[0]
    wish = wants(call("send"))
    async with Scripted(wish, wish, said()) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [send, look], tool_choice=look)
    assert sent == [1] and len(talk.problems) == 1  # in the second round the choice is free
    both = wants(call("look", id="1"), call("send", id="2"))
    async with Scripted(both, said()) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [send, look], parallel_tool_calls=False)
    assert sent == [1] and "at most 1" in talk.problems[0]


async def test_only_what_was_read_is_foreign():
    """A call that never ran has brought no text of strangers into the conversation."""
    sent, send, _ = sender()

    @tools.tool(foreign=True)
    def page(number: int) -> str:
        return "text"

    wishes = [wants(call("nosuch")), wants(call("page", {"number": "x"})), wants(call("send"))]
    async with Scripted(*wishes, said()) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [page, send])
    assert sent == [1] and len(talk.problems) == 2
    wishes = [wants(call("page", {"number": 1})), wants(call("send"))]
    async with Scripted(*wishes, said()) as (_, endpoint):
        await tools.run_tools(endpoint, "Hi", [page, send])
    assert sent == [1]


def test_a_warning_stays_on_a_tool():
    """Making a tool of a tool must not take its mark away."""
    _, send, _ = sender()
    both = tools.tool(send, foreign=True)
    assert both.acts and both.foreign and tools.tool(send).acts


def test_a_default_reaches_the_model():
    """It is the shortest way to say what happens when an argument is left out."""

    @tools.tool
    def order(book: Book = BOOK, unit: str = "kg", note: str | None = None) -> str:
        return ""

    told = order.schema()["properties"]
    assert told["unit"]["default"] == "kg" and "default" not in told["note"]
    assert told["book"]["default"] == {"title": "x", "pages": 1}
    strict = order.schema(strict=True)["properties"]
    assert not any("default" in about for about in strict.values())
    asked = tools.Question(kind="k", messages=[], tools=[order.definition()], calls=[("order", {})])
    given = Reply(calls=(Call(name="order", arguments='{"unit": "kg"}'),))
    assert judge(asked, given).right_tool and judge(asked, given).cause == "right"


def test_a_field_as_a_default_is_refused():
    """A plain call would hand the Field itself to the function, and its limits would be lost."""

    def pay(amount: int = Field(ge=1)) -> str:
        return ""

    with pytest.raises(CourseError, match="Annotated"):
        tools.tool(pay)

    @tools.tool
    def fine(amount: Annotated[int, Field(ge=1)] = 5) -> str:
        return ""

    with pytest.raises(tools.BadArguments):
        fine.arguments('{"amount": 0}')


@pytest.mark.parametrize("annotation", ["a number", "datetime.nothing"])
def test_an_annotation_that_cannot_be_read_is_a_sentence(annotation):
    """Whatever is wrong with it."""

    def it(x) -> str:
        return ""

    it.__annotations__["x"] = annotation
    with pytest.raises(CourseError, match="annotation"):
        tools.tool(it)
    it.__annotations__["x"] = Annotated[str, Field(pattern="(")]
    with pytest.raises(CourseError, match="cannot carry"):
        tools.tool(it)
    it.__name__ = "x" * 65
    with pytest.raises(CourseError, match="no name"):
        tools.tool(it)


def test_strict_models_take_json():
    """In JSON a date is a text; pydantic's strict mode knows that if it is told."""

    class Day(BaseModel):
        model_config = ConfigDict(strict=True)
        when: date

    @tools.tool
    def plan(day: Day) -> str:
        return ""

    assert plan.arguments('{"day": {"when": "2026-11-24"}}')["day"].when == date(2026, 11, 24)


async def test_a_history_may_hold_the_clients_own_calls():
    """OpenAI's examples append ``message.tool_calls`` as it is; a server's may be half empty."""
    sent, send, _ = sender()
    wish = Wish(id="a1", type="function", function={"name": "send", "arguments": "{}"})
    for calls in ([wish], [{"id": "a1", "function": None}]):
        history = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a1", "content": "sent"},
        ]
        async with Scripted(wants(call("send", {"amount": 2})), said()) as (_, endpoint):
            await tools.run_tools(endpoint, history, [send])
    assert sent == [2]  # the second history's result came from nobody knows where


async def test_a_tool_may_cancel_itself():
    """It ends that call only."""

    async def quits() -> int:
        asyncio.current_task().cancel()
        return 1

    async with Scripted(wants(call("quits")), said("Sorry")) as (_, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [quits])
    assert talk.answer == "Sorry" and "cancelled" in talk.problems[0]


async def test_an_error_that_quotes_its_input_is_not_told():
    """pydantic's errors are ValueErrors as well, and hold the value that was wrong."""

    class Form(BaseModel):
        age: int

    def fill() -> str:
        return Form(age="password hunter2").model_dump_json()

    async with Scripted(wants(call("fill")), said()) as (server, endpoint):
        talk = await tools.run_tools(endpoint, "Hi", [fill])
        assert "hunter2" not in json.dumps(server.asked)
    assert "hunter2" in talk.problems[0]


def pieces(*deltas):
    async def stream():
        for index, id, name, arguments in deltas:
            function = SimpleNamespace(name=name, arguments=arguments)
            wish = SimpleNamespace(index=index, id=id, function=function)
            choice = SimpleNamespace(delta=SimpleNamespace(tool_calls=[wish]), finish_reason=None)
            yield SimpleNamespace(choices=[choice], usage=None)

    return read_stream(stream())


@pytest.mark.parametrize(
    "deltas",
    [
        [(0, "A", "f", ""), (0, None, None, '{"a"'), (0, None, None, ": 1}"), (1, "B", "g", "{}")],
        [(0, "A", "f", '{"a": 1}'), (0, "B", "g", "{}")],
        [(None, "A", "f", '{"a"'), (None, None, None, ": 1}"), (None, "B", "g", "{}")],
        [(0, "A", "f", '{"a"'), (0, "A", "f", ": 1}"), (1, "B", "g", "{}")],
        [(1, "B", "g", "{"), (0, "A", "f", '{"a": 1}'), (1, None, None, "}")],
    ],
    ids=["as specified", "all are 0", "none has an index", "repeated", "mixed"],
)
async def test_streamed_calls_are_put_together(deltas):
    """Servers number the pieces of calls in their own ways."""
    reply = await pieces(*deltas)
    assert [(c.id, c.name, c.arguments) for c in reply.calls] == [
        ("A", "f", '{"a": 1}'), ("B", "g", "{}"),
    ]  # fmt: skip


def test_a_conversation_about_money_is_drawn(tmp_path):
    """Two dollar signs are no formula; a stranger's escape codes do not reach the terminal."""
    step = Step(phase="answering", round=1, start_s=0, end_s=1, what='{"min": "$10", "max": "$2_"}')
    talk = Conversation(messages=[], steps=[step])
    picture = plots_tools.conversation(talk, "costs $1 to $2_")
    picture.savefig(tmp_path / "talk.png")
    assert "\x1b" not in str(Step(phase="executing", round=1, start_s=0, end_s=1, what="\x1b[2Kx"))


async def test_a_question_of_a_tool_without_arguments_can_be_asked():
    """Such a tool has no ``parameters`` at all; one question must not end all others."""
    ping = {"type": "function", "function": {"name": "ping"}}
    asked = tools.Question(kind="k", messages=[], tools=[ping], calls=[("ping", {})])
    assert judge(asked, Reply(calls=(Call(name="ping", arguments="{}"),))).cause == "right"
    with pytest.raises(CourseError, match="no user"):
        await tools.evaluate(None, [question()], users=0)


def test_questions_of_ones_own(tmp_path):
    """A date without quotes would never be equal to a text; an argument may be left out always."""
    text = (
        "tools: {ev: {says: x, args: {date: {type: string}, note: {type: string}}, required: []}}\n"
        "sets: {}\n"
        "questions: [{kind: k, tools: [ev], ask: a, calls: [ev: {date: DATE, note: ~}]}]"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("DATE", "2026-11-25"))
    with pytest.raises(CourseError, match="form"):
        read(path)
    path.write_text(text.replace("DATE", '"2026-11-25"'))
    assert read(path)[0].expected == 'ev({"date": "2026-11-25"})'


def test_a_crowd_without_answers_is_left_out():
    """A row of nothing must not become a title that says "0.0 times as long"."""
    good = [Conversation(messages=[], steps=[Step(phase="answering", round=1, start_s=0, end_s=1,
                                                  what="x")])]  # fmt: skip
    lost = [Conversation(messages=[], stopped="no answer after 6 rounds")]
    picture = plots_tools.phases(tools.phases({1: good, 2: good, 8: lost}), "s")
    assert picture.get_suptitle().startswith("2 users wait 1.0 times")
    with pytest.raises(CourseError, match="no conversation"):
        plots_tools.phases(tools.phases({8: lost}), "s")
