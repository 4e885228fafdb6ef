"""From an address to an :class:`Endpoint`: wait until the model answers, and ask what serves it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import requests

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.serve.spec import ENDED, STARTS

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Model

# What the log of a server that gave up says, and what to do about it: the first that fits.
REMEDIES = {
    "out of memory": "rent a GPU with more VRAM, or lower max_model_len",
    "no space left": "rent more disk: ServingSpec(disk_gb=...)",
    "gated repo": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "repositorynotfound": "the model's name is wrong, or it needs HF_TOKEN",
    "huggingface.co": "the host does not reach Hugging Face: destroy it and rent another one",
    "": "read the log above; `python -m helpers destroy` ends the rental",
}


def endpoint(
    base_url: str,
    *,
    api_key: str = "none",
    hardware: str = "",
    source: str = "",
    timeout_s: float = 1800,
    poll_s: float = 2,
    progress: Callable[[str], None] = lambda line: None,
    log: Callable[[], str] = lambda: "",
) -> Endpoint:
    """Wait until a server lists a model and completes a token with it, and describe the server.

    Args:
        base_url: root of the API including the version.
        api_key: bearer token of the server, if it asks for one.
        hardware: what it runs on, for titles.
        source: where its figures come from: ``"rehearsal"``, ``"vast"``, ...
        timeout_s: give up after this many seconds; a fresh 7B model downloads for minutes.
        poll_s: pause between two attempts, in seconds.
        progress: called with one line after each attempt.
        log: gives the server's log; its last line is shown, and its end stands in the error.

    Returns:
        The endpoint; its model is the LoRA adapter, if one is served.

    Raises:
        CourseError: when the server gives up, refuses the key, or is not ready in time.
    """
    import openai  # here, because it takes most of a second

    found = Endpoint(base_url=base_url, model="", api_key=api_key, hardware=hardware, source=source)
    client = found.client().with_options(max_retries=0)
    deadline, said = time.monotonic() + timeout_s, "no answer yet"
    while time.monotonic() < deadline:
        try:
            model = _model_that_answers(client)
            return replace(found, model=model.id, engine=_engine(found, model))
        except openai.AuthenticationError:
            raise CourseError(
                "the model server refuses the API key", "pass the key that it was started with"
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
            remedy = next(advice for words, advice in REMEDIES.items() if words in tail.lower())
            raise CourseError(f"the model server gave up:\n{tail[-1500:]}", remedy)
        time.sleep(poll_s)
    raise CourseError(
        f"the model server at {base_url} did not become ready in {timeout_s:.0f} s ({said})\n"
        f"{log().strip()[-1000:]}",
        "destroy the instance if the log shows no progress: `python -m helpers destroy`",
    )


def _model_that_answers(client: "OpenAI") -> "Model":
    """The model that has completed a token just now."""
    models = client.models.list(timeout=10).data
    # The first adapter, if one is served: vLLM lists it after the model that it changes.
    model = next((one for one in models if getattr(one, "parent", None)), models[0])
    client.completions.create(model=model.id, prompt="Hi", max_tokens=1, timeout=120)
    return model


def _engine(server: Endpoint, model: "Model") -> str:
    """What serves there: ``"vLLM 0.33.0"``, ``"llama.cpp"``, or ``""`` when neither says so."""
    if getattr(model, "owned_by", "") == "llamacpp":
        return "llama.cpp"
    headers = {"Authorization": f"Bearer {server.api_key}"}
    try:
        version = requests.get(f"{server.origin}/version", headers=headers, timeout=10)
        return f"vLLM {version.json()['version']}"
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return ""
