"""The loop of function calling: ask, check, execute, feed back, until the model answers.

What a model writes is a wish. A call runs only if its name is in the list that the caller gave and
its arguments pass that tool's schema; whatever goes wrong becomes a message to the model and a line
for the reader, never an exception. The one thing raised is that the server does not answer.
"""

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, Literal

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.tools.ask import ask, connect
from helpers.tools.conversation import Call, Conversation, Step
from helpers.tools.run import Outcome, execute, failed
from helpers.tools.schema import BadArguments, Tool, definitions, tool

if TYPE_CHECKING:
    import openai

_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
_not_run = partial(failed, ran=False)

Approve = Callable[[Tool, dict], bool | Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a conversation may use.

    Args:
        rounds: requests to the model.
        calls: executed in one round; the model is told that the others were not.
        tool_s: seconds for one call. A plain function that takes longer cannot be stopped: it goes
            on in its thread, and its result is dropped. An ``async`` one is cancelled where it
            awaits; one that blocks instead holds up everything. (Nothing can be done about C code
            that never lets go of the interpreter, such as a regular expression that runs away.)
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
    messages: str | list[dict],
    tools: Iterable[Tool | Callable],
    *,
    tool_choice: "Literal['auto', 'none', 'required'] | Tool" = "auto",
    strict: bool = False,
    parallel_tool_calls: bool = True,
    stream: bool = False,
    limits: Limits | None = None,
    approve: Approve | None = None,
    show: Callable[[str], None] | None = None,
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
        show: called with each step's line as it ends, e.g. ``print``.
        max_tokens: of each answer.
        temperature: of sampling; 0 is greedy.
        client: an open one, to be shared by many conversations; by default one of its own.

    Returns:
        The whole conversation, with every step.

    Raises:
        CourseError: the server does not answer or refuses the request, or two tools share a name.
    """
    limits = limits or Limits()
    tools = [it if isinstance(it, Tool) else tool(it) for it in tools]
    allowed = {one.name: one for one in tools}
    if len(allowed) < len(tools):
        raise CourseError("two tools have the same name", "rename one of the functions")
    talk = Conversation(messages=_opening(messages), tools=tuple(allowed), began=clock(), show=show)
    request = {"model": endpoint.model, "max_tokens": max_tokens, "temperature": temperature}
    if tools:
        request |= {"tools": definitions(tools, strict=strict), "tool_choice": _choice(tool_choice)}
        if not parallel_tool_calls:
            request["parallel_tool_calls"] = False
    limits = limits if parallel_tool_calls else replace(limits, calls=min(1, limits.calls))
    async with nullcontext(client) if client else connect(endpoint) as client:
        for number in range(1, limits.rounds + 1):
            start = clock()
            reply = await ask(
                client,
                {**request, "messages": talk.messages},
                timeout_s=limits.request_s,
                stream=stream,
            )
            calls = [_tidy(call) for call in reply.calls]
            calls = _own_ids(calls)
            talk.add_reply(reply, calls, number, start)
            if not calls:
                break
            now = _permitted(tool_choice, allowed, number)
            outcomes = await _execute(calls, allowed, now, talk, limits, approve, number)
            for call, outcome in zip(calls, outcomes, strict=True):
                talk.add_result(call, outcome.text, ran=outcome.ran)
            if request.get("tool_choice") not in (None, "none"):
                request["tool_choice"] = "auto"
        else:
            talk.stopped = f"no answer after {limits.rounds} rounds"
    return talk


async def _execute(
    calls: list[Call],
    allowed: dict[str, Tool],
    now: set[str],
    talk: Conversation,
    limits: Limits,
    approve: Approve | None,
    number: int,
) -> list[Outcome]:
    """Execute a round's calls at the same time; outcomes in the order of the calls."""
    read_foreign = talk.has_read_foreign(allowed)  # decided before this round's results are in

    async def one(position: int, call: Call) -> Outcome:
        start = clock()
        outcome = await _outcome(call, position, allowed, now, read_foreign, limits, approve)
        talk.add(
            Step(
                phase="executing",
                round=number,
                start_s=start - talk.began,
                end_s=clock() - talk.began,
                what=f"{call.name}({call.arguments})",
                result=outcome.text,
                problem=outcome.problem,
            )
        )
        return outcome

    return await asyncio.gather(*(one(position, call) for position, call in enumerate(calls)))


async def _outcome(
    call: Call,
    position: int,
    allowed: dict[str, Tool],
    now: set[str],
    read_foreign: bool,
    limits: Limits,
    approve: Approve | None,
) -> Outcome:
    wanted = allowed.get(call.name)
    if wanted is None:
        return _not_run(f"there is no tool called {call.name[:64]!r}", tools=list(allowed))
    if wanted.name not in now:
        return _not_run("not executed: tool_choice does not allow this call")
    if position >= limits.calls:
        return _not_run(f"not executed: at most {limits.calls} calls at once")
    try:
        arguments = wanted.arguments(call.arguments)
    except BadArguments as error:
        return _not_run("the arguments are not valid", details=error.problems)
    if wanted.acts and read_foreign and not await _approved(approve, wanted, arguments):
        return _not_run(
            "not executed: this conversation has read text written by others, and nobody approved"
        )
    return await execute(wanted.function, arguments, limits.tool_s, limits.result_chars)


async def _approved(approve: Approve | None, wanted: Tool, arguments: dict) -> bool:
    if approve is None:
        return False
    try:
        said = approve(wanted, arguments)
        return (await said if isinstance(said, Awaitable) else said) is True
    except Exception:
        return False  # an approval that fails is none


def _opening(messages: str | list[dict]) -> list[dict]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    chat = [_dumped(one) for one in messages]
    if not all(isinstance(one, dict) and "role" in one for one in chat):
        raise CourseError(
            "a chat is a list of messages", 'such as {"role": "user", "content": "Hello"}'
        )
    return [
        one | {"tool_calls": [_dumped(call) for call in one["tool_calls"]]}
        if isinstance(one.get("tool_calls"), list)
        else one
        for one in chat
    ]


def _dumped(part: Any) -> Any:
    """Return the client's own objects, which a history may hold, as plain dictionaries."""
    return part.model_dump(exclude_none=True) if hasattr(part, "model_dump") else part


def _permitted(choice: "str | Tool", allowed: dict[str, Tool], number: int) -> set[str]:
    """Names that may run in this round."""
    if choice == "none":
        return set()
    return {choice.name} if isinstance(choice, Tool) and number == 1 else set(allowed)


def _choice(choice: "str | Tool") -> str | dict:
    if isinstance(choice, Tool):
        return {"type": "function", "function": {"name": choice.name}}
    if choice not in ("auto", "none", "required"):
        raise CourseError(
            f"tool_choice is {choice!r}", "give 'auto', 'none', 'required' or one of the tools"
        )
    return choice


def _tidy(call: Call) -> Call:
    """Return the call in a form that can be sent back: servers refuse a chat with a broken one."""
    name = call.name if _NAME.fullmatch(call.name) else "unreadable"
    try:
        sendable = isinstance(json.loads(call.arguments or "{}"), dict)
        call.arguments.encode()
    except (ValueError, RecursionError):
        sendable = False
    echo = (call.arguments or "{}") if sendable else "{}"
    return replace(call, echo={"name": name, "arguments": echo})


def _own_ids(calls: list[Call]) -> list[Call]:
    """Give each call an id of its own where the server gave none; Mistral wants nine letters."""
    seen, kept = set(), []
    for call in calls:
        unique = call.id and call.id not in seen
        kept.append(call if unique else replace(call, id=uuid.uuid4().hex[:9]))
        seen.add(kept[-1].id)
    return kept
