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
from dataclasses import dataclass, replace
from time import perf_counter as clock
from typing import Literal

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.tools_run import Outcome, execute, refused
from helpers.tools_schema import BadArguments, Tool, definitions, tool
from helpers.tools_talk import Call, Conversation, Reply, Step, read, read_stream

_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
_KEY = "pass the key that it was started with: Endpoint(api_key=...)"
_FLAGS = "start vLLM with --enable-auto-tool-choice --tool-call-parser hermes (or mistral, ...)"

Approve = Callable[[Tool, dict], bool | Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a conversation may use.

    Args:
        rounds: requests to the model.
        calls: executed in one round; the model is told that the others were not.
        tool_s: seconds for one call. A plain function that takes longer cannot be stopped: it goes
            on in its thread, and its result is dropped. An ``async`` one is cancelled.
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
) -> Conversation:
    """Let a model answer with the help of functions.

    Args:
        endpoint: the server.
        messages: a question, or chat messages.
        tools: everything that may run; typed functions become tools.
        tool_choice: ``auto``: the model decides; ``none``: no call; ``required``: at least one;
            a tool: that one. A forced choice holds for the first round only, as otherwise the
            model could never answer.
        strict: ask the server to hold the arguments to the schema while they are written.
        parallel_tool_calls: whether the model may ask for several calls at once.
        stream: receive the answer in pieces.
        limits: see ``Limits``.
        approve: asked before a tool that ``acts`` runs after text from a ``foreign`` one has been
            read; without it, or when it does not say ``True``, such a call is not executed.
        show: called with each step's line as it ends, e.g. ``print``.
        max_tokens: of each answer.
        temperature: of sampling; 0 is greedy.

    Returns:
        The whole conversation, with every step.

    Raises:
        CourseError: the server does not answer or refuses the request, or two tools share a name.
    """
    import openai  # takes most of a second

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
    async with openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=limits.request_s
    ) as client:
        for number in range(1, limits.rounds + 1):
            start = clock()
            reply = await _ask(client, {**request, "messages": talk.messages}, stream, limits)
            calls = [_tidy(call) for call in reply.calls]
            calls = _own_ids(calls)
            talk.add_reply(reply, calls, number, start)
            if not calls:
                break
            outcomes = await _execute(calls, allowed, talk, limits, approve, number)
            talk.messages += [
                {"role": "tool", "tool_call_id": call.id, "content": outcome.text}
                for call, outcome in zip(calls, outcomes, strict=True)
            ]
            if request.get("tool_choice") not in (None, "none"):
                request["tool_choice"] = "auto"
        else:
            talk.stopped = f"no answer after {limits.rounds} rounds"
    return talk


async def _ask(client, request: dict, stream: bool, limits: Limits) -> Reply:
    """Make one request, whole within its time; every failure of the server is a CourseError."""
    import httpx
    import openai

    async def whole() -> Reply:
        if not stream:
            return read(await client.chat.completions.create(**request))
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return await read_stream(await client.chat.completions.create(**request, **options))

    try:
        return await asyncio.wait_for(whole(), limits.request_s)
    except TimeoutError:
        raise CourseError(
            f"the model did not answer within {limits.request_s:g} s", "raise Limits(request_s=...)"
        ) from None
    except openai.APIStatusError as error:
        said = str(error)[:300]
        hint = _KEY if error.status_code == 401 else "read the server's log"
        hint = _FLAGS if "tool" in said.lower() else hint
        raise CourseError(f"the server refuses the request: {said}", hint) from None
    except (openai.OpenAIError, httpx.HTTPError) as error:
        raise CourseError(f"the model server does not answer: {error}"[:300]) from None
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        # No JSON, or not of the API's form: whatever a server may send, the reader gets a sentence.
        raise CourseError(
            f"the answer is not one of the OpenAI API ({type(error).__name__})",
            "is base_url the root of an OpenAI-compatible server, ending in /v1?",
        ) from None


async def _execute(
    calls: list[Call],
    allowed: dict[str, Tool],
    talk: Conversation,
    limits: Limits,
    approve: Approve | None,
    number: int,
) -> list[Outcome]:
    """Execute a round's calls at the same time; outcomes in the order of the calls."""
    read_foreign = talk.has_read_foreign(allowed)  # decided before this round's results are in

    async def one(position: int, call: Call) -> Outcome:
        start = clock()
        outcome = await _outcome(call, position, allowed, read_foreign, limits, approve)
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
    read_foreign: bool,
    limits: Limits,
    approve: Approve | None,
) -> Outcome:
    wanted = allowed.get(call.name)
    if wanted is None:
        return refused(f"there is no tool called {call.name[:64]!r}", tools=list(allowed))
    if position >= limits.calls:
        return refused(f"not executed: at most {limits.calls} calls at once")
    try:
        arguments = wanted.arguments(call.arguments)
    except BadArguments as error:
        return refused("the arguments are not valid", details=error.problems)
    if wanted.acts and read_foreign and not await _approved(approve, wanted, arguments):
        return refused(
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
    return list(messages)


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
