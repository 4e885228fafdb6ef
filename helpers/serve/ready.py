"""From an address to an :class:`Endpoint`: wait until the model answers, and ask what serves it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

import requests

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.serve.spec import ENDED, STARTS

if TYPE_CHECKING:
    import openai

# What the log of a server that gave up says, and what to do about it.
_REMEDIES = {
    "out of memory": "rent a GPU with more VRAM, or lower max_model_len",
    "No space left": "rent more disk: ServingSpec(disk_gb=...)",
    "401 Client Error": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "GatedRepoError": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "RepositoryNotFound": "the model's name is wrong, or it needs HF_TOKEN",
    "huggingface.co": "the host does not reach Hugging Face: destroy it and rent another one",
}


class Waiting(TypedDict, total=False):
    """How to wait: the options of :func:`wait_ready` that may be passed on to it."""

    api_key: str
    timeout_s: float
    poll_s: float
    progress: Callable[[str], None]
    log: Callable[[], str]


def endpoint(
    base_url: str, *, hardware: str = "", source: str = "", **waiting: Unpack[Waiting]
) -> Endpoint:
    """Wait for a server and describe it.

    Args:
        base_url: root of the API including the version.
        hardware: what it runs on, for titles.
        source: where its figures come from: ``"rehearsal"``, ``"vast"``, ...
        **waiting: ``api_key``, ``timeout_s``, ``poll_s``, ``progress`` and ``log`` of
            :func:`wait_ready`.

    Returns:
        The endpoint, with the model id and the engine as the server names them.

    Raises:
        CourseError: when it gives up, refuses the key, or is not ready in time.
    """
    model = wait_ready(base_url, **waiting)
    api_key = waiting.get("api_key", "none")
    return Endpoint(
        base_url=base_url,
        model=model,
        api_key=api_key,
        engine=engine_name(base_url, api_key),
        hardware=hardware,
        source=source,
    )


def wait_ready(
    base_url: str,
    *,
    api_key: str = "none",
    timeout_s: float = 1800,
    poll_s: float = 2,
    progress: Callable[[str], None] = lambda line: None,
    log: Callable[[], str] = lambda: "",
) -> str:
    """Wait until the server answers: it lists a model and completes one token with it.

    Args:
        base_url: root of the API including the version.
        api_key: bearer token of the server, if it asks for one.
        timeout_s: give up after this many seconds; a fresh 7B model downloads for minutes.
        poll_s: pause between two attempts, in seconds.
        progress: called with one line after each attempt.
        log: gives the server's log; its last line is shown, and its end stands in the error.

    Returns:
        The model id to use in requests; with a LoRA adapter served, the adapter's.

    Raises:
        CourseError: when it gives up, refuses the key, or is not ready in time, with the last
            thing it said.
    """
    import openai  # here, because it takes most of a second

    client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    deadline = time.monotonic() + timeout_s
    said = "no answer yet"
    while time.monotonic() < deadline:
        try:
            return _model_that_answers(client)
        except openai.AuthenticationError:
            raise CourseError(
                "the model server refuses the API key",
                "pass the key it was started with (--api-key)",
            ) from None
        except openai.APIStatusError as error:
            said = f"HTTP {error.status_code}"
        except openai.APIConnectionError as error:
            # Refused or cut: normal while the image starts and the weights load.
            said = type(error).__name__
        except (openai.APIError, ValueError, LookupError, TypeError, AttributeError):
            said = "an answer that is not the OpenAI API's"
        tail = log().strip()
        progress(f"model server: {said} | {tail.rpartition(chr(10))[2]}")
        if ENDED in tail.rpartition(STARTS)[2]:  # an end before the last start is history
            raise CourseError(f"the model server gave up:\n{tail[-1500:]}", _remedy(tail))
        time.sleep(poll_s)
    raise CourseError(
        f"the model server at {base_url} did not become ready in {timeout_s:.0f} s ({said})\n"
        f"{log().strip()[-1000:]}",
        "destroy the instance if the log shows no progress: `python -m helpers destroy`",
    )


def _model_that_answers(client: "openai.OpenAI") -> str:
    """The id of the model that has completed a token just now."""
    models = client.models.list(timeout=10).data
    # The first adapter, if one is served: vLLM lists it after the model that it changes.
    model = next((one.id for one in models if getattr(one, "parent", None)), models[0].id)
    client.completions.create(model=model, prompt="Hi", max_tokens=1, timeout=120)
    return model


def _remedy(log: str) -> str:
    found = (advice for words, advice in _REMEDIES.items() if words.lower() in log.lower())
    return next(found, "read the log above; `python -m helpers destroy` ends the rental")


def engine_name(base_url: str, api_key: str = "none") -> str:
    """What serves there, asked of the server itself: ``"vLLM 0.33.0"``, ``"llama.cpp"`` or ``""``.

    vLLM answers ``/version``; llama.cpp names itself as the owner of its models.
    """
    headers = {"Authorization": f"Bearer {api_key}"}
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        version = requests.get(f"{root}/version", headers=headers, timeout=10)
        if version.ok:
            return f"vLLM {version.json()['version']}"
        owner = requests.get(f"{base_url}/models", headers=headers, timeout=10)
        return {"llamacpp": "llama.cpp"}.get(owner.json()["data"][0]["owned_by"], "")
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return ""
