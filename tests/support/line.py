"""The line to a marketplace, for tests in which it misbehaves."""

import json
from collections.abc import Callable

import pytest
import requests

Rule = Callable[[requests.PreparedRequest, Callable[[], requests.Response]], requests.Response]


def tamper(patch: pytest.MonkeyPatch, rule: Rule) -> list[tuple[str, str]]:
    """Let a rule see each request on its way: it may fail it, or replace its answer.

    Returns:
        Method and path of what was asked, as it goes on.
    """
    send, asked = requests.Session.send, []

    def through(self, request, **options):
        asked.append((request.method, request.path_url))
        return rule(request, lambda: send(self, request, **options))

    patch.setattr(requests.Session, "send", through)
    return asked


def rents(method: str, path: str) -> bool:
    """Is that the one request that costs money, at either marketplace?"""
    return (method, path) == ("POST", "/v2/pods") or (
        method == "PUT" and path.startswith("/api/v0/asks/")
    )


def reply(status: int, body: object, **headers: str) -> requests.Response:
    """An answer as a server would send it."""
    answer = requests.Response()
    answer.status_code = status
    answer._content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    answer.headers.update(headers)
    return answer
