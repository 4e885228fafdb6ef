"""One chat request with tools, through the plain ``openai`` client: the answer, or a sentence."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.client.answer import Message

if TYPE_CHECKING:
    import openai

_Result = TypeVar("_Result")
_KEY = "pass the key that it was started with: Endpoint(api_key=...)"
_FLAGS = "start vLLM with --enable-auto-tool-choice --tool-call-parser hermes (or mistral, ...)"


class Completion(NamedTuple):
    """What came back of one request.

    Args:
        message: the model's, with the calls that it asks for.
        finish: why the server says that it ended.
        usage: the server's counts: ``prompt_tokens`` and ``completion_tokens``.
    """

    message: Message
    finish: str
    usage: dict


def connect(endpoint: Endpoint) -> "openai.AsyncOpenAI":
    """Return a client, to be used in ``async with``."""
    import openai  # takes most of a second

    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)


async def ask(
    client: "openai.AsyncOpenAI", request: dict, *, timeout_s: float, stream: bool = False
) -> Completion:
    """Make one request.

    Args:
        client: from ``connect``.
        request: the fields of a chat completion.
        timeout_s: from sending it to the end of the answer.
        stream: receive the answer in pieces.

    Raises:
        CourseError: the server does not answer in time, refuses, or answers something else.
    """
    import httpx
    import openai

    try:
        async with asyncio.timeout(timeout_s):
            return await _read(client, request, stream)
    except TimeoutError:
        raise CourseError(f"no answer within {timeout_s:g} s", "allow more request_s") from None
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


async def several(jobs: Iterable[Coroutine[Any, Any, _Result]], *, at_once: int) -> list[_Result]:
    """Do jobs at the same time, but never more than ``at_once``; results in the jobs' order."""
    free = asyncio.Semaphore(at_once)

    async def one(job: Coroutine[Any, Any, _Result]) -> _Result:
        async with free:
            return await job

    return await asyncio.gather(*map(one, jobs))


async def _read(client: "openai.AsyncOpenAI", request: dict, stream: bool) -> Completion:
    if stream:
        request = request | {"stream": True, "stream_options": {"include_usage": True}}
    answer = await client.chat.completions.create(**request)
    if not stream:
        whole = answer.model_dump(warnings=False)
        [choice] = whole["choices"]
        said = Message.whole(choice["message"])
        return Completion(said, choice.get("finish_reason") or "", _counts(whole))
    message, finish, usage = Message(), "", dict[str, Any]()
    async for chunk in answer:
        piece = chunk.model_dump(warnings=False)
        usage = _counts(piece) or usage
        for choice in piece.get("choices") or ():
            message.add(choice["delta"])
            finish = choice.get("finish_reason") or finish
    if not (finish or message.text or message.calls):
        raise LookupError("a stream without an answer")
    return Completion(message, finish, usage)


def _counts(answer: dict) -> dict:
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}
