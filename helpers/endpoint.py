"""Endpoint: the hinge between renting a server and measuring one."""

import os
import re
import ssl
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from helpers.errors import CourseError

if TYPE_CHECKING:
    import httpx
    import openai

_BLANK = "\ufeff \t\r\n"
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104  what vLLM's log shows
_ADDRESS = re.compile(r"https?://(\[[\da-f:.]+\]|[\w.-]+)(:[1-6]?\d{1,4})?(/[!->@-~]*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server, wherever it runs.

    Everything that measures takes an Endpoint and nothing else, so it works with vLLM, llama.cpp,
    TGI, SGLang or a hosted API alike.

    Args:
        base_url: root of the API including the version, e.g. ``http://127.0.0.1:8000/v1``.
        model: model id as the server's ``/v1/models`` names it.
        api_key: bearer token; never shown in ``repr``. Servers without a key ignore it.
        engine: what answers, e.g. ``"llama.cpp"`` or ``"vLLM 0.33"``.
        hardware: what it runs on, e.g. ``"1x RTX 4090"`` or ``"2 CPU cores"``.
        source: where figures measured here come from: ``"rehearsal"``, ``"vast"``, ...
        ca_file: certificate of the authority to trust for this server, and no other one; by
            default those that Python trusts.

    Raises:
        CourseError: the address is not one, the key cannot be sent, or the environment names a
            proxy that cannot be used.

    >>> Endpoint(base_url="http://127.0.0.1:8000/v1/", model="m", api_key="secret\\n")
    Endpoint(base_url='http://127.0.0.1:8000/v1', model='m', engine='', hardware='', source='')
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    engine: str = ""
    hardware: str = ""
    source: str = ""
    ca_file: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        url = self.base_url.strip(_BLANK).rstrip("/").removesuffix("/chat/completions")
        if not _ADDRESS.fullmatch(url):  # not shown: it may be that a password stands in it
            what = "base_url must be http:// or https://, a host and a path, and nothing else"
            raise CourseError(what, 'such as base_url="http://127.0.0.1:8000/v1"')
        object.__setattr__(self, "base_url", url)
        object.__setattr__(self, "api_key", clean_key(self.api_key or "") or "none")
        spare_loopback()
        proxy_for(self.base_url)

    @property
    def origin(self) -> str:
        """Root of the server without the API version: where ``/metrics`` and ``/health`` live."""
        return self.base_url.removesuffix("/v1")

    @property
    def title(self) -> str:
        """What was measured on what, for the title of a figure or table."""
        where = " on ".join(part for part in (self.engine, self.hardware) if part)
        return ", ".join(part for part in (self.model, where, self.source) if part)

    def client(self) -> "openai.OpenAI":
        """A plain ``openai`` client for this server."""
        import openai  # takes most of a second, and measuring does without

        http = openai.DefaultHttpxClient(**self._way())
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, http_client=http)

    def async_client(self) -> "openai.AsyncOpenAI":
        """The same for ``async with``."""
        import openai

        http = openai.DefaultAsyncHttpxClient(**self._way())
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, http_client=http)

    def call(self, path: str, body: dict | None = None, timeout_s: float = 10) -> "httpx.Response":
        """One request with the server's key, whatever the answer.

        Args:
            path: what to ask of the server's ``origin``, e.g. ``/metrics``.
            body: sent as JSON by POST; without it the request is a GET.
            timeout_s: seconds of silence to bear.

        Raises:
            ConnectionError: no answer.
        """
        import httpx

        head, url = {"Authorization": f"Bearer {self.api_key}"}, self.origin + path
        try:
            with httpx.Client(timeout=timeout_s, headers=head, **self._way()) as http:
                return http.get(url) if body is None else http.post(url, json=body)
        except httpx.HTTPError as error:
            raise ConnectionError(str(error) or type(error).__name__) from None

    def _way(self) -> dict[str, Any]:
        """How an HTTP client is to reach it: as the load generator does, without redirects."""
        tls = self.base_url.startswith("https:")  # a context takes a while to make
        return {
            "trust_env": False,
            "proxy": proxy_for(self.base_url) or None,
            "verify": ssl.create_default_context(cafile=self.ca_file or None) if tls else False,
            "follow_redirects": False,
        }


def clean_key(text: str, name: str = "the API key") -> str:
    """A key as it can be sent: without blanks around it, such as a file's last line break.

    Raises:
        CourseError: there is something else in it that no HTTP header takes.
    """
    key = text.strip(_BLANK)
    if not re.fullmatch("[!-~]*", key):
        what = f"{name} cannot be sent: a blank, a line break or a special letter is in it"
        raise CourseError(what, "copy it again: the key alone, without quotes or the word Bearer")
    return key


def hide_key(text: str, key: str) -> str:
    """A server's words with ``***`` in place of each that holds six letters of the key in a row.

    >>> hide_key('{"error": "Incorrect key: sk-abcdef***3456"}', "sk-abcdefghi-123456")
    '{"error": "Incorrect key: ***"}'
    """
    if not text or len(key) < 5:
        return text
    parts = {key[at : at + 6] for at in range(max(1, len(key) - 5))}
    words = re.split(r"""([\s"'{}:,<>()\[\]]+)""", text)
    return "".join("***" if any(part in word for part in parts) else word for word in words)


def is_local(url: str) -> bool:
    """Is it on this machine, or the near end of a tunnel?"""
    host = urlsplit(url).hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def proxy_for(url: str) -> str:
    """URL of the environment's proxy on the way to a server; ``""`` for none, as to loopback.

    Raises:
        CourseError: it is a SOCKS proxy.
    """
    server, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all") or ""
    if not proxy or is_local(url) or urllib.request.proxy_bypass(server.netloc):
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith("http"):
        what = f"the proxy {without_password(proxy)} cannot be used: it is not an HTTP proxy"
        raise CourseError(what, f"unset all_proxy, or name {server.hostname} in no_proxy")
    return proxy


def without_password(proxy: str) -> str:
    """The URL of a proxy as it can be shown."""
    return re.sub("//.*@", "//", proxy)


def spare_loopback() -> None:
    """Have no client in this process, and no program that it starts, reach loopback by a proxy."""
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "*" not in spared and any(name.lower().endswith("_proxy") for name in os.environ):
        names = dict.fromkeys([*filter(None, spared.split(",")), *_LOOPBACK])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)
