"""Rent or buy: what an API charges for a model like the course's, and what your server costs.

Prices of APIs come with the package ``genai-prices``, as dated data: no network is asked.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
from genai_prices import Usage, __version__
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, StartDateConstraint

from helpers.errors import CourseError, above_zero

#: A small machine that is always on and lets customers in, $/h: AWS t4g.small (2 cores, 2 GB) in
#: us-east-1. karpenter-provider-aws, zz_generated.pricing_aws.go @031e72b, prices of 2026-01-19.
DOOR_USD_PER_HOUR = 0.0168
# Names of chat models with open weights and 7 or 8 billion parameters. No fine-tunes, none that
# sees pictures, none that is free up to a quota or answers in batches later.
_CLASS = re.compile(
    r"(meta\.|mistral\.|databricks-)?(mistral-7b|ministral-3-8b|ministral-8b(?=-2512|-latest)"
    r"|(meta-)?llama-?v?3[.p-]1-8b|qwen-?2\.5-7b|qwen3-8b)"
    r"(-(instruct|instant|turbo|fast|fp8|bf16|2512|latest|v0[.:]\d|v1:0))*"
)


def offers(prompt_tokens: float, output_tokens: float, cached_tokens: float = 0) -> pd.DataFrame:
    """What each provider charges for a model of the course's class: its cheapest for this mix.

    The class, by name: Mistral 7B, Ministral 3 8B, Llama 3.1 8B, Qwen2.5 7B and Qwen3 8B. Left out
    are models that the data calls deprecated, and OpenRouter, which passes on what others serve.

    Args:
        prompt_tokens: tokens of a prompt.
        output_tokens: tokens of an answer.
        cached_tokens: how many of the prompt's are in the provider's cache.

    Returns:
        Cheapest first: ``provider, model``, the prices of ``input, cached`` input and ``output`` in
        $ for a million tokens, ``since`` which day the data knows them to hold (mostly empty), and
        ``of_mix``, in $ for a million tokens of prompts and answers together.

    Raises:
        CourseError: the answer has no tokens, or more are cached than the prompt has.
    """
    if not (0 <= cached_tokens <= prompt_tokens and output_tokens > 0):
        raise CourseError("no such request", "output above 0, cached from 0 to the prompt's tokens")
    # A thousand each, and not a million: long prompts may cost more a token.
    kinds = {"input_tokens": 1000}, {"input_tokens": 1000, "cache_read_tokens": 1000}
    rows, uses = [], [Usage(**kind) for kind in (*kinds, {"output_tokens": 1000})]
    for provider in get_snapshot().providers:
        for model in provider.models:
            name = model.id.lower().rpartition("/")[2]
            if _CLASS.fullmatch(name) and not model.deprecated and provider.id != "openrouter":
                usd = [1000 * float(model.calc_price(use, provider).total_price) for use in uses]
                # What Hugging Face passes on is priced by the provider that it names.
                rows.append([provider.id.removeprefix("huggingface_"), name, *usd, _since(model)])
    table = pd.DataFrame(rows, columns=["provider", "model", "input", "cached", "output", "since"])
    read = table.input * (prompt_tokens - cached_tokens) + table.cached * cached_tokens
    table["of_mix"] = (read + table.output * output_tokens) / (prompt_tokens + output_tokens)
    table = table.sort_values(["of_mix", "provider", "since"], ascending=[True, True, False])
    return table.drop_duplicates("provider", ignore_index=True)


def three(apis: pd.DataFrame) -> pd.DataFrame:
    """Of rows of :func:`offers`, in any order, the ``cheapest``, ``median`` and ``dearest``.

    Raises:
        CourseError: there is no row.
    """
    if apis.empty:
        raise CourseError("no API is left to compare with", "write a provider as offers() does")
    apis = apis.sort_values("of_mix", kind="stable")
    return apis.iloc[[0, len(apis) // 2, -1]].set_axis(["cheapest", "median", "dearest"])


def freshness() -> str:
    """How old the prices of :func:`offers` are: package, version, and the newest date in it."""
    newest = max(_since(model) for one in get_snapshot().providers for model in one.models)
    return f"genai-prices {__version__}, newest change of a price on {newest}"


def _since(model: ModelInfo) -> str:
    """The day of its last change of price until today, if the data knows one."""
    ways = [price.constraint for price in model.prices] if isinstance(model.prices, list) else []
    days = [str(way.start_date) for way in ways if isinstance(way, StartDateConstraint)]
    return max((day for day in days if day <= str(datetime.now(UTC).date())), default="")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A rented machine, and what it was measured to carry with requests of these lengths.

    Args:
        name: GPU and model.
        usd_per_hour: its price.
        tokens_per_s: output tokens of all users together.
        prompt_tokens: of a request, on average.
        output_tokens: of its answer.
        cached_tokens: how many of the prompt's came from the prefix cache.

    Raises:
        CourseError: the price, the rate or the answer's length is not above 0.
    """

    name: str
    usd_per_hour: float
    tokens_per_s: float
    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0

    def __post_init__(self) -> None:
        above_zero(usd=self.usd_per_hour, tokens_per_s=self.tokens_per_s, output=self.output_tokens)

    @property
    def requests_per_hour(self) -> float:
        """Requests that it answers in an hour in which it is always busy."""
        return 3600 * self.tokens_per_s / self.output_tokens

    @property
    def usd_per_million(self) -> float:
        """$ for a million tokens, prompts and answers together, if it is always busy.

        Divided by the utilisation it is the price at less use; divided by an API's price it is
        the utilisation at which both cost the same.
        """
        tokens_per_hour = self.requests_per_hour * (self.prompt_tokens + self.output_tokens)
        return self.usd_per_hour / tokens_per_hour * 1e6

    def offers(self) -> pd.DataFrame:
        """What APIs charge for its mix of tokens: see :func:`offers`."""
        return offers(self.prompt_tokens, self.output_tokens, self.cached_tokens)


@dataclass(frozen=True, kw_only=True)
class Day:
    """A day of customers, whose requests are as long as those the server was measured with.

    Args:
        requests: how many in the day.
        hours: how long the machines are rented in the day; all requests come within these hours.
        peak: requests of the busiest hour, divided by those of the average one.
        spare: machines beyond those that the busiest hour needs, so that one may fail.
        door_usd_per_hour: price of the machine that lets customers in, day and night; 0 for none.

    Raises:
        CourseError: there is no such day.
    """

    requests: float
    hours: float = 24
    peak: float = 1
    spare: int = 0
    door_usd_per_hour: float = DOOR_USD_PER_HOUR

    def __post_init__(self) -> None:
        if not (0 < self.hours <= 24 and self.peak >= 1 and self.requests >= 0 and self.spare >= 0):
            raise CourseError(f"no day is {self}", "hours above 0 to 24, peak from 1, rest from 0")

    def machines(self, server: Server) -> int:
        """How many to rent: enough for the busiest hour, and the spare ones."""
        needed = self.requests / self.hours * self.peak / server.requests_per_hour
        return max(1, math.ceil(round(needed, 9))) + self.spare

    def rent_usd(self, server: Server) -> float:
        """What the day costs on rented machines: hours rented, used or not."""
        rented = self.machines(server) * self.hours * server.usd_per_hour
        return rented + 24 * self.door_usd_per_hour

    def verdict(self, server: Server, apis: pd.DataFrame | None = None) -> str:
        """The arithmetic line by line, and in the last line whether to rent or to buy.

        Args:
            server: what would be rented.
            apis: rows of :func:`offers` whose providers come into question; by default all. They
                are priced for this server's mix. The one in the middle, the median, is the
                alternative.

        Raises:
            CourseError: none of the providers is left.
        """
        table = server.offers()
        table = table if apis is None else table[table.provider.isin(apis.provider)]
        api, each = three(table).loc["median"], server.requests_per_hour
        prompt, output, door = server.prompt_tokens, server.output_tokens, self.door_usd_per_hour
        busiest, count = self.requests / self.hours * self.peak, self.machines(server)
        millions, used = self.requests * (prompt + output) / 1e6, self.requests / each
        rent, buy, rented = self.rent_usd(server), millions * api.of_mix, count * self.hours
        return f"""\
tokens   {self.requests:,.0f} x ({prompt:.0f} + {output:.0f}) = {millions:,.2f} million
capacity {server.tokens_per_s:,.0f} / {output:.0f} x 3,600 = {each:,.0f} requests an hour
busiest  {self.requests:,.0f} / {self.hours:g} x {self.peak:g} = {busiest:,.0f} requests an hour
machines {busiest:,.0f} / {each:,.0f} = {busiest / each:.4f}, so {count} with {self.spare} spare
rented   {count} x {self.hours:g} h = {rented:g} h, in use {used:.2f} h or {used / rented:.1%}
rent     {rented:g} h x ${server.usd_per_hour:.3f} + door 24 h x ${door:.4f} = ${rent:,.2f} a day
buy      {millions:,.2f} million x ${api.of_mix:.4f} ({api.provider}) = ${buy:,.2f} a day
{"RENT" if rent < buy else "BUY"}:    ${rent:,.2f} a day \
on your {"server" if count == 1 else f"{count} servers"}, ${buy:,.2f} from the API; \
{int((millions * table.of_mix < rent).sum())} of {len(table)} APIs cost less than the server"""
