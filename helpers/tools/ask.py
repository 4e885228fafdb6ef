"""One chat request with tools, through the plain ``openai`` client: the answer, or a sentence."""

import asyncio
from typing import TYPE_CHECKING

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.tools.conversation import Reply, read, read_stream

if TYPE_CHECKING:
    import openai

_KEY = "pass the key that it was started with: Endpoint(api_key=...)"
_FLAGS = "start vLLM with --enable-auto-tool-choice --tool-call-parser hermes (or mistral, ...)"


def connect(endpoint: Endpoint) -> "openai.AsyncOpenAI":
    """Return a client, to be used in ``async with``."""
    import openai  # takes most of a second

    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)


async def ask(
    client: "openai.AsyncOpenAI", request: dict, *, timeout_s: float, stream: bool = False
) -> Reply:
    """Make one request.

    Args:
        client: from ``connect``.
        request: the fields of a chat completion.
        timeout_s: from sending it to the end of the answer.
        stream: receive the answer in pieces, so that the time of the first one is known.

    Raises:
        CourseError: the server does not answer in time, refuses, or answers something else.
    """
    import httpx
    import openai

    async def whole() -> Reply:
        if not stream:
            return read(await client.chat.completions.create(**request))
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return await read_stream(await client.chat.completions.create(**request, **options))

    try:
        return await asyncio.wait_for(whole(), timeout_s)
    except TimeoutError:
        raise CourseError(
            f"the model did not answer within {timeout_s:g} s", "allow more request_s"
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
