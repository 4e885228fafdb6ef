"""The bill against an engine that counts for itself, through cuts, a reload and a kill of the door.

vLLM is that engine: its counters go up by each token as it is made, also where the client is gone
before the answer ends. llama.cpp's count a request only when it ends by itself.
"""

import asyncio
import os
import random
import signal
import ssl
import time
from collections import Counter

import aiohttp
import pytest
from support.vllm_server import needs_vllm
from support.waiting import eventually

from helpers import load, serve

pytestmark = needs_vllm

CUSTOMERS = [f"customer-{n}" for n in range(10)]
REQUESTS = 1000
AT_ONCE = 2  # of each customer
USD = serve.Price(input=1.0, cached=0.5, output=2.0)


class Crowd:
    """Ten customers with a hundred requests each, and what becomes of them.

    ``whole`` and ``broken`` count for each customer the output tokens of answers that came whole,
    and at most asked for in those that did not.
    """

    def __init__(self, door, keys):
        self.door, self.keys = door, keys
        self.reached, self.cut = 0, 0
        self.whole, self.broken = Counter(), Counter()

    async def ask(self, session, customer, chance):
        """One request: streamed or not, to its end or cut off after a few pieces."""
        cut_after = chance.randint(1, 6) if chance.random() < 0.2 else None
        prompt = f"Tell me about {'rain ' * chance.randint(1, 40)}"
        tokens = chance.randint(4, 24)
        body = {
            "model": self.door.upstream.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": chance.random() < 0.8,
        }
        head = {"Authorization": f"Bearer {self.keys[customer].get_secret_value()}"}
        url, answered = f"{self.door.url}/v1/chat/completions", False
        while not answered:  # until it is let in: the door is away for a moment
            try:
                async with session.post(url, json=body, headers=head) as answer:
                    assert answer.status == 200, await answer.text()
                    self.reached, answered, pieces = self.reached + 1, True, 0
                    async for line in answer.content:
                        pieces += line.startswith(b"data: {")
                        if pieces == cut_after:
                            self.cut += 1
                            answer.close()
                            raise ConnectionError
                self.whole[customer] += tokens
            except (aiohttp.ClientError, ConnectionError):
                self.broken[customer] += tokens
                await asyncio.sleep(0.1)

    async def customer(self, session, customer, seed):
        chance = random.Random(f"{customer} {seed}")
        for _ in range(REQUESTS // len(CUSTOMERS) // AT_ONCE):
            await self.ask(session, customer, chance)

    async def all(self, events):
        """Everybody at once; each event happens when so many requests have been let in."""
        trusted = ssl.create_default_context(cafile=str(self.door.authority))
        connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            each = [self.customer(session, name, n) for name in CUSTOMERS for n in range(AT_ONCE)]
            running = asyncio.gather(*each)
            for at, event in events:
                while self.reached < at and not running.done():
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(event)
            await running


def counters(server) -> dict[str, float]:
    """vLLM's own, once nothing runs: it counts a step after it has answered."""
    eventually(lambda: load.server_metrics(server.endpoint)["running"] == 0, 30)
    time.sleep(1)
    return load.server_metrics(server.endpoint)


async def test_a_thousand_requests_add_up(vllm, tmp_path):
    """The sums are those of vLLM; only a kill of the door loses what was not yet written."""
    before, killed = counters(vllm), []
    with serve.Door(folder=tmp_path / "door", upstream=vllm.endpoint, price=USD) as door:
        limits = serve.Limits(in_flight=8, requests_a_minute=10_000)
        keys = {name: door.customers.issue(name, limits) for name in CUSTOMERS}
        crowd = Crowd(door, keys)

        def kill():
            killed.append(int(door.status()["running"].sum()))
            os.killpg(int((door.folder / "nginx.pid").read_text()), signal.SIGKILL)
            door.start()

        began = time.monotonic()
        await crowd.all([(400, door.reload), (700, kill)])
        took_s = time.monotonic() - began
        after = counters(vllm)
        bill, each = door.bill(), serve.bill.requests(door.folder)
    made = after["output_tokens_total"] - before["output_tokens_total"]
    read = after["prompt_tokens_total"] - before["prompt_tokens_total"]
    missing, unread = made - bill["output"].sum(), read - bill["input"].sum()
    print(f"{made:.0f} tokens made, {missing:.0f} not billed; {read:.0f} read, {unread:.0f} not")
    print(f"{crowd.cut} cut by customers, {killed} running at the kill, {took_s:.0f} s\n{bill}")

    assert crowd.reached <= len(each) <= crowd.reached + AT_ONCE * len(CUSTOMERS)
    assert not each["complete"].isna().any() and crowd.cut > 100
    # A stream that its customer cuts: a token may be on its way. One that ran at the kill: what it
    # got in a second; its prompt, if it was that young; and all of an answer in one piece.
    lost = AT_ONCE * len(CUSTOMERS)
    a_second = made / took_s / lost + 24 * 0.2
    assert 0 <= missing <= 2 * crowd.cut + a_second * lost
    assert 0 <= unread <= 80 * lost
    for name in CUSTOMERS:  # nobody pays for somebody else
        assert bill.loc[name, "output"] >= crowd.whole[name]
        assert bill.loc[name, "output"] <= crowd.whole[name] + crowd.broken[name]
    usd = bill["input"] * USD.input + bill["output"] * USD.output
    usd -= bill["cached"] * (USD.input - USD.cached)
    assert list(bill["usd"]) == pytest.approx(list(usd / 1e6))


async def test_several_answers_to_a_request_are_billed_as_far_as_they_came(vllm, tmp_path):
    """vLLM tells of each answer what it has used: a stream that is cut has no sum of them."""
    before, cut = counters(vllm), 0
    with serve.Door(folder=tmp_path / "door", upstream=vllm.endpoint, price=USD) as door:
        key = door.customers.issue("ada", serve.Limits(in_flight=8, requests_a_minute=1000))
        async with door.endpoint(key).async_client() as client:
            for n in range(6):
                pieces = await client.chat.completions.create(
                    model=vllm.endpoint.model, n=3, max_tokens=40, stream=True,
                    messages=[{"role": "user", "content": "Tell me about rain."}],
                    extra_body={"ignore_eos": True},
                )  # fmt: skip
                seen = 0
                async for _ in pieces:
                    seen += 1
                    if n % 2 and seen == 63:  # a first piece of each, and 20 tokens
                        await pieces.close()
                        cut += 1
                        break
        after, bill = counters(vllm), door.bill().loc["ada"]
    made = after["output_tokens_total"] - before["output_tokens_total"]
    assert cut == 3 and made >= 3 * 3 * (40 + 20)
    assert 0 <= made - bill["output"] <= 3 * 3 * 3  # three tokens of each answer are on their way
