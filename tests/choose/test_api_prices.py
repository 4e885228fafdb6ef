"""Rent or buy: the class of models, the mix of tokens, and arithmetic that was done by hand."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price, data_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
)

from helpers.choose import api_prices
from helpers.choose.api_prices import Day, Server
from helpers.errors import CourseError

#: 1,000 requests an hour of 300 + 100 tokens, at $0.40: a dollar for a million tokens.
ROUND = Server(
    name="by hand", usd_per_hour=0.4, tokens_per_s=1000 * 100 / 3600,
    prompt_tokens=300, output_tokens=100,
)  # fmt: skip


def priced(**usd: str) -> ModelPrice:
    """Prices in dollars for a million tokens."""
    return ModelPrice(**{kind: Decimal(value) for kind, value in usd.items()})


def model(name: str, prices, **more) -> ModelInfo:
    """A model as the package lists it."""
    return ModelInfo(id=name, match=ClauseEquals(equals=name), prices=prices, **more)


@pytest.fixture
def market(monkeypatch):
    """Three hosts and a broker in the package's own form, in place of its data."""
    flat = priced(input_mtok="1", output_mtok="3")
    begins = StartDateConstraint(start_date=datetime(2026, 1, 2, tzinfo=UTC).date())
    never = StartDateConstraint(start_date=datetime(2999, 1, 1, tzinfo=UTC).date())
    changed = [
        ConditionalPrice(prices=flat),
        ConditionalPrice(prices=priced(input_mtok="2", output_mtok="2"), constraint=begins),
        ConditionalPrice(prices=priced(input_mtok="9", output_mtok="9"), constraint=never),
    ]
    cached = priced(input_mtok="4", cache_read_mtok="1", output_mtok="4")
    hosts = {
        "one": [model("mistral-7b-instruct", flat), model("Qwen/Qwen3-8B", cached)],
        "huggingface_one": [
            model("org/Llama-3.1-8B-Instruct", priced(input_mtok="8", output_mtok="1"))
        ],
        "two": [model("meta.llama3-1-8b-instruct-v1:0", changed)],
        "three": [
            model("ministral-8b-2512", cached),
            model("llama-3.1-8b-instruct", flat, deprecated=True),
            model("qwen3-vl-8b-instruct", priced(input_mtok="0.1", output_mtok="0.1")),
        ],
        "openrouter": [model("qwen3-8b", priced(input_mtok="0.1", output_mtok="0.1"))],
    }
    providers = [
        Provider(id=name, name=name, api_pattern=name, models=models)
        for name, models in hosts.items()
    ]
    made_up = data_snapshot.DataSnapshot(providers=providers, from_auto_update=False)
    monkeypatch.setattr(data_snapshot, "_custom_snapshot", made_up)


def test_the_class_is_told_by_whole_names():
    """Of the package's own data: the five models, and nothing that was made of them."""
    table = api_prices.offers(256, 128)
    assert len(table) >= 8 and table.provider.is_unique
    assert table.of_mix.is_monotonic_increasing and table.of_mix.min() > 0
    families = "mistral-7b|ministral-(?:3-)?8b|llama-?v?3[.p-]1-8b|qwen-?2.5-7b|qwen3-8b"
    assert table.model.str.contains(families).all()
    others = "vl|coder|guard|embed|hermes|distill|free|batch|lora|online|uncensored"
    assert not table.model.str.contains(others).any()
    assert "openrouter" not in [*table.provider]
    for name in ("llama-3.1-8b-instruct:free", "qwen2.5-coder-7b-instruct", "llama-3.3-8b",
                 "llama-3.1-80b", "ministral-8b", "ministral-8b-2512:batch"):  # fmt: skip
        assert not api_prices._CLASS.fullmatch(name), name


def test_prices_are_the_packages_own():
    """The table's three prices, mixed by hand, are what ``calc_price`` asks for one request."""
    table = api_prices.offers(700, 200, cached_tokens=300)
    [mistral] = table[table.provider == "mistral"].itertuples()
    assert mistral.cached < mistral.input
    used = Usage(input_tokens=700, cache_read_tokens=300, output_tokens=200)
    request = calc_price(used, mistral.model, provider_id="mistral").total_price
    assert mistral.of_mix * 900 / 1e6 == pytest.approx(float(request))
    for row in table[table.cached == table.input].itertuples():
        mixed = (700 * row.input + 200 * row.output) / 900
        assert row.of_mix == pytest.approx(mixed)


def test_of_each_provider_the_cheapest_for_this_mix(market):
    """Long prompts, long answers and cached ones make another model the cheapest."""
    prompts = api_prices.offers(300, 100).set_index("provider")
    assert [*prompts.index] == ["one", "two", "three"]
    assert prompts.of_mix.to_dict() == pytest.approx({"one": 1.5, "two": 2, "three": 4})
    assert prompts.since.to_dict() == {"one": "", "two": "2026-01-02", "three": ""}
    answers = api_prices.offers(0, 100).set_index("provider")
    assert answers.of_mix.to_dict() == pytest.approx({"one": 1, "two": 2, "three": 4})
    cached = api_prices.offers(300, 100, cached_tokens=300).set_index("provider")
    assert cached.of_mix["three"] == pytest.approx((300 * 1 + 100 * 4) / 400)
    assert cached.of_mix["two"] == 2, "without a price of its own, cached input costs the same"


def test_the_date_is_that_of_the_newest_price_until_today(market):
    """A price that begins in the future is not known to hold."""
    assert api_prices.freshness().endswith("newest change of a price on 2026-01-02")


def test_three_of_them(market):
    """The cheapest, the one in the middle and the dearest; of two, the dearer is the median."""
    table = api_prices.offers(300, 100)
    for some in (table, table.sort_values("model"), table[::-1]):
        assert api_prices.three(some).provider.to_dict() == {
            "cheapest": "one", "median": "two", "dearest": "three",
        }  # fmt: skip
    assert [*api_prices.three(table.head(2)).provider] == ["one", "two", "two"]
    assert [*api_prices.three(table.head(1)).provider] == ["one"] * 3


def test_a_server_by_hand():
    """1,000 requests of 400 tokens an hour for $0.40 are a dollar a million."""
    assert ROUND.requests_per_hour == pytest.approx(1000)
    assert ROUND.usd_per_million == pytest.approx(1)
    dear = replace(ROUND, prompt_tokens=0)
    assert dear.usd_per_million == pytest.approx(4), "the same rent for a quarter of the tokens"


@pytest.mark.parametrize(
    ("day", "machines", "usd"),
    [
        (Day(requests=24_000, door_usd_per_hour=0), 1, 24 * 0.4),
        (Day(requests=0, door_usd_per_hour=0), 1, 24 * 0.4),
        (Day(requests=24_001, door_usd_per_hour=0), 2, 2 * 24 * 0.4),
        (Day(requests=240, door_usd_per_hour=0.01), 1, 24 * 0.4 + 0.24),
        (Day(requests=9_000, hours=9, peak=2.5, door_usd_per_hour=0), 3, 3 * 9 * 0.4),
        (Day(requests=9_000, hours=9, spare=1, door_usd_per_hour=0), 2, 2 * 9 * 0.4),
    ],
    ids=[
        "full",
        "nobody",
        "one request too many",
        "nearly idle, with a door",
        "a busy hour",
        "a spare one",
    ],
)
def test_a_day_pays_for_hours_rented(day, machines, usd):
    """Enough for the busiest hour, for all hours, used or not; the door day and night."""
    assert day.machines(ROUND) == machines
    assert day.rent_usd(ROUND) == pytest.approx(usd)


def test_the_verdict_can_be_followed_by_hand(market):
    """At half use the server's tokens cost $2: as much as the median API, and more after that."""
    day = Day(requests=12_100, door_usd_per_hour=0)
    lines = day.verdict(ROUND).splitlines()
    assert [line.split()[0].strip(":") for line in lines] == [
        "tokens", "capacity", "busiest", "machines", "rented", "rent", "buy", "RENT"
    ]  # fmt: skip
    assert lines[0].endswith("12,100 x (300 + 100) = 4.84 million")
    assert lines[4].endswith("1 x 24 h = 24 h, in use 12.10 h or 50.4%")
    assert "24 h x $0.400" in lines[5] and lines[5].endswith("= $9.60 a day")
    assert lines[6].endswith("4.84 million x $2.0000 (two) = $9.68 a day")
    assert lines[7].endswith("1 of 3 APIs cost less than the server")
    fewer = replace(day, requests=11_900).verdict(ROUND).splitlines()
    assert fewer[-1].startswith("BUY:") and "$9.52 from the API" in fewer[-1]
    cheap = ROUND.offers().query("provider == 'one'")
    assert day.verdict(ROUND, cheap).splitlines()[-1].startswith("BUY:")
    door = replace(day, door_usd_per_hour=0.01).verdict(ROUND).splitlines()
    assert door[-1].startswith("BUY:"), "the door's 24 cents turn it"
    nobody = replace(day, requests=0).verdict(ROUND).splitlines()
    assert nobody[-1].startswith("BUY:    $9.60 a day on your server, $0.00 from the API; 3 of 3")


def test_more_than_one_server_carries(market):
    """Is not priced as if it did, and the last line says how many it takes."""
    lines = Day(requests=100_000, door_usd_per_hour=0).verdict(ROUND).splitlines()
    assert lines[3].endswith("4,167 / 1,000 = 4.1667, so 5 with 0 spare")
    assert lines[-1].startswith("RENT:    $48.00 a day on your 5 servers, $80.00 from the API")
    for hours in range(1, 25):
        assert Day(requests=3 * ROUND.requests_per_hour * hours, hours=hours).machines(ROUND) == 3


def test_a_verdict_is_about_this_servers_mix(market):
    """However the table is sorted, and for whatever lengths it was made."""
    day = Day(requests=12_100)
    other = api_prices.offers(0, 100, cached_tokens=0)
    assert other.of_mix.to_list() != ROUND.offers().of_mix.to_list()
    assert day.verdict(ROUND, other[::-1]) == day.verdict(ROUND)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Day(requests=1, hours=0),
        lambda: Day(requests=1, hours=48),
        lambda: Day(requests=-5),
        lambda: Day(requests=1, spare=-1),
        lambda: Day(requests=1, peak=0.5),
        lambda: Day(requests=1, peak=math.nan),
        lambda: replace(ROUND, tokens_per_s=0),
        lambda: replace(ROUND, output_tokens=0),
        lambda: replace(ROUND, usd_per_hour=math.nan),
        lambda: replace(ROUND, cached_tokens=1000).offers(),
        lambda: api_prices.offers(0, 0),
        lambda: api_prices.offers(math.nan, 100),
        lambda: Day(requests=1).verdict(ROUND, ROUND.offers().query("provider == 'One'")),
        lambda: api_prices.three(ROUND.offers().head(0)),
    ],
)
def test_what_cannot_be_is_refused(ask, market):
    """A price below 0, or none at all, would look like an answer."""
    with pytest.raises(CourseError, match="try: "):
        ask()
