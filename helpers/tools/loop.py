"""The loop of function calling: ask, check, execute, feed back, until the model answers.

What a model writes is a wish. A call runs only if its name is in the list that the caller gave and
its arguments pass that tool's schema; whatever goes wrong becomes a message to the model and a line
for the reader, never an exception. The one thing raised is that the server does not answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import isawaitable
from time import perf_counter as clock
from typing import TYPE_CHECKING, Literal

from pydantic_core import to_jsonable_python

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.client.answer import Call
from helpers.tools.ask import ask, connect
from helpers.tools.conversation import Conversation, written
from helpers.tools.run import Outcome, execute, failed
from helpers.tools.schema import BadArguments, Tool, as_tool, definitions

if TYPE_CHECKING:
    import openai

Choice = Literal["auto", "none", "required"] | Tool
Approve = Callable[[Tool, dict], bool | Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a conversation may use.

    Args:
        rounds: requests to the model.
        calls: executed in one round; the model is told that the others were not.
        tool_s: seconds for one call. A plain function that takes longer cannot be stopped: it goes
            on in its thread, and its result is dropped. An ``async`` one is cancelled where it
            awaits; one that blocks instead holds up everything.
        request_s: seconds for one request to the model.
        result_chars: of a result that are shown to the model.
    """

    rounds: int = 6
    calls: int = 8
    tool_s: float = 20.0
    request_s: float = 120.0
    result_chars: int = 4000


async def run_tools(
    endpoint: Endpoint,
    messages: str | list,
    tools: Iterable[Tool | Callable],
    *,
    tool_choice: Choice = "auto",
    strict: bool = False,
    parallel_tool_calls: bool = True,
    stream: bool = False,
    limits: Limits | None = None,
    approve: Approve | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    client: "openai.AsyncOpenAI | None" = None,
) -> Conversation:
    """Let a model answer with the help of functions.

    Args:
        endpoint: the server.
        messages: a question, or chat messages.
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
            read; without it, or when it does not say ``True``, such a call is not executed.
        max_tokens: of each answer.
        temperature: of sampling; 0 is greedy.
        client: an open one, to be shared by many conversations; by default one of its own.

    Returns:
        The whole conversation, with every step.

    Raises:
        CourseError: the server does not answer or refuses the request, or two tools share a name.
    """
    given = [as_tool(one) for one in tools]
    allowed = {one.name: one for one in given}
    if len(allowed) < len(given):
        raise CourseError("two tools have the same name", "rename one of the functions")
    request = {"model": endpoint.model, "max_tokens": max_tokens, "temperature": temperature}
    if given:
        request["tools"] = definitions(given, strict=strict)
    limits = limits or Limits()
    if given and not parallel_tool_calls:
        request["parallel_tool_calls"], limits = False, replace(limits, calls=1)
    talk = Conversation(messages=_chat(messages))
    foreign = _has_foreign(talk.messages, allowed)
    loop = _Loop(talk, allowed, tool_choice, limits, approve, foreign)
    async with nullcontext(client) if client else connect(endpoint) as mine:
        return await loop.run(mine, request, stream)


@dataclass
class _Loop:
    """One conversation on its way; ``foreign``: it holds text that others wrote."""

    talk: Conversation
    tools: dict[str, Tool]
    choice: Choice
    limits: Limits
    approve: Approve | None
    foreign: bool

    async def run(self, client: "openai.AsyncOpenAI", request: dict, stream: bool) -> Conversation:
        """Ask and execute, until the model answers or its rounds are used up."""
        talk = self.talk
        for number in range(1, self.limits.rounds + 1):
            start = clock()
            asked = {**request, "messages": talk.messages}
            if self.tools:
                asked["tool_choice"] = _api_choice(self.choice)
            reply = await ask(client, asked, timeout_s=self.limits.request_s, stream=stream)
            calls = talk.add_reply(reply, number, start)
            if not calls:
                return talk
            jobs = (self.execute(call, place, number) for place, call in enumerate(calls))
            outcomes = await asyncio.gather(*jobs)
            for call, outcome in zip(calls, outcomes, strict=True):
                told = {"role": "tool", "tool_call_id": call.id, "content": outcome.text}
                talk.messages.append(told)
            self.choice = "none" if self.choice == "none" else "auto"
        talk.stopped = f"no answer after {self.limits.rounds} rounds"
        return talk

    async def execute(self, call: Call, place: int, number: int) -> Outcome:
        """Execute a call, if it may run, and keep that as a step."""
        start = clock()
        outcome = await self.outcome(call, place)
        told = {"result": outcome.text, "problem": outcome.problem}
        self.talk.add("executing", number, start, written(call), **told)
        return outcome

    async def outcome(self, call: Call, place: int) -> Outcome:
        """Check a call, the ``place``-th of its round, and execute it."""
        wanted = self.tools.get(call.name)
        if wanted is None:
            told = f"there is no tool called {call.name[:64]!r}"
            return failed(told, tools=list(self.tools))
        if self.choice == "none" or (isinstance(self.choice, Tool) and self.choice != wanted):
            return failed("not executed: tool_choice does not allow this call")
        if place >= self.limits.calls:
            return failed(f"not executed: at most {self.limits.calls} calls at once")
        try:
            arguments = wanted.arguments(call.arguments)
        except BadArguments as error:
            return failed(f"the arguments are not valid: {error}")
        if wanted.acts and self.foreign:
            said = self.approve and self.approve(wanted, arguments)
            if (await said if isawaitable(said) else said) is not True:
                told = "this conversation has read text written by others, and nobody approved"
                return failed(f"not executed: {told}")
        limits = self.limits
        found = await execute(wanted.function, arguments, limits.tool_s, limits.result_chars)
        self.foreign |= wanted.foreign  # for the next round: this one's calls were decided before
        return found


def _api_choice(choice: Choice) -> str | dict:
    if isinstance(choice, Tool):
        return {"type": "function", "function": {"name": choice.name}}
    if choice not in ("auto", "none", "required"):
        raise CourseError(f"tool_choice is {choice!r}", "give 'auto', 'none', 'required' or a tool")
    return choice


def _chat(messages: str | list) -> list[dict]:
    """Return messages as plain dictionaries, also those that are the client's own objects."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    chat = to_jsonable_python(messages, exclude_none=True)
    if not all(isinstance(one, dict) and "role" in one for one in chat):
        hint = 'write each as in {"role": "user", "content": "Hello"}'
        raise CourseError("a chat is a list of messages", hint)
    return chat


def _has_foreign(chat: list[dict], tools: dict[str, Tool]) -> bool:
    """Whether a chat holds a result of a tool that reads what others wrote, or of an unknown one.

    It is read in order, because some servers give the same ids in every round.
    """
    harmless: set[str | None] = set()
    for message in chat:
        for call in message.get("tool_calls") or ():
            wanted = tools.get((call.get("function") or {}).get("name", ""))
            known = wanted is not None and not wanted.foreign
            (harmless.add if known else harmless.discard)(call.get("id"))
        if message["role"] in ("tool", "function") and message.get("tool_call_id") not in harmless:
            return True
    return False
