"""An endpoint: what it takes as address and key, and how its clients get there."""

import asyncio
import os

import pytest
import requests
from support.listening import listen

from helpers.endpoint import Endpoint, hide_key, spare_loopback
from helpers.errors import CourseError

KEY = "sk-planted-0123456789"


def made(**given) -> Endpoint:
    return Endpoint(**{"base_url": "http://127.0.0.1:8000/v1", "model": "m", **given})


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (" http://127.0.0.1:8000/v1/\n", "http://127.0.0.1:8000/v1"),
        ("\ufeffhttps://api.example/openai/v1", "https://api.example/openai/v1"),
        ("http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_cleaned(given, url):
    """What comes with copying, and a slash too many."""
    assert made(base_url=given).base_url == url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "127.0.0.1:8000/v1",
        "localhost:8000",
        "ftp://host/v1",
        "http:///v1",
        "http://host:80000/v1",
        "http://ho st/v1",
        f"https://me:{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        KEY,
    ],
)
def test_what_is_no_address_is_refused(given):
    """At once, saying how one begins, and not repeating a key that may stand in it."""
    with pytest.raises(CourseError, match="must be http:// or https://") as caught:
        made(base_url=given)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sent"),
    [(f"{KEY}\n", KEY), (f"\ufeff {KEY}\r\n", KEY), ("", "none"), (" ", "none"), (None, "none")],
)
def test_a_key_is_cleaned(given, sent):
    """A file's last line break cuts a request's head in two; an empty key makes no header."""
    assert made(api_key=given).api_key == sent


@pytest.mark.parametrize("odd", ["\n", " ", "\u2026", "\u00e9", "\x00", "\u200b"])
def test_a_key_that_cannot_be_sent_is_refused(odd):
    """Without showing any of it."""
    with pytest.raises(CourseError, match="cannot be sent") as caught:
        made(api_key=f"{KEY}{odd}{KEY}")
    assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize("said", [KEY, KEY[:12] + "***", f"Bearer {KEY[4:]}", f"(x={KEY[3:9]},b)"])
def test_no_part_of_a_key_is_shown(said):
    """Servers repeat keys, whole or with stars; what else they say stays."""
    shown = hide_key(f"wrong key: {said} for base", KEY)
    assert shown.startswith("wrong key: ") and shown.endswith(" for base") and "***" in shown
    assert not any(KEY[at : at + 6] in shown for at in range(len(KEY) - 5))
    assert hide_key("the model none", "none") == "the model none"


@pytest.mark.parametrize("no_proxy", ["", "localhost,127.0.0.1", "own.example", "*"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_no_client_of_ours_reaches_loopback_by_a_proxy(monkeypatch, proxy, no_proxy):
    """Nor does requests, on which the marketplaces' clients stand, nor a program we start."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, no_proxy or "")

    async def answer(body, writer):
        text = b'{"data": [], "choices": []}'
        head = b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(text) + text)

    server, there = await listen(answer)
    async with server:
        assert (await asyncio.to_thread(there.call, "/metrics")).status_code == 200
        assert (await asyncio.to_thread(there.client().models.list)).data == []
        async with there.async_client() as client:
            assert (await client.models.list()).data == []
        assert (await asyncio.to_thread(requests.get, there.origin)).status_code == 200
    if no_proxy != "*":
        assert "127.0.0.1" in os.environ["no_proxy"].split(",")


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch):
    """With the way out, and without its password."""
    monkeypatch.setenv("all_proxy", f"socks5://me:{KEY}@proxy.example:1080")
    monkeypatch.setenv("no_proxy", "own.example")
    with pytest.raises(CourseError, match=r"socks5://proxy.example:1080 cannot .*\n.*no_proxy"):
        made(base_url="https://api.example/v1")
    assert made(base_url="https://own.example/v1").model == "m"


def test_nothing_is_set_where_no_proxy_is(monkeypatch):
    """What macOS is told in its settings holds only while the environment says nothing."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    spare_loopback()
    assert "no_proxy" not in os.environ
