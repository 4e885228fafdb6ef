"""From an address to an :class:`Endpoint`: wait until the model answers, and ask what serves it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from helpers.endpoint import Endpoint, hide_key, is_local, proxy_for, without_password
from helpers.errors import CourseError
from helpers.serve.spec import ENDED, STARTS

if TYPE_CHECKING:
    import httpx

# What the log of a server that gave up says, and what to do about it: the first that fits.
REMEDIES = {
    "out of memory": "rent a GPU with more VRAM, or lower max_model_len",
    "no space left": "rent more disk: ServingSpec(disk_gb=...)",
    # The Hub says of a name that it does not know "private or gated repo", too.
    "repositorynotfound": "the model's name is wrong, or it needs HF_TOKEN",
    "repository not found": "the model's name is wrong, or it needs HF_TOKEN",
    "gated repo": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "huggingface.co": "the host does not reach Hugging Face: destroy it and rent another one",
    "": "read the log above; `python -m helpers destroy` ends the rental",
}


# A token, asked for in each way there is: some servers have one, some refuse the other.
HI = [{"role": "user", "content": "Hi"}]
TOKEN: tuple[tuple[str, dict], ...] = (
    ("/completions", {"prompt": "Hi", "max_tokens": 1}),
    ("/chat/completions", {"messages": HI, "max_tokens": 1}),
    ("/chat/completions", {"messages": HI, "max_completion_tokens": 16}),
)
LATER = {408, 409, 425, 429}  # like each status from 500 on: the next time may be better
# What TLS says of a certificate that nobody vouches for, and of a server without any.
HOPELESS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "record layer failure")


def endpoint(
    base_url: str,
    *,
    api_key: str = "none",
    model: str = "",
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
        model: which of its models; by default the first LoRA adapter that it lists, else the
            first model.
        hardware: what it runs on, for titles.
        source: where its figures come from: ``"rehearsal"``, ``"vast"``, ...
        timeout_s: give up after this many seconds; a fresh 7B model downloads for minutes.
        poll_s: pause between two attempts, in seconds.
        progress: called with one line after each attempt.
        log: gives the server's log; its last line is shown, and its end stands in the error.

    Raises:
        CourseError: at once when waiting cannot help (a wrong address, certificate, key or model,
            a redirect, a server that has ended), or when it is not ready in time.
    """
    found = Endpoint(
        base_url=base_url, model=model, api_key=api_key, hardware=hardware, source=source
    )
    proxy = without_password(proxy_for(found.base_url))
    way = f", through the proxy {proxy}" if proxy else ""
    deadline, said = time.monotonic() + timeout_s, "no answer yet"
    while time.monotonic() < deadline:
        try:
            return _described(found)
        except ConnectionError as error:  # it may answer later
            said = f"{error}{way}"
        except (ValueError, LookupError, TypeError, AttributeError):
            said = f"an answer that is not the OpenAI API's{way}"
        tail = log().strip()
        progress(f"model server: {said} | {tail.rpartition(chr(10))[2]}")
        if ENDED in tail.rpartition(STARTS)[2]:  # an end before the last start is history
            remedy = next(advice for words, advice in REMEDIES.items() if words in tail.lower())
            raise CourseError(f"the model server gave up:\n{tail[-1500:]}", remedy)
        time.sleep(poll_s)
    what = f"the model server at {found.base_url} did not become ready in {timeout_s:.0f} s"
    hint = "destroy the instance if the log shows no progress: `python -m helpers destroy`"
    raise CourseError(f"{what} ({said})\n{log().strip()[-1000:]}".strip(), hint)


def _described(server: Endpoint) -> Endpoint:
    """The server with the model that has completed a token just now, and what serves it."""
    answer = _ask(server, "/models")
    if answer.status_code == 404:
        _look_elsewhere(server)
    if not answer.is_success:
        what = f"{server.base_url} lists no models: {_said(server, answer)}"
        raise CourseError(what, "is it the root of an OpenAI-compatible API?")
    models = answer.json()["data"]
    # The first adapter, if one is served: vLLM lists it after the model that it changes.
    first = next((one for one in models if one.get("parent")), models[0])
    model, said = server.model or first["id"], ""
    for path, body in TOKEN:
        answer = _ask(server, path, {"model": model, **body})
        if answer.is_success and "choices" in answer.text:
            return replace(server, model=model, engine=_engine(server, first))
        said = said or _said(server, answer)
    others = ", ".join(str(one["id"]) for one in models[:20])
    what = f"the model {model} completes no text: {said}"
    raise CourseError(what, f"choose another one by endpoint(..., model=...); there are {others}")


def _ask(server: Endpoint, path: str, body: dict | None = None) -> "httpx.Response":
    """The answer to a request.

    Raises:
        ConnectionError: there is none yet; normal while the image starts and the weights load.
        CourseError: there will never be a good one.
    """
    try:
        root = server.base_url.removeprefix(server.origin)
        answer = server.call(root + path, body, timeout_s=120 if body else 10)
    except ConnectionError as error:
        if not any(word in str(error) for word in HOPELESS):
            raise
        hint = "SSL_CERT_FILE names a certificate of your own; without TLS, write http://"
        raise CourseError(f"no secure way to {server.base_url}: {error}", hint) from None
    status = answer.status_code
    if answer.is_redirect:
        target = urljoin(f"{server.base_url}{path}", answer.headers["location"])
        moved = target.partition("?")[0].removesuffix(path)
        what = f"{server.base_url} sends its clients on to {moved} (HTTP {status})"
        raise CourseError(what, f"base_url={moved!r}, if you trust it")
    if status in (401, 403):
        what = f"the model server refuses the API key (HTTP {status})"
        raise CourseError(what, "pass the key that it was started with: api_key=...")
    if status >= 500 or status in LATER:
        raise ConnectionError(f"HTTP {status}")
    return answer


def _said(server: Endpoint, answer: "httpx.Response") -> str:
    return f"HTTP {answer.status_code} {hide_key(answer.text[:300], server.api_key)}"


def _look_elsewhere(server: Endpoint) -> None:
    """Find out why there is no list of models: a forgotten ``/v1``, or some other server."""
    root, hint = urljoin(server.base_url, "/v1"), ""
    other = replace(server, base_url=root)
    if other != server and other.call("/v1/models").status_code in (200, 401, 403):
        hint = f"base_url={root!r}"
    elif is_local(root):
        hint = "is it the port of the model server, and does base_url end in /v1?"
    if not hint:  # a provider's proxy says so of a machine that starts
        raise ConnectionError("HTTP 404")
    raise CourseError(f"there is no OpenAI-compatible API at {server.base_url} (HTTP 404)", hint)


def _engine(server: Endpoint, model: dict[str, Any]) -> str:
    """What serves there: ``"vLLM 0.33.0"``, ``"llama.cpp"``, or ``""`` when neither says so."""
    if model.get("owned_by") == "llamacpp":
        return "llama.cpp"
    try:
        return f"vLLM {server.call('/version').json()['version']}"
    except (ConnectionError, ValueError, LookupError, TypeError):
        return ""
