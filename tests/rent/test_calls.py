"""One set of rules for both marketplaces: what is repeated, and what each error says."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests

from helpers.errors import CourseError
from helpers.rent.calls import PATIENCE_S, RUNPOD, VAST, agreed, patient, seconds
from helpers.rent.market import NoAnswer, NotFound, OfferGone
from helpers.rent.runpod import RunPod
from helpers.rent.vast import Vast
from helpers.serve.spec import ServingSpec

SERVICES = pytest.mark.parametrize("service", [VAST, RUNPOD], ids=lambda service: service.name)


def refused(status: int, body: object = "", **headers: str) -> requests.HTTPError:
    """What ``raise_for_status`` raises for such an answer."""
    answer = requests.Response()
    answer.status_code = status
    answer._content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    answer.headers.update(headers)
    return requests.HTTPError("https://host/?key=secret", response=answer)


def failing(trouble: Exception):
    """A function that raises it."""

    def work() -> str:
        raise trouble

    return work


@pytest.fixture
def moody():
    """A marketplace that sheds the first two requests and cuts the third; what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            asked.append((self.command, self.path))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            turn = len(asked)
            if turn == 3:
                self.connection.close()
                return
            self.send_response({1: 429, 2: 503}.get(turn, 200))
            self.send_header("Retry-After", "0")
            body = b'{"instances": [], "pods": []}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", [Vast, RunPod])
def test_what_passes_is_waited_out(moody, kind):
    """Rate limits, gateways and cut lines: the reader sees nothing of them."""
    url, asked = moody
    assert kind("k", server_url=url).instances() == []
    assert len(asked) == 4


@pytest.mark.parametrize("kind", [Vast, RunPod])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_what_costs_money_is_asked_for_once(moody, kind, before, small_offer):
    """A lost answer may be a rental: it is for the caller to look, not for us to repeat."""
    url, asked = moody
    asked += [("earlier", "")] * before
    market = kind("k", server_url=url)
    with pytest.raises(CourseError):
        market.create(small_offer, ServingSpec(), "label", {})
    assert len(asked) == before + 1
    if isinstance(market, Vast):  # by hand, as a notebook does
        del asked[before:]
        with contextlib.suppress(requests.RequestException):
            market.sdk.create_instance(1, image="i", ssh=True, direct=True)
        assert len(asked) == before + 1


@SERVICES
@pytest.mark.parametrize(
    ("trouble", "kind", "told"),
    [
        (refused(401, {"msg": "no"}), CourseError, "does not accept {key} (no)"),
        (refused(401, {"msg": "no"}), CourseError, "create a key at {keys_url}"),
        (refused(402, {"title": "Payment", "detail": "low balance"}), CourseError, "{billing_url}"),
        (refused(404, {"title": "T", "detail": "no pod 5"}), NotFound, "T no pod 5"),
        (refused(422, {"detail": "d", "errors": ["disk: small"]}), CourseError, "disk: small"),
        (refused(429, "plain"), CourseError, "wait a minute"),
        (refused(500, "credit is <b>fine</b>"), NoAnswer, "HTTP 500, credit is"),
        (requests.Timeout("slow"), NoAnswer, "did not answer (Timeout)"),
        (KeyError("credit"), NoAnswer, "does not fit its API (KeyError('credit'))"),
        (requests.JSONDecodeError("m", "<html>", 0), NoAnswer, "does not fit its API"),
    ],
)
def test_each_error_is_a_sentence_with_the_next_step(service, trouble, kind, told):
    """Nothing of the request is in it: the request carries the key."""
    with pytest.raises(kind) as caught:
        service.told("asking")(failing(trouble))()
    assert told.format(**vars(service)) in str(caught.value)
    assert caught.value.what.startswith("asking: ") and caught.value.hint
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("service", "status", "words"),
    [
        (VAST, 404, "error 404/3603: no_such_ask Instance type by id 5 is not available."),
        (VAST, 400, "no_such_ask"),
        (RUNPOD, 400, "There are no instances currently available with that GPU."),
    ],
)
def test_a_taken_offer_has_an_error_of_its_own(service, status, words):
    """So that the next one can be tried."""
    with pytest.raises(OfferGone, match="somebody else was faster"):
        service.told("renting")(failing(refused(status, {"msg": words})))()


def test_what_is_not_there_may_be_none():
    """Asked for when somebody looks whether it is gone; other errors stay errors."""
    assert VAST.told("asking", missing_ok=True)(failing(refused(404)))() is None
    for odd in (refused(403), refused(400, "not available"), refused(500), KeyError("id")):
        with pytest.raises(CourseError):
            RUNPOD.told("asking", missing_ok=True)(failing(odd))()


def test_a_refusal_inside_a_success_is_an_error():
    """Vast.ai says ``success: false`` under HTTP 200."""
    assert agreed({"success": True, "id": 1})["id"] == 1
    with pytest.raises(CourseError, match="refused: spend_rate_limit new account"):
        agreed({"success": False, "error": "spend_rate_limit", "msg": "new account"})


def waits(answers: list, monkeypatch) -> tuple[list[float], int]:
    """How long a patient caller sleeps over these answers, and how often it asked."""
    slept, left, clock = [], list(answers), [0.0]

    def sleep(wait):
        slept.append(wait)
        clock[0] += wait

    monkeypatch.setattr("helpers.rent.calls.time.sleep", sleep)
    monkeypatch.setattr("helpers.rent.calls.time.monotonic", lambda: clock[0])

    def send(method, url):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        patient(send)("GET", "https://host/")
    except requests.RequestException:
        assert isinstance(answers[-1], Exception)
    return slept, len(slept) + 1


BUSY = refused(503).response


@pytest.mark.parametrize(
    ("answers", "slept"),
    [
        ([BUSY, refused(200).response], [0.5]),
        ([requests.ConnectionError("cut"), refused(200).response], [0.5]),
        ([requests.ConnectionError("cut")], [0.5, 1, 2, 4]),
        ([BUSY], [0.5, 1, 2, 4]),
        ([refused(429, "slow", **{"Retry-After": "4.5"}).response], [4.5] * 4),
        ([refused(429, "slow", **{"Retry-After": "25"}).response], [25, 25]),
        ([refused(429, "slow", **{"Retry-After": "41234"}).response], []),
        ([refused(429, "slow", **{"Retry-After": "-1"}).response], [0.5, 1, 2, 4]),
        ([refused(429, "slow", **{"Retry-After": "nan"}).response], [0.5, 1, 2, 4]),
        ([refused(429, "slow", **{"Retry-After": "soon"}).response], [0.5, 1, 2, 4]),
        ([refused(429, {"error": "search_quota_exceeded"}).response], []),
        ([refused(404).response], []),
    ],
)
def test_waiting_has_an_end(answers, slept, monkeypatch, capsys):
    """As long as asked for, a minute in all, not for what no minute brings back; and shown."""
    found, asked = waits(answers, monkeypatch)
    assert found == slept and sum(found) <= PATIENCE_S and asked <= 6
    assert ("asked again in" in capsys.readouterr().out) == (max(slept, default=0) > 1)


def test_a_spent_quota_is_told():
    """Trying again in a minute would not help."""
    with pytest.raises(CourseError, match="begins anew at midnight UTC"):
        VAST.told("searching")(failing(refused(429, {"error": "search_quota_exceeded"})))()


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T12:33:11Z", "2026-01-01 12:33:11.123 +0000 UTC", 1767270791, "1767270791.5"],
)
def test_a_date_is_read_in_any_form(text):
    """RunPod has written both; Vast.ai counts seconds."""
    assert seconds(text) == pytest.approx(1767270791, abs=1)


@pytest.mark.parametrize("none", [None, "", "soon", {}, []])
def test_what_is_no_date_is_now(none):
    """A machine without its first second is listed all the same."""
    assert seconds(none) == pytest.approx(time.time(), abs=5)
