"""The chat page of the door, in Chromium, over HTTPS, with answers that come in awkward pieces."""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from playwright.sync_api import Page, expect, sync_playwright
from support.chromium import CHROMIUM
from support.waiting import free_port

from helpers.serve import certificate
from helpers.settings import PROJECT

pytestmark = pytest.mark.browser
PAGE = (PROJECT / "assets" / "door" / "chat.html").read_text()
KEY = "sk-of-this-test"
PROMPT, SEND, STOP, ERROR, LOG = "#prompt", "#send", "#stop", "#error", "#log"


def policy() -> str:
    """The strictest policy under which the page works: its script and its style by their hashes."""
    digests = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", PAGE, re.S)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{digests['script']}'; "
        f"style-src 'sha256-{digests['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# -- A server that answers as a model server behind a door does -------------------------------


@dataclass
class Scripted:
    """What the last message says decides the answer; ``asked`` keeps every request."""

    asked: list[dict] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self.page),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.answer),
            ]
        )
        return app

    async def page(self, request):
        self.addresses.append(str(request.rel_url))
        headers = {"Content-Security-Policy": policy()}
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    async def models(self, request):
        self.addresses.append(str(request.rel_url))
        if request.headers["Authorization"] != f"Bearer {KEY}":
            return refusal(401, "Incorrect API key provided.", "invalid_api_key")
        return web.json_response({"object": "list", "data": [{"id": "small"}, {"id": "large"}]})

    async def answer(self, request):
        self.addresses.append(str(request.rel_url))
        body = await request.json()
        self.asked.append(body)
        what = body["messages"][-1]["content"]
        if request.headers["Authorization"] != f"Bearer {KEY}":
            return refusal(401, "Incorrect API key provided.", "invalid_api_key")
        if what == "too often":
            return refusal(429, "Too many requests.", "rate_limit_exceeded", {"Retry-After": "2"})
        if what == "tomorrow":
            return refusal(429, "No tokens left.", "tokens_a_day", {"Retry-After": "7265"})
        if what == "asleep":
            return web.Response(status=503, text="<h1>Service Unavailable</h1>")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for piece in PIECES.get(what, PIECES["hello"]):
            await stream.write(piece)
            await asyncio.sleep(0.02)
        if what == "endless":
            try:
                while True:
                    await stream.write(chunk("more "))
                    await asyncio.sleep(0.02)
            except ConnectionError:
                self.left.set()
        return stream


def refusal(status: int, message: str, code: str, headers: dict | None = None) -> web.Response:
    """OpenAI's form of an error."""
    error = {"message": message, "type": "invalid_request_error", "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    data = json.dumps({"choices": [choice]}, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n'
HELLO = (
    chunk("Grüße ") + chunk("👋 ") + b": a comment\n\n" + chunk("and more", "stop") + USAGE + DONE
)
TAGS = "<b>bold</b><img src=x onerror='document.title=1'><script>document.title=2</script>"
# Within a field's name, within two letters, between the two line ends of an event, within [DONE].
CUTS = [0, 3, *(HELLO.index(letter.encode()) + 1 for letter in "ü👋"), HELLO.index(b"\n\n") + 1]
CUTS = [*sorted(CUTS), len(HELLO) - 5, len(HELLO)]
PIECES = {
    "hello": [HELLO[start:end] for start, end in itertools.pairwise(CUTS)],
    "carriage": [HELLO.replace(b"\n", b"\r\n")],
    "tags": [chunk(TAGS) + DONE],
    "long": [chunk("word " * 3000, "length") + DONE],
    "broken": [chunk("half an ans")],
    "ill": [chunk("so far"), b'data: {"error": {"message": "engine died", "code": 500}}\n\n'],
    "endless": [],
}


@contextlib.contextmanager
def serving(app: web.Application, folder: Path):
    """The app over HTTPS on loopback in a thread: its address, and whom to trust."""
    certificate.make(folder, "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "fullchain.pem", folder / "privkey.pem")
    loop, port = asyncio.new_event_loop(), free_port()
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def there(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    there(runner.setup())
    there(web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start())
    try:
        yield f"https://127.0.0.1:{port}", folder / "ca.pem"
    finally:
        there(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# -- A customer's browser ---------------------------------------------------------------------


@contextlib.contextmanager
def chromium_trusting(url: str, ca: Path):
    """Chromium, headless, that trusts the one key with which ``url`` answers.

    Chromium takes no file of authorities. So Python checks the certificate against ``ca``, and
    Chromium is told the hash of its key: any other key is still refused.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    host, port = url.removeprefix("https://").split(":")
    pem = ssl.get_server_certificate((host, int(port)), ca_certs=str(ca))
    public = x509.load_pem_x509_certificate(pem.encode()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    known = hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).digest()
    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--ignore-certificate-errors-spki-list={base64.b64encode(known).decode()}",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def enter(page: Page, url: str, key: str) -> None:
    """Open the page and type the key, as a customer does."""
    page.goto(url)
    page.fill("#key", key)
    page.locator("#key").blur()


def say(page: Page, text: str) -> None:
    page.fill(PROMPT, text)
    page.press(PROMPT, "Enter")


def answered(page: Page, number: int = 1):
    """The answer with this number; complete when it is no longer busy."""
    answer = page.locator(f"{LOG} article.assistant").nth(number - 1)
    expect(answer).not_to_have_attribute("aria-busy", "true", timeout=30_000)
    return answer


@pytest.fixture(scope="module")
def scripted():
    return Scripted()


@pytest.fixture(scope="module")
def served(scripted, tmp_path_factory):
    """Where the page is, and the certificate to trust."""
    with serving(scripted.app(), tmp_path_factory.mktemp("door")) as place:
        yield place


@pytest.fixture(scope="module")
def browser(served):
    with chromium_trusting(*served) as browser:
        yield browser


@pytest.fixture
def page(browser, served, scripted):
    """A fresh window with the key typed; nothing may break the policy or throw."""
    scripted.asked.clear()
    context = browser.new_context(viewport={"width": 390, "height": 780})
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: "Policy" in line.text and complaints.append(line.text))
    enter(page, served[0], KEY)
    yield page
    context.close()
    assert complaints == []


# -- What a customer sees ---------------------------------------------------------------------


def test_an_answer_is_pieced_together(page, scripted):
    """Events split within a letter, comments and a usage event leave whole text, and no error."""
    say(page, "hello")
    expect(answered(page)).to_have_text("Grüße 👋 and more")
    expect(page.locator(ERROR)).to_be_empty()
    [body] = scripted.asked
    assert body == {
        "model": "small",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    }


def test_lines_may_end_in_two_letters(page):
    """Server-sent events may end their lines with CR LF."""
    say(page, "carriage")
    expect(answered(page)).to_have_text("Grüße 👋 and more")


def test_the_conversation_is_sent_along(page, scripted):
    """Else the model forgets what was said; a new conversation forgets on purpose."""
    page.locator("#model").select_option("large")
    say(page, "hello")
    answered(page)
    say(page, "and then?")
    answered(page, 2)
    roles = [m["role"] for m in scripted.asked[-1]["messages"]]
    assert (scripted.asked[-1]["model"], roles) == ("large", ["user", "assistant", "user"])
    assert scripted.asked[-1]["messages"][1]["content"] == "Grüße 👋 and more"
    page.click("#new")
    expect(page.locator(f"{LOG} article")).to_have_count(0)
    say(page, "hello")
    answered(page)
    assert [m["content"] for m in scripted.asked[-1]["messages"]] == ["hello"]


def test_an_answer_is_text(page):
    """Tags in an answer are shown, not run: else a model's words could read the key."""
    say(page, "tags")
    expect(answered(page)).to_have_text(TAGS)
    assert page.title() == "Chat"
    assert page.locator(f"{LOG} img, {LOG} b, {LOG} script").count() == 0


def test_stop(page, scripted):
    """The server notices within moments and stops computing; what came stays, and is kept."""
    scripted.left.clear()
    say(page, "endless")
    expect(page.locator(f"{LOG} article.assistant")).to_contain_text("more more", timeout=30_000)
    page.click(STOP)
    expect(answered(page)).to_have_attribute("data-note", "(stopped)")
    assert scripted.left.wait(30)
    expect(page.locator(ERROR)).to_be_empty()
    say(page, "hello")
    expect(answered(page, 2)).to_have_text("Grüße 👋 and more")
    assert scripted.asked[-1]["messages"][1]["content"].startswith("more more")


def test_a_new_conversation_ends_the_answer(page, scripted):
    """What still came of the old one must not appear in the new one."""
    scripted.left.clear()
    say(page, "endless")
    expect(page.locator(f"{LOG} article.assistant")).to_contain_text("more", timeout=30_000)
    page.click("#new")
    assert scripted.left.wait(30)
    expect(page.locator(SEND)).to_be_enabled()
    say(page, "hello")
    answered(page)
    assert [m["content"] for m in scripted.asked[-1]["messages"]] == ["hello"]


def test_an_answer_cut_at_its_limit_says_so(page):
    """Else it looks as if the model had no more to say; and the page has followed it down."""
    say(page, "long")
    expect(answered(page)).to_have_attribute("data-note", re.compile("longest answer"))
    log = page.locator(LOG)
    assert log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") < 40


# -- What goes wrong --------------------------------------------------------------------------


def test_a_wrong_key(page, served, scripted):
    """The reason, what to do, and the message still there to be sent again with another key."""
    page.fill("#key", "sk-wrong")
    page.locator("#key").blur()
    expect(page.locator(ERROR)).to_contain_text("401: Incorrect API key")
    say(page, "hello")
    expect(page.locator(ERROR)).to_contain_text("Check your key")
    expect(page.locator(PROMPT)).to_have_value("hello")
    expect(page.locator(f"{LOG} article")).to_have_count(0)
    page.fill("#key", KEY)
    page.press(PROMPT, "Enter")
    expect(answered(page)).to_have_text("Grüße 👋 and more")
    assert len(scripted.asked[-1]["messages"]) == 1


def test_a_key_with_a_strange_letter(page):
    """Pasted from a letter with curly quotes: fetch itself would only speak of code points."""
    page.fill("#key", "“sk-curly”")
    page.locator("#key").blur()
    expect(page.locator(ERROR)).to_contain_text("Copy it again")


def test_over_a_limit(page):
    """Retry-After is counted down, sending waits for it, and then the message goes through."""
    say(page, "too often")
    expect(page.locator(ERROR)).to_contain_text("429: Too many requests. (rate_limit_exceeded)")
    expect(page.locator("#wait")).to_have_text(re.compile(r"again in [12] s\."))
    expect(page.locator(SEND)).to_be_disabled()
    expect(page.locator(SEND)).to_be_enabled(timeout=30_000)
    expect(page.locator("#wait")).to_be_empty()
    expect(page.locator(ERROR)).to_be_empty()
    say(page, "hello")
    expect(answered(page)).to_have_text("Grüße 👋 and more")


def test_a_long_wait_is_said_in_hours(page):
    """A budget of the day: nobody can read 7,265 seconds."""
    say(page, "tomorrow")
    expect(page.locator("#wait")).to_contain_text(re.compile(r"2 h 1 min \d+ s"))


def test_a_server_that_sleeps(page):
    """503, and not in OpenAI's form: a proxy's own page is not shown as an answer."""
    say(page, "asleep")
    expect(page.locator(ERROR)).to_contain_text("503")
    expect(page.locator(ERROR)).to_contain_text("Try again in a minute")


@pytest.mark.parametrize(
    ("what", "came", "said"),
    [("broken", "half an ans", "broke before"), ("ill", "so far", "engine died")],
)
def test_an_answer_that_breaks_off(page, what, came, said):
    """It must not look complete."""
    say(page, what)
    expect(answered(page)).to_have_text(came)
    expect(page.locator(ERROR)).to_contain_text(said)


def test_no_connection(page):
    """The laptop left the network: said in words, and the message is kept."""
    page.context.set_offline(True)
    say(page, "hello")
    expect(page.locator(ERROR)).to_contain_text("No connection")
    expect(page.locator(PROMPT)).to_have_value("hello")


# -- The key ----------------------------------------------------------------------------------


def test_the_key_stays_in_the_page(page, served, scripted):
    """Not in an address, and gone at a reload, unless the customer ticked the box."""
    say(page, "hello")
    answered(page)
    assert not any(KEY in address for address in [page.url, *scripted.addresses])
    stores = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert page.evaluate(stores) == '[{},{},""]'
    page.reload()
    expect(page.locator("#key")).to_have_value("")
    page.fill("#key", KEY)
    page.check("#keep")
    page.reload()
    expect(page.locator("#key")).to_have_value(KEY)
    expect(page.locator("#model")).to_be_enabled()
    page.uncheck("#keep")
    assert page.evaluate(stores) == '[{},{},""]'


def test_it_can_be_used_without_seeing_it(page):
    """Every field has a name, and the answer and the error are announced."""
    for name in ("Your key", "Model", "Keep the key until I close this tab", "Message"):
        expect(page.get_by_label(name, exact=True)).to_be_visible()
    for name in ("Send", "Stop", "New chat"):
        expect(page.get_by_role("button", name=name)).to_be_visible()
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    assert page.locator(ERROR).get_attribute("role") == "alert"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page, scheme):
    """Letters stand out from the paper in both: WCAG asks for a contrast of 4.5."""
    page.emulate_media(color_scheme=scheme)
    say(page, "hello")
    answered(page)
    for selector in ("body", SEND, "article.user", ERROR):
        ink, paper = page.locator(selector).evaluate(COLOURS)
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


COLOURS = """element => {
    const colour = (one) => getComputedStyle(one).backgroundColor;
    let behind = element;
    while (colour(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [getComputedStyle(element).color, colour(behind)];
}"""


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_nothing_is_fetched_from_elsewhere():
    """One file: no address in it, and nothing that would put an answer into the page as code."""
    assert (
        re.findall(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", PAGE)
        == []
    )
