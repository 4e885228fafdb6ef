"""Endpoint: the hinge between renting a server and measuring one."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openai


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

    >>> Endpoint(base_url="http://127.0.0.1:8000/v1", model="m", api_key="secret")
    Endpoint(base_url='http://127.0.0.1:8000/v1', model='m', engine='', hardware='', source='')
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    engine: str = ""
    hardware: str = ""
    source: str = ""

    @property
    def origin(self) -> str:
        """Root of the server without the API version: where ``/metrics`` and ``/health`` live."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def title(self) -> str:
        """What was measured on what, for the title of a figure or table."""
        where = " on ".join(part for part in (self.engine, self.hardware) if part)
        return ", ".join(part for part in (self.model, where, self.source) if part)

    def client(self) -> "openai.OpenAI":
        """A plain ``openai`` client for this server."""
        import openai  # takes most of a second, and measuring does without

        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key)
