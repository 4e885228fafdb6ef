"""The loop of function calling: ask, check, execute, feed back, until the model answers.

What a model writes is a wish. A call runs only if its name is in the list that the caller gave and
its arguments pass that tool's schema; whatever goes wrong becomes a message to the model and a line
for the reader, never an exception. The one thing raised is that the server does not answer.
A call is made once: to the same one again the model gets its result again, and if it asks for
nothing else, it has to answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_jsonable_python

from helpers.endpoint import Endpoint, hide_key
from helpers.errors import CourseError
from helpers.load.client.answer import Call
from helpers.load.client.reading import Answer, read
from helpers.load.client.transport import Exchange
from helpers.tools.conversation import Conversation
from helpers.tools.run import Outcome, as_text, execute, failed
from helpers.tools.schema import BadArguments, Tool, definitions, tool

if TYPE_CHECKING:
    import openai

Choice = Literal["auto", "none", "required"] | Tool
REPEATED = "not repeated: the same call has been made"
REQUEST_S = 120.0  # from sending a request to the end of its answer


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a conversation may use.

    Args:
        rounds: requests to the model.
        calls: executed in one round; the model is told that the others were not.
        tool_s: seconds for one call. A plain function that takes longer cannot be stopped: it goes
            on in its thread, and its result is dropped. An ``async`` one is cancelled where it
            awaits; one that blocks instead holds up everything.
    """

    rounds: int = 6
    calls: int = 8
    tool_s: float = 20.0


async def run_tools(
    endpoint: Endpoint,
    messages: str | list,
    tools: Iterable[Tool | Callable],
    *,
    tool_choice: Choice = "auto",
    strict: bool = False,
    parallel_tool_calls: bool = True,
    stream: bool = False,
    limits: Limits = Limits(),
    approve: Callable[[Tool, dict], bool] | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    client: "openai.AsyncOpenAI | None" = None,
) -> Conversation:
    """Let a model answer with the help of functions.

    Args:
        endpoint: the server.
        messages: a question, or chat messages. Results of tools among them count as foreign.
        tools: everything that may run; typed functions become tools.
        tool_choice: ``auto``: the model decides; ``none``: no call; ``required``: at least one;
            a tool: that one. A forced choice holds for the first round only, as otherwise the
            model could never answer. What a server sends against it is not executed.
        strict: ask the server to hold the arguments to the schema while they are written.
        parallel_tool_calls: whether the model may ask for several calls at once; if not, only
            the first is executed.
        stream: receive the answer in pieces.
        limits: see ``Limits``.
        approve: asked before a tool that ``acts`` runs after text from a ``foreign`` one has been
            read, or in a later round than one in which it succeeded; without it, or when it does
            not return ``True``, such a call is not executed.
        max_tokens: of each answer.
        temperature: of sampling; 0 is greedy.
        client: an open one, to be shared by many conversations; by default one of its own.

    Returns:
        The whole conversation, with every step.

    Raises:
        CourseError: the server does not answer or refuses the request.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    # Plain dictionaries, also of messages that are the client's own objects.
    talk = Conversation(messages=to_jsonable_python(messages, exclude_none=True))
    allowed: dict[str, Tool] = {one.name: one for one in map(tool, tools)}
    request = {"model": endpoint.model, "max_tokens": max_tokens, "temperature": temperature}
    if allowed:
        request["tools"] = definitions(allowed.values(), strict=strict)
        if not parallel_tool_calls:
            request["parallel_tool_calls"], limits = False, replace(limits, calls=1)
    foreign = any(one["role"] in ("tool", "function") for one in talk.messages)
    loop = _Loop(talk, allowed, tool_choice, limits, approve, foreign)
    async with nullcontext(client) if client else endpoint.async_client() as mine:
        return await loop.run(mine, request, stream)


@dataclass
class _Loop:
    """One conversation on its way.

    Args:
        foreign: it holds text that others wrote.
        made: what came of each call, by its name and arguments.
        acted: tools that act, and have.
    """

    talk: Conversation
    tools: dict[str, Tool]
    choice: Choice
    limits: Limits
    approve: Callable[[Tool, dict], bool] | None
    foreign: bool
    made: dict[tuple[str, str], str] = field(default_factory=dict)
    acted: set[str] = field(default_factory=set)

    async def run(self, client: "openai.AsyncOpenAI", request: dict, stream: bool) -> Conversation:
        """Ask and execute, until the model answers or its rounds are used up."""
        for number in range(1, self.limits.rounds + 1):
            start = clock()
            asked = request | {"messages": self.talk.messages}
            if isinstance(self.choice, Tool):
                asked["tool_choice"] = {"type": "function", "function": {"name": self.choice.name}}
            elif self.tools:
                asked["tool_choice"] = self.choice
            reply = await ask(client, asked, stream=stream)
            calls = self.talk.add_reply(reply, number, start)
            if not calls:
                return self.talk
            jobs = (self.execute(call, place, number) for place, call in enumerate(calls))
            self.talk.messages += await asyncio.gather(*jobs)
            stuck = all(one.problem == REPEATED for one in self.talk.steps[-len(calls) :])
            self.choice = "none" if self.choice == "none" or stuck else "auto"
        self.talk.stopped = f"no answer after {self.limits.rounds} rounds"
        return self.talk

    async def execute(self, call: Call, place: int, number: int) -> dict:
        """Execute a call, if it may run; keep it as a step and return the message about it."""
        start = clock()
        found = await self.outcome(call, place)
        told = {"result": found.text, "problem": found.problem}
        self.talk.add("executing", number, start, str(call), **told)
        return {"role": "tool", "tool_call_id": call.id, "content": found.text}

    async def outcome(self, call: Call, place: int) -> Outcome:
        """Check a call, the ``place``-th of its round, and execute it."""
        wanted = self.tools.get(call.name)
        if wanted is None:
            return failed(f"there is no tool called {call.name[:64]!r}", tools=list(self.tools))
        if self.choice == "none" or (isinstance(self.choice, Tool) and self.choice != wanted):
            return failed("not executed: tool_choice does not allow this call")
        if place >= self.limits.calls:
            return failed(f"not executed: at most {self.limits.calls} calls at once")
        try:
            arguments = wanted.arguments(call.arguments)
        except BadArguments as error:
            return failed(f"the arguments are not valid: {error}")
        return await self.make(wanted, arguments)

    async def make(self, wanted: Tool, arguments: dict[str, Any]) -> Outcome:
        """Execute a call, unless it has been made, or nobody approves where somebody has to."""
        same = wanted.name, repr(arguments)
        if same in self.made:
            text = as_text({"done": "this call has been made", "result": self.made[same]})
            return Outcome(text, problem=REPEATED)
        why = "this conversation has read text written by others" if self.foreign else ""
        if wanted.name in self.acted:
            why = f"{wanted.name} has been done"
        if wanted.acts and why and not (self.approve and self.approve(wanted, arguments) is True):
            return failed(f"not executed: {why}, and nobody approved")
        self.made[same] = "not there yet"
        found = await execute(wanted.function, arguments, self.limits.tool_s)
        self.made[same] = found.text
        if found.problem and not (wanted.acts and found.late):
            del self.made[same]  # it may be tried again
        # For the next round: this one's calls were decided before.
        self.foreign |= wanted.foreign
        if wanted.acts and same in self.made:
            self.acted.add(wanted.name)
        return found


async def ask(client: "openai.AsyncOpenAI", request: dict, *, stream: bool = False) -> Answer:
    """Make one request.

    Args:
        client: from ``Endpoint.async_client``.
        request: the fields of a chat completion.
        stream: receive the answer in pieces.

    Raises:
        CourseError: the server does not answer in time, refuses, or answers something else.
    """
    import httpx
    import openai

    if stream:
        request = request | {"stream": True, "stream_options": {"include_usage": True}}
    exchange, hint = Exchange(), "read the server's log"
    create = client.chat.completions.with_streaming_response.create
    try:
        async with asyncio.timeout(REQUEST_S), create(**request) as response:
            exchange.pieces, exchange.times = [await response.read()], [clock()]
        answer = read(exchange)
        if not answer.cause:
            return answer
        what, said = "the model server failed", answer.error
        if answer.cause != "server error":  # no JSON, or not of the API's form
            what = "the answer is not one of the OpenAI API"
            hint = "is base_url the root of an OpenAI-compatible server, ending in /v1?"
    except openai.AuthenticationError:
        what, said = "the server refuses the API key", "it was started with another, or with one"
        hint = "pass the key that it was started with: Endpoint(api_key=...)"
    except openai.APIStatusError as error:
        what, said = "the server refuses the request", str(error)
    except (openai.OpenAIError, httpx.HTTPError, TimeoutError) as error:
        what = "the model server does not answer"
        said = str(error) or f"nothing within {REQUEST_S:g} s"
    raise CourseError(f"{what}: {hide_key(said, client.api_key)[:300]}", hint)


async def several(jobs: Iterable[Coroutine], *, at_once: int) -> list:
    """Do jobs at the same time, but never more than ``at_once``; results in the jobs' order."""
    free = asyncio.Semaphore(at_once)

    async def one(job: Coroutine) -> Any:
        async with free:
            return await job

    return await asyncio.gather(*map(one, jobs))
